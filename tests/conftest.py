"""What every test begins with."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings
from mmengine.registry import DefaultScope

from repl_mm.engine.install import install

install()

# A busy machine is no failure.
settings.register_profile('no deadline', deadline=None)
settings.load_profile('no deadline')


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
