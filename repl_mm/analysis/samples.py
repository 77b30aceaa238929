"""The labelled samples of a batch: images of a classifier, objects of a detector, regions of a segmentor."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from repl_mm.analysis.features import as_map, mean_over_positions

IGNORED = 255


@dataclass(frozen=True)
class Samples:
    """The n labelled samples of a batch.

    Attributes:
        labels: Class of each, (n,).
        owners: Number of its image in the batch, (n,).
        masks: Where it lies in the images of the batch, (n, H, W) of 0 and 1; None where it is the whole image.
    """

    labels: Tensor
    owners: Tensor
    masks: Tensor | None

    def pool(self, out: Tensor, size: tuple[int, int]) -> Tensor:
        """Features of the samples, (n, C): the mean of a block's output where each sample lies."""
        if self.masks is None:
            return mean_over_positions(out)[self.owners]
        maps = as_map(out, size)
        weights = F.adaptive_avg_pool2d(self.masks.to(maps).unsqueeze(1), maps.shape[2:]).flatten(1)
        weights = weights / weights.sum(1, keepdim=True).clamp_min(1e-12)
        return torch.einsum('np,ncp->nc', weights, maps.flatten(2)[self.owners])


def find_samples(data_samples: Sequence[Any], images: Tensor) -> Samples:
    """The samples that a batch's ground truth tells of; ``images`` is the batch (B, 3, H, W)."""
    labels, owners, masks = [], [], []
    for owner, sample in enumerate(data_samples):
        if 'gt_label' in sample:
            labels.append(int(sample.gt_label.flatten()[0]))
            owners.append(owner)
            continue
        found = _objects(sample, images) if 'gt_instances' in sample else _regions(sample, images)
        for label, mask in found:
            labels.append(label)
            owners.append(owner)
            masks.append(mask)
    return Samples(torch.tensor(labels), torch.tensor(owners).long(), torch.stack(masks) if masks else None)


def _objects(sample: Any, images: Tensor) -> list[tuple[int, Tensor]]:
    """Label and box of each object, drawn at the size of the images."""
    instances, found = sample.gt_instances, []
    boxes = getattr(instances.bboxes, 'tensor', instances.bboxes)
    # A test pipeline loads boxes behind its resizing: they are then in the pixels of the file.
    late = any(box > limit for row in boxes for box, limit in zip(row[2:], sample.img_shape[1::-1], strict=True))
    scale = torch.tensor(sample.get('scale_factor', (1.0, 1.0)) if late else (1.0, 1.0)).repeat(2)
    for label, box in zip(instances.labels, boxes.cpu() * scale, strict=True):
        left, top, right, bottom = (int(value) for value in box.round())
        mask = torch.zeros(images.shape[2:])
        mask[max(top, 0) : max(bottom, top + 1), max(left, 0) : max(right, left + 1)] = 1
        if mask.any():
            found.append((int(label), mask))
    return found


def _regions(sample: Any, images: Tensor) -> list[tuple[int, Tensor]]:
    """Each class of a label image, and where it is; resized as the image was, and padded below and to the right."""
    height, width = sample.img_shape[:2]
    labels = F.interpolate(sample.gt_sem_seg.data[None].float().cpu(), (height, width))[0, 0].long()
    rows, columns = (max(0, size - own) for size, own in zip(images.shape[2:], (height, width), strict=True))
    labels = F.pad(labels, (0, columns, 0, rows), value=IGNORED)[: images.size(2), : images.size(3)]
    return [(int(label), (labels == label).float()) for label in labels.unique() if label != IGNORED]
