"""Where networks look: Grad-CAM (Selvaraju et al. 2017; Fig. 3 of both papers) and the features of blocks as maps."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from repl_mm.analysis.features import as_map, blocks_of
from repl_mm.analysis.samples import Samples
from repl_mm.deployment import RawOutputs


class ClassScores(nn.Module):
    """One score a class for each image, (B, classes), of a model of any task.

    Of a classifier its logits; of a detector the highest one over boxes and levels; of a segmentor the mean one over
    the pixels that it gives to the class, over all where there are none.

    Raises:
        ValueError: A model of another kind.
    """

    def __init__(self, model: BaseModel) -> None:
        super().__init__()
        if not any(hasattr(model, name) for name in ('head', 'bbox_head', 'decode_head')):
            raise ValueError(
                f'{type(model).__name__} has no score a class: give runs of classifiers, segmentors or one-stage '
                'detectors'
            )
        self.model, self.raw = model, RawOutputs(model)

    def forward(self, images: Tensor) -> Tensor:
        outputs = self.raw(images)
        if hasattr(self.model, 'decode_head'):
            (logits,) = outputs
            own = F.one_hot(logits.argmax(1), logits.size(1)).movedim(-1, 1).to(logits)
            own = torch.where(own.sum((2, 3), keepdim=True) > 0, own, torch.ones_like(own))
            return (logits * own).sum((2, 3)) / own.sum((2, 3))
        if hasattr(self.model, 'bbox_head'):
            head = self.model.bbox_head
            scores = outputs[: len(outputs) // 2]  # then those of the boxes' sides
            rows = [s.unflatten(1, (-1, head.cls_out_channels)).movedim(2, 1).flatten(2) for s in scores]
            return torch.cat(rows, 2).amax(2)
        return outputs[0]


def grad_cam(model: BaseModel, images: Tensor, classes: Sequence[int]) -> np.ndarray:
    """What speaks for a class in each image, (B, H, W) from 0 to 1, by the features of the last block.

    Of a detector by those of each stage's last block, on average: objects are found on several levels. Of a
    transformer's block what its first norm gives is looked at: of its output, a class token alone is read.

    Args:
        model: In eval mode.
        images: As the model's preprocessor gives them, (B, 3, H, W).
        classes: One for each image.

    Raises:
        ValueError: A map is not finite.
    """
    by_stage = {name.rpartition('.')[0]: block for name, block in blocks_of(model).items()}  # the last of each
    blocks = list(by_stage.values()) if hasattr(model, 'bbox_head') else [*by_stage.values()][-1:]
    targets = [next((m for m in block.children() if isinstance(m, nn.LayerNorm)), block) for block in blocks]
    size = tuple(images.shape[2:])
    cam = GradCAM(ClassScores(model), targets, reshape_transform=lambda out: as_map(out, size))
    with torch.enable_grad(), cam:
        found = cam(input_tensor=images, targets=[ClassifierOutputTarget(label) for label in classes])
    model.zero_grad(set_to_none=True)
    if not np.isfinite(found).all():
        raise ValueError('Grad-CAM gives NaN or infinite values: look at the weights and images')
    return found


def feature_maps(model: BaseModel, images: Tensor, *, depths: int = 4) -> dict[str, np.ndarray]:
    """Root mean square over the channels of blocks spread over the depth, (B, h, w) by block.

    Args:
        model: In eval mode.
        images: As the model's preprocessor gives them, (B, 3, H, W).
        depths: How many blocks; the last one is among them.

    Raises:
        ValueError: A feature is not finite.
    """
    blocks, found = blocks_of(model), {}
    places = np.linspace(0, len(blocks) - 1, min(depths, len(blocks)) + 1).round().astype(int)[1:]
    chosen = [list(blocks)[at] for at in sorted(set(places))]
    size = tuple(images.shape[2:])

    def keep(name: str, out: Any) -> None:
        value = as_map(out[0] if isinstance(out, tuple) else out, size)
        found[name] = value.float().square().mean(1).sqrt().cpu().numpy()

    handles = [blocks[name].register_forward_hook(lambda _, args, out, name=name: keep(name, out)) for name in chosen]
    try:
        with torch.no_grad():
            model(images, mode='tensor')
    finally:
        for handle in handles:
            handle.remove()
    if not all(np.isfinite(value).all() for value in found.values()):
        raise ValueError('the features hold NaN or infinite values: look at the weights and images')
    return found


def spread(maps: np.ndarray) -> np.ndarray:
    """Over how much of its area a map is spread: (sum a)^2 / (positions x sum a^2), 1 where it is even.

    Args:
        maps: (B, h, w), not negative.

    Returns:
        (B,); 0 where a map is zero.
    """
    flat = maps.reshape(len(maps), -1).astype(np.float64)
    squares = flat.shape[1] * np.square(flat).sum(1)
    return np.divide(np.square(flat.sum(1)), squares, out=np.zeros(len(flat)), where=squares > 0)


def pick_classes(samples: Samples, number: int, *, rank: int = 0) -> list[int]:
    """What to ask of each of so many images: its class, or that of its largest object or region; 0 where it has none.

    Args:
        samples: Of a batch.
        number: How many images.
        rank: How many larger ones to pass over where there are so many: of a label image the background.
    """
    chosen: list[int] = []
    for owner in range(number):
        at = [i for i in range(len(samples.labels)) if samples.owners[i] == owner]
        if samples.masks is not None:
            at.sort(key=lambda i: -float(samples.masks[i].sum()))
        chosen.append(int(samples.labels[at[min(rank, len(at) - 1)]]) if at else 0)
    return chosen
