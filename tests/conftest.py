"""What every test begins with.

``DEVICE=cuda`` in the environment lets tests build their tensors on a GPU, and ``DEVICE=stand-in`` on a device that
refuses what a GPU refuses; ``make test DEVICE=...`` takes the tests that are about tensors.
"""

import importlib
import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings
from mmengine.registry import DefaultScope

from repl_mm.engine.install import install

install()
DEVICE = os.environ.get('DEVICE', 'cpu')

# A busy machine is no failure.
settings.register_profile('no deadline', deadline=None)
settings.load_profile('no deadline')


def pytest_configure(config: pytest.Config) -> None:
    """From here on, also while test modules are imported, a tensor that names no device is built on that one."""
    if DEVICE == 'cpu':
        return
    chosen = torch.device(DEVICE) if DEVICE != 'stand-in' else importlib.import_module('stand_in').stand_in()
    chosen.__enter__()
    config.add_cleanup(lambda: chosen.__exit__(None, None, None))


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests run beside one another: what is timed in them is not refused for it."""
    monkeypatch.setattr('repl_mm.benchmark.timing.cpu_seconds', lambda: (0.0, 0.0))


@pytest.fixture(autouse=True)
def default_scope() -> Iterator[None]:
    """Each test begins outside the hosts' scopes and leaves none behind: they decide what a name in a config means."""
    with DefaultScope.overwrite_default_scope('mmengine'):
        yield
