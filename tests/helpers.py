"""What several test modules share."""

import os
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from torch import nn

from repl_mm.layers import ComputingLayer

ON_CPU = pytest.mark.skipif(os.environ.get('DEVICE', 'cpu') != 'cpu', reason='about tensors of the CPU')


def randomise(module: nn.Module) -> nn.Module:
    """Give norms, biases and coefficients random values: fresh ones hide most errors."""
    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm) and child.running_mean is not None:
            child.running_mean.normal_()
            child.running_var.uniform_(0.5, 2)
        if isinstance(child, nn.modules.batchnorm._BatchNorm | nn.LayerNorm) and child.weight is not None:
            nn.init.uniform_(child.weight, 0.5, 1.5)
        if isinstance(child, ComputingLayer):
            for name in child.coefficients:
                nn.init.normal_(getattr(child, name))
        if isinstance(getattr(child, 'bias', None), nn.Parameter):
            nn.init.normal_(child.bias, std=0.1)
    return module


def same(one: Any, other: Any) -> bool:
    """Whether two values of checkpoints are equal, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, HistoryBuffer):
        return all(map(np.array_equal, one.data, other.data))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other
