"""Pictures of samples with their ground truth or predictions, drawn by the host libraries' visualizers."""

import io
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from matplotlib.patches import Patch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import get_box_tensor
from mmdet.visualization import DetLocalVisualizer, get_palette
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from mmpretrain.visualization import UniversalVisualizer
from mmseg.structures import SegDataSample
from mmseg.visualization import SegLocalVisualizer
from PIL import Image

from repl_mm.engine.files import write_atomic

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


class BareBoxVisualizer(DetLocalVisualizer):
    """mmdet's, with boxes alone."""

    def draw_texts(self, *args: Any, **kwargs: Any) -> None:
        """Leave the labels out."""


def draw_class(image: np.ndarray, sample: BaseDataElement, meta: Mapping[str, Any], *, truth: bool) -> np.ndarray:
    # Names as long as those of ImageNet's classes are wrapped.
    return UniversalVisualizer().visualize_cls(
        image, sample, classes=meta.get('classes'), draw_gt=truth, draw_pred=not truth, text_cfg=dict(wrap=True)
    )


def draw_boxes(
    image: np.ndarray,
    sample: DetDataSample,
    meta: Mapping[str, Any],
    *,
    factor: int,
    truth: bool,
    score_thr: float,
    names: bool,
) -> np.ndarray:
    visualizer = BoxVisualizer() if names else BareBoxVisualizer()
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
    names: bool,
) -> np.ndarray:
    visualizer = SegLocalVisualizer(alpha=opacity)
    visualizer.dataset_meta = meta
    kind = 'gt_sem_seg' if truth else 'pred_sem_seg'
    labels = enlarge(sample.get(kind).data[0].numpy(), factor)
    shown = SegDataSample(**{kind: PixelData(data=torch.from_numpy(labels)[None])})
    # mmseg writes each name into the map, where it may be cut off.
    visualizer.add_datasample('', image, shown, draw_gt=truth, draw_pred=not truth, with_labels=False)
    if names:
        handles = class_patches(np.unique(labels), meta)
        visualizer.ax_save.legend(handles=handles, loc='upper right', fontsize=max(9, len(image) // 80))
    return visualizer.get_image()


def class_patches(labels: Iterable[int], meta: Mapping[str, Any]) -> list[Patch]:
    """A legend's entries for the classes among ``labels``."""
    palette = meta.get('palette') or get_palette('random', len(meta['classes']))  # as mmdet does
    return [
        Patch(color=np.divide(palette[label], 255), label=meta['classes'][label])
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
    names: bool = True,
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
        names: Whether the classes of a map or of boxes are named.
    """
    height, width = pixels.shape[:2]
    image = np.broadcast_to(pixels, (height, width, 3))[..., ::-1].clip(0, 255).astype(np.uint8)
    factor = max(1, min(math.ceil(SHORT_SIDE / min(height, width)), LONG_SIDE // max(height, width)))
    image, sample = enlarge(image, factor), sample.cpu()
    if scope == 'mmpretrain':
        return draw_class(image, sample, meta, truth=truth)
    if scope == 'mmseg':
        return draw_map(image, sample, meta, factor=factor, truth=truth, opacity=opacity, names=names)
    return draw_boxes(image, sample, meta, factor=factor, truth=truth, score_thr=score_thr, names=names)


def has_truth(sample: BaseDataElement) -> bool:
    """Whether a sample holds a ground truth that :func:`draw` can draw."""
    return 'gt_label' in sample or 'gt_sem_seg' in sample or 'bboxes' in sample.get('gt_instances', ())


class PictureHook(Hook):
    """Writes a picture of each sample of a test run: its ground truth, where it has one, and the predictions beside.

    Pictures are called as the images' files, in the folders that these lie in below the one that holds all of them, or
    by the number of the sample where the data set is no folder of images.

    Args:
        folder: Where the pictures go.
        score_thr: Boxes with a lower score are not drawn.
    """

    def __init__(self, folder: Path, *, score_thr: float) -> None:
        self.folder, self.score_thr = folder, score_thr

    def before_test_epoch(self, runner: Runner) -> None:
        dataset = runner.test_dataloader.dataset
        places = [
            Path(info['img_path']) for info in map(dataset.get_data_info, range(len(dataset))) if 'img_path' in info
        ]
        digits = len(str(max(len(dataset) - 1, 1)))
        self._number = lambda at: f'{at:0{digits}}.png'
        self._names = name_pictures(places)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence[BaseDataElement] | None = None
    ) -> None:
        first = batch_idx * runner.test_dataloader.batch_size
        for at, sample in enumerate(outputs or ()):
            path = str(Path(sample.get('img_path') or ''))
            if path in self._names:
                pixels, name = mmcv.imread(sample.img_path), self._names[path]
            else:
                # The sampler deals the samples out to the processes in turn.
                name = Path(self._number((first + at) * get_world_size() + get_rank()))
                pixels = _pixels(data_batch['inputs'], at)
            write_atomic(self.folder / name, as_png(self._draw(pixels, sample, runner)))

    def _draw(self, pixels: np.ndarray, sample: BaseDataElement, runner: Runner) -> np.ndarray:
        style = dict(scope=runner.cfg.default_scope, meta=runner.test_dataloader.dataset.metainfo)
        truth = [draw(pixels, sample, truth=True, **style)] if has_truth(sample) else []
        return np.hstack([*truth, draw(pixels, sample, truth=False, score_thr=self.score_thr, **style)])


def name_pictures(images: Iterable[str | Path], *, root: Path | None = None) -> dict[str, Path]:
    """What the picture of each image is called, relative to the folder of the pictures.

    As the image, below ``root``, by default the folder that holds all of them; two that differ in the kind of file
    alone keep that in their names.
    """
    paths = [Path(image) for image in images]
    if root is None:
        root = Path(os.path.commonpath([path.parent for path in paths]) if paths else '.')
    names = {str(path): path.relative_to(root) for path in paths}
    stems = Counter(name.with_suffix('') for name in names.values())
    return {
        path: Path(f'{name.with_suffix("") if stems[name.with_suffix("")] == 1 else name}.png')
        for path, name in names.items()
    }


def _pixels(inputs: Any, at: int) -> np.ndarray:
    """An image (H, W, C) of a batch as the data set gives it; the first of its views where it is augmented."""
    views = inputs if isinstance(inputs[at], torch.Tensor) else inputs[0]
    return views[at].permute(1, 2, 0).cpu().numpy()


def as_png(picture: np.ndarray) -> bytes:
    """An RGB picture as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format='PNG')
    return buffer.getvalue()
