"""Residual networks.

One ResNet serves classification, detection and segmentation: mmseg's is the superset (dilation, multi-grid,
deep stem) and equals torchvision's, mmdet's and mmpretrain's bit for bit where they overlap.
"""

from typing import Any, ClassVar

from mmpretrain.models.backbones import ResNet_CIFAR
from mmseg.models.backbones import ResNet, ResNetV1c, ResNetV1d, ResNeXt

from repl_mm.backbones.mixin import ReplResNetMixin
from repl_mm.registry import MODELS


@MODELS.register_module()
class ReplResNet(ReplResNetMixin, ResNet):
    """ResNet-18 to 152 for all three host libraries; the deep stems are options or the classes below."""


@MODELS.register_module()
class ReplResNetV1c(ReplResNetMixin, ResNetV1c):
    """ResNet with a stem of three 3x3 convolutions."""


@MODELS.register_module()
class ReplResNetV1d(ReplResNetMixin, ResNetV1d):
    """ResNet with a stem of three 3x3 convolutions and average pooling in the shortcuts."""


@MODELS.register_module()
class ReplResNeXt(ReplResNetMixin, ResNeXt):
    """ResNeXt-50 to 152: Bottlenecks whose middle convolution has ``groups`` groups of ``base_width`` channels."""


@MODELS.register_module()
class ReplResNetCIFAR(ReplResNetMixin, ResNet_CIFAR):
    """ResNet for small images: a 3x3 stem and three stages of 16, 32 and 64 channels (He et al. 2016, section 4.2).

    Args:
        depth: 32, 44, 56 or 110, that is 6 n + 2 for n BasicBlocks a stage; the host's depths (18 to 152) build its
            four-stage network.
        **kwargs: Passed on to mmpretrain's ``ResNet_CIFAR``.
    """

    arch_settings: ClassVar = ResNet_CIFAR.arch_settings | {
        depth: (ResNet_CIFAR.arch_settings[18][0], ((depth - 2) // 6,) * 3) for depth in (32, 44, 56, 110)
    }

    def __init__(self, depth: int, **kwargs: Any) -> None:
        three_stages = dict(
            num_stages=3, stem_channels=16, base_channels=16, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(2,)
        )
        super().__init__(depth, **(three_stages if depth in (32, 44, 56, 110) else {}) | kwargs)
