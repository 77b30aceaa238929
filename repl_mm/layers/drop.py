"""Nothing where a block was, which bounds the cost of every form from below (Tables III and IV)."""

from typing import Any

import torch
from torch import Tensor

from repl_mm.layers.base import ComputingLayer
from repl_mm.layers.cost import Cost
from repl_mm.layers.parts import Parts, ResidualParts, TransformerParts
from repl_mm.layers.residual import ComputingBasicBlock, ComputingBottleneck
from repl_mm.layers.static import StaticLayer
from repl_mm.layers.transformer import ScalarTransformerLayer

PAPERS_OWN: tuple[type[ComputingLayer], ...] = (ComputingBasicBlock, ComputingBottleneck, ScalarTransformerLayer)


class Drop(ComputingLayer):
    """The identity, at the sites that a computing layer of the papers could take."""

    form = 'drop'
    kinds = (ResidualParts, TransformerParts)

    @classmethod
    def refusal(cls, removed: Parts, prev: Parts, next: Parts, **options: Any) -> str | None:
        [layer] = (layer for layer in PAPERS_OWN if layer.stands_for(removed))
        return layer.refusal(removed, prev, next)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """What it gets."""
        return x

    def fuse(self) -> StaticLayer:
        return StaticLayer()

    def cost(self, shape: torch.Size) -> Cost:
        return Cost()

    def static_cost(self, shape: torch.Size) -> Cost:
        return Cost()
