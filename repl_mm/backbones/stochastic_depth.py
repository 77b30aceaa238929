"""Stochastic depth (Huang et al. 2016): in training, whole residual blocks are skipped at random.

It stands beside replacement in the papers' Table IX. The host libraries' drop path zeroes the branch of single images
after computing it, which regularises in the same way and saves nothing.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from repl_mm.layers.base import ComputingLayer


class _Skippable:
    """Goes before a residual block's class among the bases."""

    skip_rate: float
    last_norm: str

    def forward(self, x: Tensor) -> Tensor:
        # The input is rectified already, so that it is what the block gives with its branch at zero.
        if self.training and torch.rand(()).item() < self.skip_rate:
            return x
        # The norm itself may be in eval mode while the block trains.
        getattr(self, self.last_norm).scale = 1 / (1 - self.skip_rate) if self.training else 1
        return super().forward(x)

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        # Pickle finds no class that was made at run time.
        return _new, (type(self).__mro__[2],), self.__dict__


@cache
def _skippable(kind: type[nn.Module]) -> type[nn.Module]:
    return type(f'Skippable{kind.__name__}', (_Skippable, kind), {})


def _new(kind: type[nn.Module]) -> nn.Module:
    return _skippable(kind).__new__(_skippable(kind))


def _make_up_for_skips(norm: nn.Module, _: tuple[Tensor, ...], out: Tensor) -> None:
    if norm.scale != 1:
        out.mul_(norm.scale)  # in place: a norm keeps its input for the backward pass, not its output


def apply_stochastic_depth(blocks: Iterable[nn.Module], rate: float) -> None:
    """Have residual blocks skipped in training, in place; a block that changes the shape never is.

    The rates rise linearly with depth, up to ``rate`` at the last block. A branch that is computed is scaled up, so
    that evaluation and deployment stay as they are. All images of a batch share one draw, and each process draws
    for itself: training on several needs ``find_unused_parameters=True`` and no synchronised batch norm.

    Args:
        blocks: The residual blocks in network order; computing layers among them are left alone, but count.
        rate: From 0 up to, but not including 1.
    """
    blocks = list(blocks)
    for number, block in enumerate(blocks, start=1):
        if isinstance(block, ComputingLayer | nn.Identity) or block.downsample is not None:
            continue
        block.last_norm = block.norm3_name if hasattr(block, 'norm3_name') else block.norm2_name
        block.skip_rate = rate * number / len(blocks)
        # A new module around the block would change its keys in the state dict.
        block.__class__ = _skippable(type(block))
        last = getattr(block, block.last_norm)
        last.scale = 1
        block.scaling = last.register_forward_hook(_make_up_for_skips)


@contextmanager
def disabled_stochastic_depth(network: nn.Module) -> Iterator[None]:
    """Have no block of a network skipped for a while: the steps that need most are those."""
    rates = {block: block.skip_rate for block in network.modules() if isinstance(block, _Skippable)}
    for block in rates:
        block.skip_rate = 0
    try:
        yield
    finally:
        for block, rate in rates.items():
            block.skip_rate = rate


def remove_stochastic_depth(blocks: Iterable[nn.Module]) -> None:
    """Undo :func:`apply_stochastic_depth`, in place."""
    for block in blocks:
        if isinstance(block, _Skippable):
            block.__class__ = type(block).__mro__[2]
            block.scaling.remove()
