"""Residual networks.

One ResNet serves classification, detection and segmentation: mmseg's is the superset (dilation, multi-grid,
deep stem) and equals torchvision's, mmdet's and mmpretrain's bit for bit where they overlap.
"""

from typing import Any

from mmpretrain.models.backbones import ResNet_CIFAR
from mmseg.models.backbones import ResNet, ResNetV1c, ResNetV1d, ResNeXt
from torch import nn

from repl_mm.backbones.mixin import ReplMixin
from repl_mm.backbones.stochastic_depth import SKIPPABLE, apply_stochastic_depth, remove_stochastic_depth
from repl_mm.layers import ResidualParts
from repl_mm.registry import MODELS


class ReplResNetMixin(ReplMixin):
    """Replaces blocks of a residual network.

    ``repl=dict(policy='interval', every=4)`` replaces every fourth block of each stage by a computing layer with one
    coefficient per channel and neighbour. ``recompute=True`` keeps fewer activations and computes more; with
    ``grad_fraction=0.25`` the coefficients' gradients are estimated from a quarter of each batch.

    Args:
        *args: Passed on, see :class:`repl_mm.backbones.ReplMixin`.
        stochastic_depth: Rate at which the last block is skipped in training; see
            :func:`repl_mm.backbones.stochastic_depth.apply_stochastic_depth`.
        **kwargs: Passed on.
    """

    kind = ResidualParts
    depth_option = 'stochastic_depth'
    arch_settings: dict[int, Any]  # the host's: class and numbers of blocks by depth

    def __init__(self, *args: Any, stochastic_depth: float = 0, **kwargs: Any) -> None:
        is_number = isinstance(stochastic_depth, int | float) and not isinstance(stochastic_depth, bool)
        if not is_number or not 0 <= stochastic_depth < 1:
            raise ValueError(f"'stochastic_depth' is at least 0 and below 1, got {stochastic_depth!r}")
        if stochastic_depth:
            # The host takes its blocks' class from there.
            self.arch_settings = {
                depth: (SKIPPABLE[block], *rest) for depth, (block, *rest) in type(self).arch_settings.items()
            }
        super().__init__(*args, **kwargs)
        if stochastic_depth and self.selection and self.selection.candidates:
            raise ValueError(
                "'stochastic_depth' does not go with policy 'adaptive': a block that was skipped gives what it gets, "
                'which is how redundant blocks are told; choose one of the two'
            )
        if stochastic_depth and not kwargs.get('deploy'):
            apply_stochastic_depth(
                [block for blocks in self.repl_stages().values() for block in blocks], stochastic_depth
            )

    def repl_stages(self) -> dict[str, nn.Module]:
        return {name: getattr(self, name) for name in self.res_layers}

    @property
    def title(self) -> str:
        return f'{type(self).__name__}-{self.depth}'

    def switch_to_deploy(self, *, fuse_all: bool = False) -> None:
        remove_stochastic_depth(self)
        super().switch_to_deploy(fuse_all=fuse_all)

    def _freeze(self) -> None:
        self._freeze_stages()


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

    arch_settings = ResNet_CIFAR.arch_settings | {
        depth: (ResNet_CIFAR.arch_settings[18][0], ((depth - 2) // 6,) * 3) for depth in (32, 44, 56, 110)
    }

    def __init__(self, depth: int, **kwargs: Any) -> None:
        three_stages: dict[str, Any] = dict(
            num_stages=3, stem_channels=16, base_channels=16, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(2,)
        )
        super().__init__(depth, **(three_stages if depth in (32, 44, 56, 110) else {}) | kwargs)
