"""Computing layers of residual networks.

Shapes:
    x      (N, C, H, W)  input and output of a block
    B      channels of a Bottleneck's middle convolution
    q      kernel size of the spatial convolution
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from torch import Tensor, nn

from repl_mm.layers.base import ComputingLayer, require_shape
from repl_mm.layers.memory import autocast_dtype, recompute_between, sampled_conv2d
from repl_mm.layers.static import Residual, StaticLayer, fold, static_conv
from repl_mm.synthesis import LARGE, mix_channels, mix_outputs

# Where a channel of the output has up to this part of the numbers that its kernel has, mixing two outputs takes less
# time than mixing two large kernels; docs/results/few_positions_cpu_2026-11-22.md has where they meet.
FEW = 1 / 16


class _ResidualLayer(ComputingLayer):
    """``y = relu(x + norm(branch(x)))`` with one coefficient per channel of a spatial convolution.

    Args:
        removed: The block whose place is taken; it gives the geometry and nothing else.
        prev: The retained block on the left.
        next: The retained block on the right.
        norm_cfg: Config of the norm layer, as the backbone's other blocks have it.
        zero_init_residual: Start with the residual branch switched off, as the backbone's blocks do.
        recompute: Compute the norm's input twice instead of keeping it for the backward pass, unless positions are few.
        grad_fraction: Part of a batch that the coefficients' gradients are estimated from.
    """

    def __init__(
        self,
        removed: nn.Module,
        *,
        prev: nn.Module,
        next: nn.Module,
        norm_cfg: dict,
        zero_init_residual: bool,
        recompute: bool = False,
        grad_fraction: float = 1,
    ) -> None:
        super().__init__(prev, next)
        for block in (removed, prev, next):
            _require_plain(block)
        conv = self._spatial(removed)
        self.zero_init_residual = zero_init_residual
        self.recompute = recompute
        self.grad_fraction = grad_fraction
        # The neighbours may be dilated otherwise, so the geometry is that of the removed block.
        self.geometry = dict(stride=conv.stride, padding=conv.padding, dilation=conv.dilation, groups=conv.groups)
        self.alpha = nn.Parameter(conv.weight.new_empty(conv.out_channels))
        self.beta = nn.Parameter(conv.weight.new_empty(conv.out_channels))
        self.norm = build_norm_layer(norm_cfg, self._out_channels(removed))[1]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Coefficients to 1, the norm to the identity (or to zero under ``zero_init_residual``)."""
        nn.init.ones_(self.alpha)
        nn.init.ones_(self.beta)
        nn.init.constant_(self.norm.weight, 0 if self.zero_init_residual else 1)
        nn.init.zeros_(self.norm.bias)

    def weight(self) -> Tensor:
        """The synthesised kernel, shape (C, C / groups, q, q) for C channels of the spatial convolution."""
        return mix_channels(*self.sources())

    def synthesise(self) -> tuple[Tensor, ...]:
        return (self.weight(),)

    @property
    def few_positions(self) -> int:
        """Up to how many output positions of a batch, N H W, outputs are mixed in training instead of kernels."""
        kernel = self.prev.conv2.weight.shape
        return int(FEW * kernel[1:].numel()) if kernel.numel() >= LARGE else 0

    def forward(self, x: Tensor) -> Tensor:
        if self._mixes_outputs(x):
            # What few positions keep is small beside a kernel, and not worth computing again.
            out = self._branch(x, self._mixed_outputs(), recompute=False)
        else:
            out = self._branch(x, self._mixed_kernel(), recompute=self.recompute)
        out += x
        return F.relu(out, inplace=True)

    def _branch(self, x: Tensor, conv: Callable[[Tensor], Tensor], *, recompute: bool) -> Tensor:
        """The residual branch with its norm, shape (N, C, H, W); ``conv`` is the synthesised convolution."""
        raise NotImplementedError

    def _mixes_outputs(self, x: Tensor) -> bool:
        # With gradients or without: checkpointing runs a layer in both ways.
        if not self.training or not self.alpha.requires_grad or torch.compiler.is_compiling():
            return False
        # Costs are counted on tensors without data, for batches of any size. Half precision is for the mixed kernel:
        # outputs of kernels that are not normalised may leave its range.
        has_data = type(x) is Tensor and not x.is_meta
        in_full = autocast_dtype(x) is None and x.dtype.itemsize >= 4
        return has_data and in_full and x.numel() // x.size(1) <= self.few_positions

    def _mixed_outputs(self) -> Callable[[Tensor], Tensor]:
        sources = self.sources()
        return lambda x: mix_outputs(*sources, partial(F.conv2d, x, **self.geometry))

    def _mixed_kernel(self) -> Callable[[Tensor], Tensor]:
        (weight,) = self.synthesised()
        if self.grad_fraction < 1 and weight.requires_grad:
            return lambda x: sampled_conv2d(x, weight, fraction=self.grad_fraction, **self.geometry)
        return lambda x: F.conv2d(x, weight, **self.geometry)

    def _norm_after(self, conv: Callable[[Tensor], Tensor], x: Tensor, *, recompute: bool) -> Tensor:
        return recompute_between(conv, self.norm, x) if recompute else self.norm(conv(x))

    @torch.no_grad()
    def fuse(self) -> StaticLayer:
        return StaticLayer(Residual(self._static_branch()), nn.ReLU(inplace=True))

    def extra_repr(self) -> str:
        return f'{self.alpha.numel()} channels, ' + ', '.join(f'{k}={v}' for k, v in self.geometry.items())


