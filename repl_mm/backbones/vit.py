"""Vision Transformers."""

from typing import Any

from mmpretrain.models.backbones import VisionTransformer
from torch import nn

from repl_mm.backbones.mixin import ReplMixin
from repl_mm.layers import ComputingLayer, HeadwiseEncoderLayer, ScalarEncoderLayer
from repl_mm.registry import MODELS
from repl_mm.sites import Layout


@MODELS.register_module()
class ReplViT(ReplMixin, VisionTransformer):
    """Vision Transformer; ``arch`` is one of the host's (``deit-tiny``, ``deit-small``, ``base``, ``large``, a dict).

    ``repl=dict(policy='interval', every=4, mlp_fusion=True)`` replaces every fourth block by a projection that two
    scalars mix from its neighbours', and an MLP of the neighbours' mean weights. ``form='headwise'`` has two
    coefficients per head instead.
    """

    forms = ('scalar', 'headwise')

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # The host writes into the sequence that it is given.
        if 'out_indices' in kwargs and not isinstance(kwargs['out_indices'], int):
            kwargs['out_indices'] = list(kwargs['out_indices'])
        super().__init__(*args, **kwargs)

    def stages(self) -> dict[str, nn.Module]:
        return {'layers': self.layers}

    def layout(self) -> Layout:
        return Layout(f'{type(self).__name__} with {self.num_layers} blocks', (self.num_layers,))

    def _replace(self, *, mlp_fusion: bool = False, **options: Any) -> None:
        if 'grad_fraction' in options:
            raise ValueError("'grad_fraction' is for residual networks: a ViT's sites have next to nothing to gain")
        if not isinstance(mlp_fusion, bool):
            raise ValueError(f"'mlp_fusion' is True or False, got {mlp_fusion!r}")
        self.mlp_fusion = mlp_fusion
        super()._replace(**options)

    def _build(self, removed: nn.Module, *, prev: nn.Module, next: nn.Module) -> ComputingLayer:
        layer = {'scalar': ScalarEncoderLayer, 'headwise': HeadwiseEncoderLayer}[self.form]
        return layer(removed, prev=prev, next=next, mlp_fusion=self.mlp_fusion, recompute=self.recompute)

    def _freeze(self) -> None:
        # The host freezes position embeddings and all whenever it is asked, and lets train() undo the eval mode.
        if self.frozen_stages > 0:
            self._freeze_stages()
