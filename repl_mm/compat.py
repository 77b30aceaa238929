"""What the packages of the host libraries lack to work together, each with the condition under which it can go.

Importing this module changes nothing: ``import repl_mm`` lets mmcv find the operators, and
:func:`repl_mm.engine.install.install` calls the rest.
"""

import inspect
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import mmengine.runner.loops
import torch
import torchvision
from mmengine.config.utils import MODULE2PACKAGE
from torch import Tensor


def _nms(boxes: Tensor, scores: Tensor, *, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the kept boxes, best score first; ``offset`` is the pixel added to each side."""
    far_corner = boxes.new_tensor([0, 0, offset, offset])
    return torchvision.ops.nms(boxes + far_corner, scores, iou_threshold)


def _focal_loss(logits: Tensor, target: Tensor, weight: Tensor, *, gamma: float, alpha: float) -> Tensor:
    one_hot = (target[:, None] == torch.arange(logits.size(1), device=logits.device)).to(logits.dtype)
    loss = torchvision.ops.sigmoid_focal_loss(logits, one_hot, alpha=alpha, gamma=gamma)
    return loss * weight[target.clamp(max=weight.numel() - 1)][:, None] if weight.numel() else loss


def _sigmoid_focal_loss_forward(
    logits: Tensor, target: Tensor, weight: Tensor, output: Tensor, *, gamma: float, alpha: float
) -> None:
    """Focal loss (N, C) per element (Lin et al. 2017, Eq. 5), written into ``output``; class C is background."""
    output.copy_(_focal_loss(logits, target, weight, gamma=gamma, alpha=alpha))


def _sigmoid_focal_loss_backward(
    logits: Tensor, target: Tensor, weight: Tensor, grad: Tensor, *, gamma: float, alpha: float
) -> None:
    """Derivative of the focal loss by the logits, written into ``grad``."""
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        loss = _focal_loss(leaf, target, weight, gamma=gamma, alpha=alpha).sum()
        grad.copy_(torch.autograd.grad(loss, leaf)[0])


def _roi_align(
    x: Tensor, rois: Tensor, *, aligned_height: int, aligned_width: int, pool_mode: int, **options: Any
) -> Tensor:
    if pool_mode == 0:
        raise NotImplementedError(
            "RoIAlign with pool_mode='max' needs mmcv's compiled operators: take pool_mode='avg', or build mmcv with "
            'MMCV_WITH_OPS=1'
        )
    return torchvision.ops.roi_align(x, rois, (aligned_height, aligned_width), **options)


def _roi_align_forward(
    x: Tensor, rois: Tensor, output: Tensor, argmax_y: Tensor, argmax_x: Tensor, **options: Any
) -> None:
    """RoIAlign of features (N, C, H, W) at boxes (K, 5) of image, x1, y1, x2, y2, written into ``output``.

    The two maxima are for another mode of pooling.
    """
    output.copy_(_roi_align(x, rois, **options))


def _roi_align_backward(
    grad_output: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor, grad_input: Tensor, **options: Any
) -> None:
    """Gradient of RoIAlign by the features, written into ``grad_input``."""
    with torch.enable_grad():
        leaf = torch.zeros_like(grad_input).requires_grad_()  # it is linear: their values do not matter
        grad_input.copy_(torch.autograd.grad(_roi_align(leaf, rois, **options), leaf, grad_output)[0])


class TorchOperators(ModuleType):
    """Stands in for ``mmcv._ext``, mmcv's compiled operators, with those that RetinaNet and Mask R-CNN need.

    Can go when onedl-mmcv publishes wheels with compiled operators.
    """

    nms = staticmethod(_nms)
    sigmoid_focal_loss_forward = staticmethod(_sigmoid_focal_loss_forward)
    sigmoid_focal_loss_backward = staticmethod(_sigmoid_focal_loss_backward)
    roi_align_forward = staticmethod(_roi_align_forward)
    roi_align_backward = staticmethod(_roi_align_backward)

    def __getattr__(self, name: str):
        if name.startswith('__'):
            raise AttributeError(name)

        def missing(*args, **kwargs) -> NoReturn:
            raise NotImplementedError(
                f"mmcv's compiled operator '{name}' was called, but this mmcv was installed without "
                'compiled operators. Build mmcv with MMCV_WITH_OPS=1, or use a model without it.'
            )

        return missing


# The fork of each host library, and the distributions that it writes over: pip takes them for strangers.
FORKS = {
    'onedl-mmengine': ('mmengine', 'mmengine-lite'),
    'onedl-mmcv': ('mmcv', 'mmcv-lite', 'mmcv-full'),
    'onedl-mmpretrain': ('mmpretrain',),
    'onedl-mmdetection': ('mmdet',),
    'onedl-mmsegmentation': ('mmsegmentation',),
}


def require_one_stack() -> None:
    """Refuse an environment in which the host libraries and their forks lie over each other.

    Raises:
        ValueError: A library is installed twice; whichever came last has overwritten the other's files.
    """
    installed = {distribution.name.lower().replace('_', '-') for distribution in metadata.distributions()}
    twice = [(fork, name) for fork, names in FORKS.items() for name in names if {fork, name} <= installed]
    if twice:
        (fork, original), names = twice[0], ' '.join(sorted({name for pair in twice for name in pair}))
        raise ValueError(
            f'{fork} and {original} are both installed, and one has overwritten files of the other: '
            f"pip uninstall {names}, then pip install 'repl_mm[onedl]' or 'repl_mm[openmmlab]'"
        )


def torch_too_old(what: str, *, needs: str) -> ValueError:
    """The error of what asks for something that this torch does not have yet."""
    return ValueError(f'{what} needs torch {needs} or newer, and this is torch {torch.__version__}')


def can_compile() -> bool:
    """Whether ``torch.compile`` can read computing layers, which ask for the class whose ``forward`` runs.

    That of torch 2.4 cannot; it is told by a function that came with 2.6.
    """
    return hasattr(torch.nn.utils, 'get_total_norm')


@contextmanager
def safe_globals(items: Sequence[Callable[..., Any]]) -> Iterator[None]:
    """Let torch's restricted unpickler call some functions meanwhile, by the names that they have.

    Can go, for torch's own, with the support of torch 2.4.
    """
    if hasattr(torch.serialization, 'safe_globals'):
        with torch.serialization.safe_globals(list(items)):
            yield
        return
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(list(items))
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The 2-norm of all numbers of some tensors together.

    Can go, for torch's own, with the support of torch 2.4.
    """
    if hasattr(torch.nn.utils, 'get_total_norm'):
        return torch.nn.utils.get_total_norm(tensors)
    norms = torch._foreach_norm(list(tensors)) if tensors else [torch.zeros(1)]
    return torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))


