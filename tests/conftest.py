"""What several test modules share."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings
from mmengine.registry import DefaultScope
from torch import nn

import repl_mm.compat  # noqa: F401
from repl_mm.layers import ComputingLayer

# A busy machine is no failure.
settings.register_profile('no deadline', deadline=None)
settings.load_profile('no deadline')


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def default_scope() -> Iterator[None]:
    """Each test begins outside the hosts' scopes and leaves none behind: they decide what a name in a config means."""
    with DefaultScope.overwrite_default_scope('mmengine'):
        yield


def randomise(module: nn.Module) -> nn.Module:
    """Give norms, biases and coefficients random values: fresh ones hide most errors."""
    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            child.running_mean.normal_()
            child.running_var.uniform_(0.5, 2)
        if isinstance(child, nn.modules.batchnorm._BatchNorm | nn.LayerNorm):
            nn.init.uniform_(child.weight, 0.5, 1.5)
        if isinstance(child, ComputingLayer):
            nn.init.normal_(child.alpha)
            nn.init.normal_(child.beta)
        if isinstance(getattr(child, 'bias', None), nn.Parameter):
            nn.init.normal_(child.bias, std=0.1)
    return module
