"""The registered backbones: the host libraries' classes, with blocks replaced."""

# The seams come before the host libraries.
import repl_mm.compat  # noqa: F401

# isort: split
from repl_mm.backbones.mixin import ReplMixin
from repl_mm.backbones.neck import SimpleFeaturePyramid
from repl_mm.backbones.resnet import ReplResNet, ReplResNetCIFAR, ReplResNetV1c, ReplResNetV1d, ReplResNeXt
from repl_mm.backbones.vit import ReplViT

__all__ = [
    'ReplMixin',
    'ReplResNeXt',
    'ReplResNet',
    'ReplResNetCIFAR',
    'ReplResNetV1c',
    'ReplResNetV1d',
    'ReplViT',
    'SimpleFeaturePyramid',
]
