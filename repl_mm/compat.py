"""What the packages of the host libraries lack to work together, each with the condition under which it can go.

Importing this module changes nothing: ``import repl_mm`` lets mmcv find the operators, and
:func:`repl_mm.engine.install.install` calls the rest.
"""

import tarfile
from types import ModuleType
from typing import NoReturn

import torch
import torchvision
from mmengine.config.utils import MODULE2PACKAGE
from torch import Tensor


def _nms(boxes: Tensor, scores: Tensor, *, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the kept boxes, best score first; ``offset`` is the pixel added to each side."""
    far_corner = boxes.new_tensor([0, 0, offset, offset])
    return torchvision.ops.nms(boxes + far_corner, scores, iou_threshold)


def _focal_terms(logits: Tensor, target: Tensor, weight: Tensor, alpha: float) -> tuple[Tensor, ...]:
    """One-hot labels (N, C), probabilities (N, C), and alpha times class weight (N, C)."""
    classes = torch.arange(logits.size(1), device=logits.device)
    positive = (target[:, None] == classes).to(logits.dtype)
    scale = positive * alpha + (1 - positive) * (1 - alpha)
    if weight.numel():
        scale = scale * weight[target.clamp(max=weight.numel() - 1)][:, None]
    return positive, logits.sigmoid(), scale


def _sigmoid_focal_loss_forward(
    logits: Tensor, target: Tensor, weight: Tensor, output: Tensor, *, gamma: float, alpha: float
) -> None:
    """Focal loss per element (Lin et al. 2017, Eq. 5), written into ``output``."""
    positive, prob, scale = _focal_terms(logits, target, weight, alpha)
    miss = positive * (1 - prob) + (1 - positive) * prob
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, positive, reduction='none')
    output.copy_(scale * miss**gamma * entropy)


def _sigmoid_focal_loss_backward(
    logits: Tensor, target: Tensor, weight: Tensor, grad: Tensor, *, gamma: float, alpha: float
) -> None:
    """Derivative of the focal loss by the logits, written into ``grad``."""
    positive, prob, scale = _focal_terms(logits, target, weight, alpha)
    sign = 1 - 2 * positive
    miss = positive * (1 - prob) + (1 - positive) * prob
    log_hit = -torch.nn.functional.binary_cross_entropy_with_logits(logits, positive, reduction='none')
    grad.copy_(scale * sign * miss**gamma * (miss - gamma * (1 - miss) * log_hit))


class TorchOperators(ModuleType):
    """Stands in for ``mmcv._ext``, mmcv's compiled operators, with those that RetinaNet needs.

    Can go when onedl-mmcv publishes wheels with compiled operators.
    """

    nms = staticmethod(_nms)
    sigmoid_focal_loss_forward = staticmethod(_sigmoid_focal_loss_forward)
    sigmoid_focal_loss_backward = staticmethod(_sigmoid_focal_loss_backward)

    def __getattr__(self, name: str):
        if name.startswith('__'):
            raise AttributeError(name)

        def missing(*args, **kwargs) -> NoReturn:
            raise NotImplementedError(
                f"mmcv's compiled operator '{name}' was called, but this mmcv was installed without "
                'compiled operators. Build mmcv with MMCV_WITH_OPS=1, or use a model without it.'
            )

        return missing


def resolve_mmseg_configs() -> None:
    """Let ``_base_ = 'mmseg::...'`` find the package under the name it is distributed by.

    Can go when mmengine's own table knows ``onedl-mmsegmentation``.
    """
    if MODULE2PACKAGE['mmseg'] == 'mmsegmentation':
        MODULE2PACKAGE['mmseg'] = 'onedl-mmsegmentation'


def keep_archives_inside() -> None:
    """Let no archive that a host unpacks write outside of its folder.

    Can go with Python 3.11: it is the default from 3.14 on.
    """
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
