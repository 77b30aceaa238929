"""What trained detectors and segmentors see: images, ground truth and predictions side by side."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The seams come before the host libraries.
import repl_mm.compat  # noqa: F401

# isort: split
import mmcv
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.runner import load_checkpoint
from mmengine.structures import BaseDataElement

from repl_mm.analysis.runs import find_config, name_runs


@dataclass(frozen=True)
class Predictions:
    """What one model says of some samples of its test set.

    Attributes:
        samples: One data sample per image, with ground truth and prediction in the pixels of the image file.
        meta: Classes and colours of the data set.
    """

    samples: tuple[BaseDataElement, ...]
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
    return Predictions(tuple(samples), dataset.metainfo)


def as_grid(folders: Sequence[Path], *, number: int, threshold: float) -> bytes:
    """A PNG file with one row per image: the image, its ground truth, and what each run predicts.

    Args:
        folders: Work directories of runs over the same test set.
        number: Rows.
        threshold: Least score of the boxes that are drawn.
    """
    runs = [predict(folder, number=number) for folder in folders]
    rows = list(zip(*(run.samples for run in runs), strict=True))
    titles = ['Image', 'Ground truth', *name_runs(folders)]
    figure = Figure(figsize=(2.7 * len(titles), 2.6 * len(rows) + 0.4), layout='constrained')
    grid = figure.subplots(len(rows), len(titles), squeeze=False)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title)
    for line, samples in zip(grid, rows, strict=True):
        image = mmcv.imread(samples[0].img_path, channel_order='rgb')
        for axes in line:
            axes.imshow(image)
            axes.set_axis_off()
        _draw(line[1], samples[0], kind='gt', meta=runs[0].meta, threshold=threshold)
        for axes, sample in zip(line[2:], samples, strict=True):
            _draw(axes, sample, kind='pred', meta=runs[0].meta, threshold=threshold)
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=100)
    return buffer.getvalue()


def _draw(axes: Axes, sample: BaseDataElement, *, kind: str, meta: Mapping[str, Any], threshold: float) -> None:
    colours = np.array(meta['palette']) / 255
    if f'{kind}_sem_seg' in sample:
        labels = sample.get(f'{kind}_sem_seg').data[0].numpy()
        ignored = labels >= len(colours)
        shown = colours[np.where(ignored, 0, labels)]
        shown[ignored] = 1
        axes.imshow(shown, alpha=0.8)
        return
    instances = sample.get(f'{kind}_instances')
    if 'scores' in instances:
        instances = instances[instances.scores >= threshold]
    boxes = instances.bboxes.tensor if hasattr(instances.bboxes, 'tensor') else instances.bboxes
    for (left, top, right, bottom), label in zip(boxes.tolist(), instances.labels.tolist(), strict=True):
        colour = colours[label]
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, color=colour, linewidth=2))
        ink = 'black' if colour.mean() > 0.5 else 'white'
        axes.text(
            left, top, meta['classes'][label], color=ink, fontsize=9, va='bottom',
            bbox=dict(facecolor=colour, edgecolor='none', pad=1),
        )  # fmt: skip
