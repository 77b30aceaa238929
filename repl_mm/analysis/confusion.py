"""Which class is taken for which, counted from predictions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix

from repl_mm.analysis.plot import to_png
from repl_mm.analysis.tables import Table
from repl_mm.engine.errors import printable

Prediction = Mapping[str, Any]
BACKGROUND = 'background'


def count_images(predictions: Sequence[Prediction], classes: int) -> np.ndarray:
    """Count the images of a classifier.

    Args:
        predictions: Of each image its ``gt_label`` and ``pred_label``, both (1,).
        classes: How many there are.

    Returns:
        Counts (classes, classes): the row is the true class, the column the predicted one.

    Raises:
        ValueError: An image has no label, or several.
    """
    labels = [[np.ravel(sample.get(key, ())) for key in ('gt_label', 'pred_label')] for sample in predictions]
    if any(len(label) != 1 for pair in labels for label in pair):
        raise ValueError('a confusion matrix is of images with one label each: score these with eval_metric.py')
    truth, found = np.concatenate(labels, axis=1)
    return confusion_matrix(truth, found, labels=range(classes))


def count_pixels(predictions: Sequence[Prediction], classes: int) -> np.ndarray:
    """Count the pixels of a segmenter; as :func:`count_images`, of maps ``gt_sem_seg`` and ``pred_sem_seg``.

    Pixels whose label is no class, such as 255, do not count.
    """
    counts = np.zeros((classes, classes), dtype=np.int64)
    for sample in predictions:
        if 'gt_sem_seg' not in sample:
            raise ValueError('the predictions hold no ground truth: let the test pipeline load annotations')
        truth, found = (np.asarray(sample[key]['data'])[0].astype(np.int64) for key in ('gt_sem_seg', 'pred_sem_seg'))
        known = truth < classes
        # scikit-learn's function sorts, which takes seconds for an image of CityScapes.
        counts += np.bincount(classes * truth[known] + found[known], minlength=classes**2).reshape(classes, classes)
    return counts


def count_objects(
    predictions: Sequence[Prediction],
    truth: Mapping[Any, Sequence[Mapping[str, Any]]],
    classes: int,
    *,
    iou_thr: float = 0.5,
    score_thr: float = 0.3,
) -> np.ndarray:
    """Count the objects of a detector.

    The best box first, each takes the object that it overlaps most and that no better box has taken, whatever the
    classes of the two.

    Args:
        predictions: Of each image its ``img_id`` and ``pred_instances``, in the pixels of the file.
        truth: The objects of an image by its id, in mmdet's form: ``bbox`` (x1, y1, x2, y2), ``bbox_label``,
            ``ignore_flag``.
        classes: How many there are.
        iou_thr: Least overlap of a box and its object.
        score_thr: Least score of a box that counts.

    Returns:
        Counts (classes + 1, classes + 1), as :func:`count_images`. The last row are boxes without an object, the last
        column objects without a box. A box in a region that is to be ignored does not count.
    """
    from mmdet.structures.bbox import bbox_overlaps  # only a detector's predictions need it

    counts = np.zeros((classes + 1, classes + 1), dtype=np.int64)
    for sample in predictions:
        boxes = sample['pred_instances']
        order = boxes['scores'].argsort(descending=True, stable=True)
        order = order[boxes['scores'][order] >= score_thr]
        found, labels = boxes['bboxes'][order].float(), boxes['labels'][order].tolist()
        objects = [(o['bbox_label'], o['bbox']) for o in truth[sample['img_id']] if not o.get('ignore_flag')]
        ignored = [o['bbox'] for o in truth[sample['img_id']] if o.get('ignore_flag')]
        overlaps = bbox_overlaps(found, torch.tensor([box for _, box in objects]).reshape(-1, 4).float())
        is_ignored = bbox_overlaps(found, torch.tensor(ignored).reshape(-1, 4).float(), mode='iof') >= iou_thr
        free = set(range(len(objects)))
        for at, label in enumerate(labels):
            best = max(free, key=overlaps[at].__getitem__, default=None)
            if best is not None and overlaps[at, best] >= iou_thr:
                free.remove(best)
                counts[objects[best][0], label] += 1
            elif not is_ignored[at].any():
                counts[classes, label] += 1
        for missed in free:
            counts[objects[missed][0], classes] += 1
    return counts


def as_table(counts: np.ndarray, names: Sequence[str]) -> Table:
    """The counts, a row for each true class."""
    rows = [[name, *map(str, row)] for name, row in zip(names, counts.tolist(), strict=True)]
    return Table(['true \\ predicted', *names], 'l' + 'r' * len(names), rows)


def most_confused(counts: np.ndarray, names: Sequence[str], *, number: int = 10) -> Table:
    """The pairs of classes that are taken for each other most often, with the share of the true class."""
    wrong = counts * (1 - np.eye(len(counts), dtype=np.int64))
    pairs = [np.unravel_index(at, wrong.shape) for at in np.argsort(-wrong, axis=None, kind='stable')[:number]]
    rows = [
        [names[i], names[j], f'{wrong[i, j]:,}', f'{100 * wrong[i, j] / counts[i].sum():.1f}']
        for i, j in pairs
        if wrong[i, j]
    ]
    return Table(['true', 'taken for', 'how often', '% of the true'], 'llrr', rows, title='most often confused')


@rc_context({'text.parse_math': False})  # names may hold dollar signs
def as_png(counts: np.ndarray, names: Sequence[str], *, title: str) -> bytes:
    """A picture of the counts in per cent of each row, which is a true class; a PNG file."""
    share = 100 * counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    few = len(names) <= 20
    figure = Figure(figsize=(max(5, 0.45 * len(names) + 3),) * 2 if few else (14, 14), layout='constrained')
    axes = figure.subplots()
    display = ConfusionMatrixDisplay(share, display_labels=[printable(name) for name in names])
    display.plot(ax=axes, include_values=few, values_format='.0f', cmap='Blues', colorbar=False, xticks_rotation=90)
    display.im_.set_clim(0, 100)
    axes.tick_params(labelsize=10 if few else 7)
    axes.set(title=f'{printable(title)}: % of each true class', xlabel='predicted', ylabel='true')
    return to_png(figure, dpi=120)
