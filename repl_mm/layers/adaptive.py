"""A block with a computing layer beside it, one of which runs: what Adaptive-RepL puts at every possible site."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repl_mm.layers.adopter import Adopter
from repl_mm.layers.base import ComputingLayer
from repl_mm.layers.cost import Cost
from repl_mm.layers.parts import Parts, read, reads


class AdaptiveBlock(Adopter):
    """A block that may be replaced and run again later (Section IV-D1h of the 2026 paper).

    The block's parameters, buffers and children keep their keys; those of the computing layer begin with
    ``computing.``, and so do the mask and the score, which a checkpoint brings along. What does not run gets no
    gradient. In training it adds up the cosine similarity of what it gets and what it gives, each image's numbers
    being one vector; images whose features are not finite do not count.

    Args:
        block: The block, which is read through this one by the computing layers beside it.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.adopt(block)
        self._is_replaced = False
        self.register_load_state_dict_post_hook(_follow_mask)

    def attach(self, computing: ComputingLayer, *, is_replaced: bool) -> None:
        """Put a computing layer beside the block."""
        like = next(self.parameters())
        # Sum of the cosines of an epoch and their number, over all processes; and those of this process since then.
        for name, persists in (('scores', True), ('recent', False)):
            zeros = torch.zeros(2, dtype=torch.float64, device=like.device)
            computing.register_buffer(name, zeros, persistent=persists)
        computing.register_buffer('mask', torch.tensor(False, device=like.device))
        self.computing = computing
        self.is_replaced = is_replaced

    @property
    def is_replaced(self) -> bool:
        """Whether the computing layer runs; a change drops gradients, so that what stops running takes no step."""
        # Beside the buffer, since reading that from a GPU makes the CPU wait.
        return self._is_replaced

    @is_replaced.setter
    def is_replaced(self, value: bool) -> None:
        if value != self._is_replaced:
            for parameter in self.parameters():
                parameter.grad = None
        self._is_replaced = value
        self.computing.mask.fill_(value)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As the block, or the computing layer in its place."""
        out = (self.computing if self.is_replaced else self.block)(x, *args, **kwargs)
        if self.training:
            self._score(x, out)
        return out

    @torch.no_grad()
    def _score(self, x: Tensor, out: Tensor) -> None:
        dtype = torch.promote_types(x.dtype, torch.float32)
        cosines = F.cosine_similarity(x.flatten(1).to(dtype), out.flatten(1).to(dtype))  # (N,)
        finite = cosines.isfinite()
        self.computing.recent += torch.stack([cosines.where(finite, 0).sum(), finite.sum()])

    def follow_mask(self) -> None:
        """Let the buffer decide, after loading."""
        if not self.computing.mask.is_meta:
            self._is_replaced = bool(self.computing.mask)

    def fuse(self) -> nn.Module:
        """What runs, as an ordinary operator or block; it takes the block out of here."""
        computing = self.computing
        for name in ('scores', 'recent', 'mask'):
            delattr(computing, name)
        if self.is_replaced:
            return computing.fuse()
        del self.computing
        return self.block

    def costs(self, shape: torch.Size, removed: Cost) -> tuple[Cost, Cost]:
        """As of a computing layer, of what runs; all parameters stay, whichever that is."""
        in_training, deployed = self.computing.costs(shape, removed)
        return self.beside(removed, in_training), deployed if self.is_replaced else removed

    def beside(self, removed: Cost, computing: Cost) -> Cost:
        """What it costs in training, given what its block and a layer in place of it do."""
        runs = computing if self.is_replaced else removed
        return replace(
            runs,
            parameters=removed.parameters + computing.parameters,
            trainable=removed.trainable + computing.trainable,
        )


def _follow_mask(block: AdaptiveBlock, _: Any) -> None:
    block.follow_mask()


@contextmanager
def originals_in_place(stages: Iterable[nn.Module]) -> Iterator[None]:
    """For a while, blocks stand where those that hold them do: a host that initialises them knows them by class."""
    holders = [
        (blocks, index, block)
        for blocks in stages
        for index, block in enumerate(blocks)
        if isinstance(block, AdaptiveBlock)
    ]
    for blocks, index, holder in holders:
        blocks[index] = holder.block
    try:
        yield
    finally:
        for blocks, index, holder in holders:
            blocks[index] = holder
            holder.follow_mask()


@reads(AdaptiveBlock)
def _read_block(block: AdaptiveBlock) -> Parts:
    return read(block.block)


def layer_at(block: nn.Module) -> ComputingLayer | None:
    """The computing layer that stands at a block's place, or beside the block; None where there is none."""
    if isinstance(block, AdaptiveBlock):
        return block.computing
    return block if isinstance(block, ComputingLayer) else None
