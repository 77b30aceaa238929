"""Stochastic depth (Huang et al. 2016): in training, whole residual blocks are skipped at random.

It stands beside replacement in the papers' Table IX. The host libraries' drop path zeroes the branch of single images
after computing it, which regularises in the same way and saves nothing.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import mmpretrain.models.backbones.resnet as mmpretrain_resnet
import mmseg.models.backbones.resnet as mmseg_resnet
import mmseg.models.backbones.resnext as mmseg_resnext
import torch
from torch import Tensor, nn


class SkippableBlock(nn.Module):
    """Goes before a residual block's class among the bases; what is not given a rate is never skipped."""

    skip_rate = 0.0

    def forward(self, x: Tensor) -> Tensor:
        if not self.skip_rate:
            return super().forward(x)
        # The input is rectified already, so that it is what the block gives with its branch at zero.
        if self.training and torch.rand(()).item() < self.skip_rate:
            return x
        # The norm itself may be in eval mode while the block trains.
        _last_norm(self).scale = 1 / (1 - self.skip_rate) if self.training else 1
        return super().forward(x)


class SkippableBasicBlock(SkippableBlock, mmseg_resnet.BasicBlock):
    """mmseg's BasicBlock."""


class SkippableBottleneck(SkippableBlock, mmseg_resnet.Bottleneck):
    """mmseg's Bottleneck."""


class SkippableGroupedBottleneck(SkippableBlock, mmseg_resnext.Bottleneck):
    """mmseg's Bottleneck of ResNeXt."""


class SkippableSmallBasicBlock(SkippableBlock, mmpretrain_resnet.BasicBlock):
    """mmpretrain's BasicBlock."""


class SkippableSmallBottleneck(SkippableBlock, mmpretrain_resnet.Bottleneck):
    """mmpretrain's Bottleneck."""


# By the host's class, which is the last but one base.
SKIPPABLE: dict[type[nn.Module], type[nn.Module]] = {
    cls.__bases__[1]: cls
    for cls in (
        SkippableBasicBlock,
        SkippableBottleneck,
        SkippableGroupedBottleneck,
        SkippableSmallBasicBlock,
        SkippableSmallBottleneck,
    )
}


def _last_norm(block: nn.Module) -> nn.Module:
    return block.norm3 if hasattr(block, 'conv3') else block.norm2


def _make_up_for_skips(norm: nn.Module, _: tuple[Tensor, ...], out: Tensor) -> None:
    if norm.scale != 1:
        out.mul_(norm.scale)  # in place: a norm keeps its input for the backward pass, not its output


def apply_stochastic_depth(blocks: Iterable[nn.Module], rate: float) -> None:
    """Have skippable blocks skipped in training, in place; a block that changes the shape never is.

    The rates rise linearly with depth, up to ``rate`` at the last block. A branch that is computed is scaled up, so
    that evaluation and deployment stay as they are. All images of a batch share one draw, and each process draws
    for itself: training on several needs ``find_unused_parameters=True`` and no synchronised batch norm.

    Args:
        blocks: The residual blocks in network order; computing layers among them are left alone, but count.
        rate: From 0 up to, but not including 1.
    """
    blocks = list(blocks)
    for number, block in enumerate(blocks, start=1):
        if isinstance(block, SkippableBlock) and block.downsample is None:
            block.skip_rate = rate * number / len(blocks)
            norm = _last_norm(block)
            norm.scale = 1
            block.scaling = norm.register_forward_hook(_make_up_for_skips)


def skipped_blocks(network: nn.Module) -> list[SkippableBlock]:
    """The blocks of a network that are skipped at some rate."""
    return [block for block in network.modules() if isinstance(block, SkippableBlock) and block.skip_rate]


@contextmanager
def disabled_stochastic_depth(network: nn.Module) -> Iterator[None]:
    """Have no block of a network skipped for a while: the steps that need most are those."""
    rates = {block: block.skip_rate for block in skipped_blocks(network)}
    for block in rates:
        block.skip_rate = 0
    try:
        yield
    finally:
        for block, rate in rates.items():
            block.skip_rate = rate


@contextmanager
def identity(block: SkippableBlock) -> Iterator[None]:
    """Have a block give what it gets for a while, as where it is skipped."""
    block.forward = lambda x: x  # type: ignore[method-assign]
    try:
        yield
    finally:
        del block.forward


def remove_stochastic_depth(network: nn.Module) -> None:
    """Undo :func:`apply_stochastic_depth`, in place."""
    for block in skipped_blocks(network):
        block.skip_rate = 0.0
        block.scaling.remove()
