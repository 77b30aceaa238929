"""Computing layers of residual networks.

Shapes:
    x      (N, C, H, W)  input and output of a block
    B      channels of a Bottleneck's middle convolution
    q      kernel size of the spatial convolution
"""

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repl_mm.layers.base import MixingLayer, Option, flag, shape_refusal
from repl_mm.layers.cost import Cost, layer_cost, recomputed
from repl_mm.layers.fit import ConvolutionFit, Fit, NormFit
from repl_mm.layers.memory import draw, recompute_between, sampled_conv2d
from repl_mm.layers.parts import Parts, ResidualParts, as_module, read
from repl_mm.layers.static import Residual, StaticLayer, fold, is_foldable, static_conv
from repl_mm.synthesis import mix_channels


def _is_part(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1


class _ResidualLayer(MixingLayer):
    """``y = relu(x + norm(branch(x)))`` with one coefficient per channel of a spatial convolution.

    Its norm is that of the removed block's last convolution, made anew. Options: ``recompute`` computes the norm's
    input twice instead of keeping it for the backward pass; ``grad_fraction`` is the part of a batch that the
    coefficients' gradients are estimated from.
    """

    form = 'channelwise'
    kinds = (ResidualParts,)
    options_of_form: ClassVar = {
        'recompute': flag(),
        'grad_fraction': Option(1, 'above 0 and at most 1', _is_part),
        **MixingLayer.options_of_form,
    }
    # The sources are normalised: a mix of ones keeps the variance of what it replaces.
    coefficients = {'alpha': 1.0, 'beta': 1.0}
    # Recomputing changes no result, sampling makes gradients noisier.
    variants = ({}, dict(recompute=True), dict(grad_fraction=0.25), dict(recompute=True, grad_fraction=0.25))
    convs: ClassVar[int]  # of the blocks that it stands for
    spatial: ClassVar[int]  # which of them gives the geometry
    stands_in: ClassVar[tuple[int, ...]]  # for which of them the synthesised kernel does
    pointwise: ClassVar[tuple[int, ...]] = ()  # which of them are 1x1
    # (neighbour, its convolution, the removed block's) of each kernel that is lent; 0 is the left neighbour.
    lent: ClassVar[tuple[tuple[int, int, int], ...]]

    def __init__(self, removed: nn.Module, **kwargs: Any) -> None:
        super().__init__(removed, **kwargs)
        parts = read(removed)
        conv = parts.convs[self.spatial]
        # The neighbours may be dilated otherwise, so the geometry is that of the removed block.
        self.geometry = dict(stride=conv.stride, padding=conv.padding, dilation=conv.dilation, groups=conv.groups)
        self.activation = as_module(parts.activation)
        self._make_coefficients(conv.weight, conv.out_channels)
        self.norm = copy.deepcopy(parts.norms[-1])
        self.norm._forward_hooks.clear()  # which are the removed block's
        self.norm._forward_pre_hooks.clear()
        self.reset_parameters()

    @classmethod
    def stands_for(cls, parts: Parts) -> bool:
        return super().stands_for(parts) and len(parts.convs) == cls.convs

    @classmethod
    def refusal(cls, removed: ResidualParts, prev: ResidualParts, next: ResidualParts, **options: Any) -> str | None:
        if not all(map(cls.stands_for, (prev, next))):
            return 'its neighbours are blocks of another kind'
        first, last = removed.convs[0], removed.convs[-1]
        if first.in_channels != last.out_channels or any(conv.stride != (1, 1) for conv in removed.convs):
            return 'it changes the shape of what it gets'
        if any(
            removed.convs[place].kernel_size != (1, 1) or removed.convs[place].groups > 1 for place in cls.pointwise
        ):
            return 'its first or last convolution is more than 1x1'
        if not hasattr(removed.norms[-1], 'reset_parameters'):
            return f'a norm of type {type(removed.norms[-1]).__name__} cannot be made anew'
        for side, theirs, own in cls.lent:
            what = f"the {('left', 'right')[side]} neighbour's convolution {theirs + 1}"
            lent = (prev, next)[side].convs[theirs].weight
            if reason := shape_refusal(what, lent, removed.convs[own].weight):
                return reason
        return None

    def reset_parameters(self) -> None:
        """Coefficients to 1, the norm to the identity (or to zero under ``zero_init_residual``)."""
        super().reset_parameters()
        self.norm.reset_parameters()
        if self.zero_init_residual and self.norm.weight is not None:
            nn.init.zeros_(self.norm.weight)

    def kernels(self) -> tuple[Tensor, Tensor]:
        """The kernels that are mixed, the left neighbour's and the right one's."""
        raise NotImplementedError

    def weight(self) -> Tensor:
        """The synthesised kernel, shape (C, C / groups, q, q) for C channels of the spatial convolution."""
        return mix_channels(*self._terms(*self.kernels()), stop_gradient=self.options['stop_gradient'])

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(N, C, H, W) to the same; what else a block of its kind is called with has no meaning here."""
        out = self._norm_after(*self._last(x))
        out += x
        return self.activation(out)

    def _last(self, x: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """The convolution in front of the norm, and its input."""
        raise NotImplementedError

    def before_norm(self, x: Tensor) -> Tensor:
        """The norm's input, shape (N, C, H, W)."""
        conv, x = self._last(x)
        return conv(x)

    def _convolution(self) -> Callable[[Tensor], Tensor]:
        weight, fraction = self.weight(), self.options['grad_fraction']
        if fraction < 1 and weight.requires_grad:
            return lambda x: sampled_conv2d(x, weight, fraction=fraction, **self.geometry)
        return lambda x: F.conv2d(x, weight, **self.geometry)

    def _norm_after(self, conv: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return recompute_between(conv, self.norm, x) if self.options['recompute'] else self.norm(conv(x))

    @torch.no_grad()
    def fuse(self) -> StaticLayer:
        return StaticLayer(Residual(self._static_branch()), copy.deepcopy(self.activation))

    def _static_branch(self) -> nn.Module:
        raise NotImplementedError

    def _sampling(self, images: int) -> tuple[float, Cost]:
        """The part of a weight gradient's operations that is left out, and what keeping the order of images costs."""
        fraction = self.options['grad_fraction']
        return 1 - draw(images, fraction) / images, Cost(activations=8 * (fraction < 1))

    def extra_repr(self) -> str:
        return f'{len(self.parts[0].convs[1].weight)} channels, ' + ', '.join(
            f'{k}={v}' for k, v in self.geometry.items()
        )


class ComputingBasicBlock(_ResidualLayer):
    """One 3x3 convolution in place of a BasicBlock (Eq. 8-11).

    The kernel mixes the left neighbour's second and the right neighbour's first convolution. Its own
    parameters are alpha (C,), beta (C,) and the norm's 2 C: 4 C in all (Eq. 44).
    """

    convs, spatial, stands_in = 2, 0, (0, 1)
    lent = ((0, 1, 0), (1, 0, 0))

    def kernels(self) -> tuple[Tensor, Tensor]:
        prev, next = self.parts
        return prev.convs[1].weight, next.convs[0].weight

    def _last(self, x: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        return self._convolution(), x

    def fit(self) -> Fit:
        return ConvolutionFit(self) if is_foldable(self.norm) else NormFit(self)

    def _static_branch(self) -> nn.Module:
        return fold(static_conv(self.weight(), **self.geometry), self.norm)

    def cost(self, shape: torch.Size) -> Cost:
        map_ = shape[1:].numel()
        conv = 2 * shape[2:].numel() * self._kernel
        spared, order = self._sampling(shape[0])
        own = sum(p.numel() for p in self.parameters())
        # The norm keeps its input, ReLU its output.
        cost = layer_cost(own, conv, frozen=spared * conv, kept=2 * map_) + order
        return cost + recomputed(conv, map_) if self.options['recompute'] else cost

    def static_cost(self, shape: torch.Size) -> Cost:
        channels, kernel = shape[1], self._kernel
        return layer_cost(kernel + channels, 2 * shape[2:].numel() * kernel, kept=shape[1:].numel())

    @property
    def _kernel(self) -> int:
        """Numbers of the synthesised kernel."""
        return self.parts[0].convs[1].weight.numel()


class ComputingBottleneck(_ResidualLayer):
    """A Bottleneck of borrowed 1x1 convolutions and a synthesised middle one (Eq. 13-15).

    The left neighbour lends the reduction, the right one the expansion; the middle kernel mixes both. Its own
    parameters are alpha (B,), beta (B,) and the norm's 2 C: 2 B + 2 C in all (Eq. 47).
    """

    convs, spatial, stands_in, pointwise = 3, 1, (1,), (0, 2)
    lent = ((0, 0, 0), (0, 1, 1), (1, 1, 1), (1, 2, 2))

    def kernels(self) -> tuple[Tensor, Tensor]:
        prev, next = self.parts
        return prev.convs[1].weight, next.convs[1].weight

    def _last(self, x: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        prev, next = self.parts
        expand = self._lent(next.convs[2].weight)
        z = self.activation(F.conv2d(x, self._lent(prev.convs[0].weight)))  # (N, B, H, W)
        z = self.activation(self._convolution()(z))
        return lambda z: F.conv2d(z, expand), z

    def fit(self) -> Fit:
        return NormFit(self)

    def _static_branch(self) -> nn.Module:
        prev, next = self.parts
        return nn.Sequential(
            static_conv(prev.convs[0].weight),
            copy.deepcopy(self.activation),
            static_conv(self.weight(), **self.geometry),
            copy.deepcopy(self.activation),
            fold(static_conv(next.convs[2].weight), self.norm),
        )

    def _sizes(self, shape: torch.Size) -> tuple[int, int, int, int]:
        """Channels B of the middle and numbers of its kernel, operations of a 1x1 and of the middle convolution."""
        kernel = self.parts[0].convs[1].weight
        positions = shape[2:].numel()
        middle, kernel = len(kernel), kernel.numel()
        return middle, kernel, 2 * positions * shape[1] * middle, 2 * positions * kernel

    def cost(self, shape: torch.Size) -> Cost:
        middle, _, thin, spatial = self._sizes(shape)
        channels, positions = shape[1], shape[2:].numel()
        spared, order = self._sampling(shape[0])
        own = sum(p.numel() for p in self.parameters())
        # The borrowed 1x1 convolutions are read through a stop-gradient.
        frozen = 2 * thin * self.options['stop_gradient'] + spared * spatial
        cost = layer_cost(own, 2 * thin + spatial, frozen=frozen, kept=(2 * middle + 2 * channels) * positions) + order
        return cost + recomputed(thin, channels * positions) if self.options['recompute'] else cost

    def static_cost(self, shape: torch.Size) -> Cost:
        middle, kernel, thin, spatial = self._sizes(shape)
        channels, positions = shape[1], shape[2:].numel()
        own = 2 * channels * middle + kernel + channels
        return layer_cost(own, 2 * thin + spatial, kept=(2 * middle + channels) * positions)
