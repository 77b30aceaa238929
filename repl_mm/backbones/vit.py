"""Vision Transformers."""

from typing import Any

from mmcv.cnn.bricks import DropPath
from mmpretrain.models.backbones import VisionTransformer
from torch import nn

from repl_mm.backbones.mixin import ReplMixin
from repl_mm.layers import TransformerParts
from repl_mm.registry import MODELS


@MODELS.register_module()
class ReplViT(ReplMixin, VisionTransformer):
    """Vision Transformer; ``arch`` is one of the host's (``deit-tiny``, ``deit-small``, ``base``, ``large``, a dict).

    ``repl=dict(policy='interval', every=4, mlp_fusion=True)`` replaces every fourth block by a projection that two
    scalars mix from its neighbours', and an MLP of the neighbours' mean weights. ``form='headwise'`` has two
    coefficients per head instead.
    """

    kind = TransformerParts
    depth_option = 'drop_path_rate'

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        for name in ('img_size', 'patch_size'):
            size = kwargs.get(name, 1)
            sides = size if isinstance(size, list | tuple) else [size]
            if not all(isinstance(side, int) and side > 0 for side in sides):
                raise ValueError(f'{name!r} is a number of pixels above 0, or one for each side, got {size!r}')
        # The host writes into the sequence that it is given.
        if 'out_indices' in kwargs and not isinstance(kwargs['out_indices'], int):
            kwargs['out_indices'] = list(kwargs['out_indices'])
        super().__init__(*args, **kwargs)
        for module in self.modules():
            if isinstance(module, DropPath):
                module.drop_prob = float(module.drop_prob)  # the host's NumPy numbers break torch.compile's graphs

    def repl_stages(self) -> dict[str, nn.Module]:
        return {'layers': self.layers}

    def _freeze(self) -> None:
        # The host freezes position embeddings and all whenever it is asked, and lets train() undo the eval mode.
        if self.frozen_stages > 0:
            self._freeze_stages()