class _LazyIterator(mmengine.runner.loops._InfiniteDataloaderIterator):
    """Opens its data loader when it is first read."""

    def __init__(self, dataloader: Any) -> None:
        self._dataloader, self._iterator, self._epoch = dataloader, None, 0

    def __next__(self) -> Any:
        self._iterator = iter(self._dataloader) if self._iterator is None else self._iterator
        return super().__next__()


def open_loaders_lazily() -> None:
    """Let an iteration-based loop read nothing before it runs: workers would take the first samples of a stream.

    Can go with the support of mmengine 0.10.7.
    """
    if 'fast_forward_on_resume' not in inspect.signature(mmengine.runner.loops.IterBasedTrainLoop).parameters:
        mmengine.runner.loops._InfiniteDataloaderIterator = _LazyIterator


def resolve_mmseg_configs() -> None:
    """Let ``_base_ = 'mmseg::...'`` find the package under the name it is distributed by.

    Can go when mmengine's own table knows ``onedl-mmsegmentation``.
    """
    installed = {distribution.name.lower().replace('_', '-') for distribution in metadata.distributions()}
    if MODULE2PACKAGE['mmseg'] == 'mmsegmentation' and 'onedl-mmsegmentation' in installed:
        MODULE2PACKAGE['mmseg'] = 'onedl-mmsegmentation'


def _inside_without_links(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    """A filter of ``tarfile``: Python's own for data, and no links, which no published data set has."""
    if member.issym() or member.islnk():
        raise tarfile.FilterError(
            f'{member.name!r} is a link to {member.linkname!r}, which an archive of data needs not'
        )
    root = Path(folder).resolve()
    if not (root / member.name).resolve().is_relative_to(root):  # through links that are there already, too
        raise tarfile.FilterError(f'{member.name!r} would be unpacked outside of {folder}')
    return tarfile.data_filter(member, folder)


def keep_archives_inside() -> None:
    """Let no archive that a host unpacks write outside of its folder.

    Links are refused altogether: by a chain of them Python 3.11's own filter is led out of the folder.
    """
    tarfile.TarFile.extraction_filter = staticmethod(_inside_without_links)
