"""Pictures of samples with their ground truth or predictions, drawn by the host libraries' visualizers."""

import io
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.patches import Patch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import get_box_tensor
from mmdet.visualization import DetLocalVisualizer
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from mmpretrain.visualization import UniversalVisualizer
from mmseg.structures import SegDataSample
from mmseg.visualization import SegLocalVisualizer
from PIL import Image

SHORT_SIDE, LONG_SIDE = 480, 4096  # pixels: smaller pictures are enlarged to the first, but not beyond the second


class BoxVisualizer(DetLocalVisualizer):
    """mmdet's, with labels that are large enough to read and that end inside of the picture."""

    def draw_texts(self, texts: str, positions: torch.Tensor, *, font_sizes: int, **kwargs: Any) -> None:
        super().draw_texts(texts, positions, font_sizes=max(font_sizes, 12), **kwargs)
        label, margin = self.ax_save.texts[-1], 4
        (x, y), extent = label.get_position(), label.get_window_extent()
        label.set_position(
            (
                max(min(x, self.width - margin - extent.width), margin),
                max(min(y, self.height - margin - extent.height), margin),
            )
        )


def draw_class(image: np.ndarray, sample: BaseDataElement, meta: Mapping[str, Any], *, truth: bool) -> np.ndarray:
    # Names as long as those of ImageNet's classes are wrapped.
    return UniversalVisualizer().visualize_cls(
        image, sample, classes=meta.get('classes'), draw_gt=truth, draw_pred=not truth, text_cfg=dict(wrap=True)
    )


def draw_boxes(
    image: np.ndarray, sample: DetDataSample, meta: Mapping[str, Any], *, factor: int, truth: bool, score_thr: float
) -> np.ndarray:
    visualizer = BoxVisualizer()
    visualizer.dataset_meta = meta
    kind = 'gt_instances' if truth else 'pred_instances'
    instances = sample.get(kind)
    # Boxes alone, without the masks that some detectors predict.
    shown = InstanceData(bboxes=get_box_tensor(instances.bboxes) * factor, labels=instances.labels)
    if not truth:
        shown.scores = instances.scores
    shown = DetDataSample(**{kind: shown})
    visualizer.add_datasample('', image, shown, draw_gt=truth, draw_pred=not truth, pred_score_thr=score_thr)
    return visualizer.get_image()


def draw_map(
    image: np.ndarray,
    sample: SegDataSample,
    meta: Mapping[str, Any],
    *,
    factor: int,
    truth: bool,
    opacity: float,
    legend: bool,
) -> np.ndarray:
    visualizer = SegLocalVisualizer(alpha=opacity)
    visualizer.dataset_meta = meta
    kind = 'gt_sem_seg' if truth else 'pred_sem_seg'
    labels = enlarge(sample.get(kind).data[0].numpy(), factor)
    shown = SegDataSample(**{kind: PixelData(data=torch.from_numpy(labels)[None])})
    # mmseg writes each name into the map, where it may be cut off.
    visualizer.add_datasample('', image, shown, draw_gt=truth, draw_pred=not truth, with_labels=False)
    if legend:
        handles = class_patches(np.unique(labels), meta)
        visualizer.ax_save.legend(handles=handles, loc='upper right', fontsize=max(9, len(image) // 80))
    return visualizer.get_image()


def class_patches(labels: Iterable[int], meta: Mapping[str, Any]) -> list[Patch]:
    """A legend's entries for the classes among ``labels``."""
    return [
        Patch(color=np.divide(meta['palette'][label], 255), label=meta['classes'][label])
        for label in labels
        if label < len(meta['classes'])
    ]


def enlarge(pixels: np.ndarray, factor: int) -> np.ndarray:
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def draw(
    pixels: np.ndarray,
    sample: BaseDataElement,
    *,
    scope: str,
    meta: Mapping[str, Any],
    truth: bool,
    score_thr: float = 0.0,
    opacity: float = 0.5,
    legend: bool = True,
) -> np.ndarray:
    """A picture of a sample's ground truth or predictions, RGB; small images are enlarged by a whole factor.

    Args:
        pixels: The image as the libraries load it, (H, W, 3 or 1), BGR.
        sample: The ground truth or the predictions, in pixels of the image.
        scope: The library.
        meta: Classes and colours of the data set.
        truth: Whether to draw the ground truth rather than the predictions.
        score_thr: Boxes with a lower score are not drawn.
        opacity: Of a map above its image.
        legend: Whether a map names its classes.
    """
    height, width = pixels.shape[:2]
    image = np.broadcast_to(pixels, (height, width, 3))[..., ::-1].clip(0, 255).astype(np.uint8)
    factor = max(1, min(math.ceil(SHORT_SIDE / min(height, width)), LONG_SIDE // max(height, width)))
    image, sample = enlarge(image, factor), sample.cpu()
    if scope == 'mmpretrain':
        return draw_class(image, sample, meta, truth=truth)
    if scope == 'mmseg':
        return draw_map(image, sample, meta, factor=factor, truth=truth, opacity=opacity, legend=legend)
    return draw_boxes(image, sample, meta, factor=factor, truth=truth, score_thr=score_thr)


def as_png(picture: np.ndarray) -> bytes:
    """An RGB picture as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format='PNG')
    return buffer.getvalue()
