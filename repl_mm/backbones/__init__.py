"""The registered backbones: the host libraries' classes, with blocks replaced."""

from repl_mm.backbones.language_model import ReplTransformer, TransformerLM
from repl_mm.backbones.mixin import ReplMixin
from repl_mm.backbones.neck import SimpleFeaturePyramid
from repl_mm.backbones.resnet import ReplResNet, ReplResNetCIFAR, ReplResNetV1c, ReplResNetV1d, ReplResNeXt
from repl_mm.backbones.skip_attention import SkipAttentionViT
from repl_mm.backbones.swin import ReplSwin
from repl_mm.backbones.vit import ReplViT

__all__ = [
    'ReplMixin',
    'ReplResNeXt',
    'ReplResNet',
    'ReplResNetCIFAR',
    'ReplResNetV1c',
    'ReplResNetV1d',
    'ReplSwin',
    'ReplTransformer',
    'ReplViT',
    'SimpleFeaturePyramid',
    'SkipAttentionViT',
    'TransformerLM',
]
