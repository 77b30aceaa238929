"""What trained detectors and segmentors see: images, ground truth and predictions side by side."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.runner import load_checkpoint
from mmengine.structures import BaseDataElement

from repl_mm.analysis.plot import to_png
from repl_mm.analysis.runs import find_config, name_runs
from repl_mm.visualization import class_patches, draw

COLUMN = 2.7  # inches
GAP = 0.02  # of a picture


@dataclass(frozen=True)
class Predictions:
    """What one model says of some samples of its test set.

    Attributes:
        samples: One data sample per image, with ground truth and prediction in the pixels of the image file.
        scope: The library.
        meta: Classes and colours of the data set.
    """

    samples: tuple[BaseDataElement, ...]
    scope: str
    meta: Mapping[str, Any]


def predict(folder: Path, *, number: int) -> Predictions:
    """Apply a finished run's last checkpoint to ``number`` images spread evenly over its test set.

    Args:
        folder: Work directory of a run of mmdet or mmseg.

    Raises:
        ValueError: The folder holds no config or no checkpoint, or the run belongs to another task.
    """
    pointer = folder / 'last_checkpoint'
    if not pointer.is_file():
        raise ValueError(f'{folder} holds no last_checkpoint: give the work directory of a finished run')
    config = Config.fromfile(find_config(folder))
    if config.default_scope not in ('mmdet', 'mmseg'):
        raise ValueError(f'{folder} is a run of {config.default_scope}: give runs of mmdet or mmseg')
    with DefaultScope.overwrite_default_scope(config.default_scope):
        dataset = DATASETS.build(config.test_dataloader.dataset)
        model = MODELS.build(config.model)
    load_checkpoint(model, pointer.read_text().strip(), map_location='cpu', logger='silent')
    model.eval()
    chosen = np.linspace(0, len(dataset) - 1, min(number, len(dataset))).round().astype(int)
    with torch.no_grad():
        samples = [model.test_step(pseudo_collate([dataset[at]]))[0] for at in chosen]
    return Predictions(tuple(samples), config.default_scope, dataset.metainfo)


def as_grid(folders: Sequence[Path], *, number: int, threshold: float) -> bytes:
    """A PNG file with one row per image: the image, its ground truth, and what each run predicts.

    Args:
        folders: Work directories of runs over the same test set.
        number: Rows.
        threshold: Least score of the boxes that are drawn.

    Raises:
        ValueError: As :func:`predict`, or the runs were tested on other images.
    """
    runs = [predict(folder, number=number) for folder in folders]
    rows = list(zip(*(run.samples for run in runs), strict=True))
    titles = ['Image', 'Ground truth', *name_runs(folders)]
    pictures = []
    for samples in rows:
        if len({sample.img_path for sample in samples}) > 1:
            raise ValueError('the runs were tested on different images: give runs over one data set')
        pictures.append([*_pictures(samples, runs, threshold=threshold)])
    # All pictures of a row have one shape, so nothing is between them but the gap.
    heights = [COLUMN * line[0].shape[0] / line[0].shape[1] for line in pictures]
    figure = Figure(figsize=(COLUMN * len(titles), sum(heights)))
    grid = figure.subplots(
        len(rows), len(titles), squeeze=False,
        gridspec_kw=dict(height_ratios=heights, left=0, right=1, bottom=0, top=1, wspace=GAP, hspace=GAP),
    )  # fmt: skip
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title)
    for line, shown in zip(grid, pictures, strict=True):
        for axes, picture in zip(line, shown, strict=True):
            axes.imshow(picture)
            axes.set_aspect('auto')
            axes.set_axis_off()
    entries = class_patches(_labels(rows, runs[0].scope, threshold=threshold), runs[0].meta)
    figure.legend(handles=entries, loc='upper center', bbox_to_anchor=(0.5, -0.01), ncols=6, frameon=False)
    return to_png(figure, dpi=160, bbox_inches='tight', pad_inches=0.08)


def _labels(rows: Sequence[Sequence[BaseDataElement]], scope: str, *, threshold: float) -> list[int]:
    """The classes that are seen in a grid, as numbers."""
    labels: set[int] = set()
    for sample in chain.from_iterable(rows):
        if scope == 'mmseg':
            maps = (sample.gt_sem_seg.data, sample.pred_sem_seg.data)
        else:
            boxes = sample.pred_instances
            maps = (torch.as_tensor(sample.gt_instances.labels), boxes.labels[boxes.scores > threshold])
        labels.update(*(m.unique().tolist() for m in maps))
    return sorted(labels)


def _pictures(
    samples: Sequence[BaseDataElement], runs: Sequence[Predictions], *, threshold: float
) -> Iterator[np.ndarray]:
    pixels = mmcv.imread(samples[0].img_path)
    yield pixels[..., ::-1]
    # Nearly opaque: what is below a map must not change how its colours look.
    style: dict[str, Any] = dict(scope=runs[0].scope, meta=runs[0].meta, opacity=0.9, names=False)
    yield draw(pixels, samples[0], truth=True, **style)
    for sample in samples:
        yield draw(pixels, sample, truth=False, score_thr=threshold, **style)
