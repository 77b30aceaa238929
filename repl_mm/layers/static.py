"""What computing layers become for deployment: ordinary operators that own their weights.

No neighbours, no synthesis, no norm of a site's own, and no branch on a mode (Eq. 32-33).
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_weights

from repl_mm.layers.parts import owner_of_forward

# Whose forward pass is that of a batch norm in eval mode; ours works over processes without a GPU.
BATCH_NORMS = (
    'torch.nn.modules.batchnorm._BatchNorm',
    'torch.nn.modules.batchnorm.SyncBatchNorm',
    'repl_mm.engine.cpu.GlooBatchNorm',
)


class StaticLayer(nn.Sequential):
    """The deployed form of one computing layer."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As the computing layer, which takes masks and sizes and does not need them."""
        return super().forward(x)


class Residual(nn.Module):
    """``x + branch(x)``."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(x)
        out += x
        return out


class StaticAffine(nn.Module):
    """``weight * x + bias`` with one number of each per channel, the last axis."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        _with_tensors(self, weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias, x, self.weight)


def static_conv(weight: Tensor, bias: Tensor | None = None, **geometry) -> nn.Conv2d:
    """A convolution with copies of these tensors; ``geometry`` goes to ``nn.Conv2d``."""
    out_channels, in_channels, *kernel_size = weight.shape
    in_channels *= geometry.get('groups', 1)
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, bias=bias is not None, device='meta', **geometry)
    return _with_tensors(conv, weight, bias)


def static_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer with copies of these tensors."""
    linear = nn.Linear(weight.size(1), weight.size(0), bias=bias is not None, device='meta')
    return _with_tensors(linear, weight, bias)


def static_layer_norm(norm: nn.LayerNorm) -> nn.LayerNorm:
    """A copy of a layer norm."""
    copied = copy.deepcopy(norm)
    return copied.requires_grad_(True)


def _with_tensors(module: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    module.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        module.bias = nn.Parameter(bias.detach().clone())
    return module


def is_foldable(norm: nn.Module) -> bool:
    """Whether a norm does the same to every image in eval mode: a batch norm with running statistics."""
    return owner_of_forward(norm) in BATCH_NORMS and norm.running_mean is not None


@torch.no_grad()
def fold(conv: nn.Conv2d, norm: nn.Module) -> nn.Module:
    """One convolution for ``conv`` followed by a batch norm in eval mode (Eq. 32); another norm stays behind it."""
    if not is_foldable(norm):
        return nn.Sequential(conv, copy.deepcopy(norm))
    weight, bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    geometry = {key: getattr(conv, key) for key in ('stride', 'padding', 'dilation', 'groups', 'padding_mode')}
    return static_conv(weight, bias, **geometry)