class ComputingBasicBlock(_ResidualLayer):
    """One 3x3 convolution in place of a BasicBlock (Eq. 8-11).

    The kernel mixes the left neighbour's second and the right neighbour's first convolution. Its own
    parameters are alpha (C,), beta (C,) and the norm's 2 C: 4 C in all (Eq. 44).
    """

    def __init__(self, removed: nn.Module, *, prev: nn.Module, next: nn.Module, **kwargs) -> None:
        super().__init__(removed, prev=prev, next=next, **kwargs)
        require_shape("the left neighbour's conv2", prev.conv2.weight, removed.conv1.weight.shape)
        require_shape("the right neighbour's conv1", next.conv1.weight, removed.conv1.weight.shape)

    @staticmethod
    def _spatial(block: nn.Module) -> nn.Conv2d:
        return block.conv1

    @staticmethod
    def _out_channels(block: nn.Module) -> int:
        return block.conv2.out_channels

    def sources(self) -> tuple[Tensor, ...]:
        return self.alpha, self.prev.conv2.weight, self.beta, self.next.conv1.weight

    def _branch(self, x: Tensor, conv: Callable[[Tensor], Tensor], *, recompute: bool) -> Tensor:
        return self._norm_after(conv, x, recompute=recompute)

    def _static_branch(self) -> nn.Module:
        return fold(static_conv(self.weight(), **self.geometry), self.norm)


class ComputingBottleneck(_ResidualLayer):
    """A Bottleneck of borrowed 1x1 convolutions and a synthesised middle one (Eq. 13-15).

    The left neighbour lends the reduction, the right one the expansion; the middle kernel mixes both. Its own
    parameters are alpha (B,), beta (B,) and the norm's 2 C: 2 B + 2 C in all (Eq. 47).
    """

    def __init__(self, removed: nn.Module, *, prev: nn.Module, next: nn.Module, **kwargs) -> None:
        super().__init__(removed, prev=prev, next=next, **kwargs)
        require_shape("the left neighbour's conv1", prev.conv1.weight, removed.conv1.weight.shape)
        require_shape("the left neighbour's conv2", prev.conv2.weight, removed.conv2.weight.shape)
        require_shape("the right neighbour's conv2", next.conv2.weight, removed.conv2.weight.shape)
        require_shape("the right neighbour's conv3", next.conv3.weight, removed.conv3.weight.shape)

    @staticmethod
    def _spatial(block: nn.Module) -> nn.Conv2d:
        return block.conv2

    @staticmethod
    def _out_channels(block: nn.Module) -> int:
        return block.conv3.out_channels

    def sources(self) -> tuple[Tensor, ...]:
        return self.alpha, self.prev.conv2.weight, self.beta, self.next.conv2.weight

    def _branch(self, x: Tensor, conv: Callable[[Tensor], Tensor], *, recompute: bool) -> Tensor:
        z = F.relu(F.conv2d(x, self.prev.conv1.weight.detach()), inplace=True)  # (N, B, H, W)
        z = F.relu(conv(z), inplace=True)
        expand = self.next.conv3.weight.detach()
        return self._norm_after(lambda z: F.conv2d(z, expand), z, recompute=recompute)

    def _static_branch(self) -> nn.Module:
        return nn.Sequential(
            static_conv(self.prev.conv1.weight),
            nn.ReLU(inplace=True),
            static_conv(self.weight(), **self.geometry),
            nn.ReLU(inplace=True),
            fold(static_conv(self.next.conv3.weight), self.norm),
        )


def _require_plain(block: nn.Module) -> None:
    """Raise ValueError where a block is more than convolutions, norms and a sum."""
    convs = [child for name, child in block.named_children() if name.startswith('conv')]
    odd = sorted({type(conv).__name__ for conv in convs if type(conv) is not nn.Conv2d})
    if odd or getattr(block, 'with_plugins', False):
        raise ValueError(
            f'a site and its neighbours need plain convolutions without plugins, got {", ".join(odd) or "plugins"}: '
            "choose other sites, or leave out the backbone's conv_cfg, dcn and plugins there"
        )
