"""Modules that run a block without being its parent."""

from torch import nn
from typing_extensions import Self


class Adopter(nn.Module):
    """Runs a block whose parameters, buffers and children it holds as its own, so that their keys stay what they were.

    Both share their tables: who exchanges a child in one of them, as conversions to synchronised norms do, does so in
    the other. The block is kept in a plain tuple and is not registered.
    """

    adopted: tuple[nn.Module]

    def adopt(self, block: nn.Module) -> None:
        """Take over a block; before anything else is registered."""
        for table in ('_parameters', '_buffers', '_non_persistent_buffers_set', '_modules'):
            setattr(self, table, getattr(block, table))
        self.adopted = (block,)

    @property
    def block(self) -> nn.Module:
        """The block that it runs."""
        return self.adopted[0]

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.block.training = mode
        return self
