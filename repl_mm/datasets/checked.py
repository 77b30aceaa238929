"""Data sets that the host libraries lack, and theirs with samples that are checked."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import mmdet.datasets
import mmseg.datasets
import numpy as np
from mmdet.datasets.api_wrappers import COCO
from mmengine.logging import print_log
from mmpretrain.datasets import BaseDataset

from repl_mm.datasets.checks import coco_annotations, is_truncated, label_file_problem, label_problem
from repl_mm.registry import DATASETS

PALETTE = [
    (0, 0, 0), (230, 25, 75), (60, 180, 75), (255, 225, 25), (0, 130, 200), (245, 130, 48),
    (145, 30, 180), (70, 240, 240), (240, 50, 230), (210, 245, 60), (250, 190, 212),
]  # fmt: skip


@DATASETS.register_module()
class Digits(BaseDataset):
    """scikit-learn's 1,797 handwritten digits, for runs that need no download.

    The images (8 x 8, grey, 0 to 16) come as 8 x 8 x 3 uint8 arrays under ``img``. A fixed fifth of them, with the same
    share of every digit, is held out.

    Args:
        split: ``'train'`` (1,437 images) or ``'val'`` (360 images).
        **kwargs: Passed on to mmpretrain's ``BaseDataset``, such as ``pipeline``.

    Raises:
        ValueError: Another split.
    """

    METAINFO = {'classes': tuple(map(str, range(10)))}

    def __init__(self, *, split: Literal['train', 'val'], **kwargs) -> None:
        if split not in ('train', 'val'):
            raise ValueError(f"Digits has the splits 'train' and 'val', got {split!r}")
        self.split = split
        super().__init__(ann_file='', **kwargs)

    def load_data_list(self) -> list[dict]:
        """All images of the split with their labels."""
        # Of an extra, and this module is imported for every data set.
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None].repeat(3, axis=-1)
        train, val = train_test_split(np.arange(len(images)), test_size=0.2, stratify=digits.target, random_state=0)
        return [
            dict(img=images[i], gt_label=int(digits.target[i]), sample_idx=int(i))
            for i in (train if self.split == 'train' else val)
        ]


class CheckedMixin:
    """Names the file when a sample cannot be read, where the host libraries name none or go on with a grey image.

    In training the sample is left out with a warning, so that one bad file does not end a long run. Validation and
    test end with an error: a score without the sample would be the score of another data set. Training ends too after
    ``MOST_IN_A_ROW`` bad samples in a row: then it is the pipeline that is wrong.
    """

    MOST_IN_A_ROW: ClassVar = 10
    _in_a_row = 0
    # Of the host's data set, which goes behind it among the bases.
    test_mode: bool
    get_data_info: Callable[[int], dict[str, Any]]

    def prepare_data(self, idx: int) -> Any:
        """The sample after the pipeline, or None for one that training leaves out; mmengine then draws another.

        Raises:
            ValueError: A sample that cannot be read, by the name of its file.
        """
        path = self.get_data_info(idx)['img_path']
        try:
            if Path(path).is_file() and is_truncated(Path(path)):  # not in a bucket or database
                raise ValueError('the file is truncated')
            sample = super().prepare_data(idx)  # type: ignore[misc]
        except Exception as error:  # whatever the transforms of a pipeline may raise
            reason = str(error).strip() or type(error).__name__
            problem = f'cannot read the sample {path}: {reason}. Get the file again, or take it out of the data set'
            self._in_a_row += 1
            if self.test_mode or self._in_a_row >= self.MOST_IN_A_ROW:
                raise ValueError(problem) from error
            print_log(f'{problem}. Training goes on without it', logger='current', level=logging.WARNING)
            return None
        self._in_a_row = 0
        return sample


@DATASETS.register_module()
class CocoDataset(CheckedMixin, mmdet.datasets.CocoDataset):
    """mmdet's ``CocoDataset``, whose annotations are checked when they are loaded and whose bad files are named.

    Raises:
        ValueError: An annotation without its category or image, a class without a category, a missing image.
    """

    def COCOAPI(self, path: str) -> COCO:  # noqa: N802 (the name that the host calls)
        try:
            coco = COCO(path)
        except (ValueError, KeyError, AssertionError) as error:
            raise ValueError(f'{path} is not a COCO annotation file: {error}') from error
        if 'annotations' not in coco.dataset:  # images of a hidden test set
            return coco
        folder = self.data_prefix['img']
        is_local = self.backend_args is None and '://' not in folder
        problems = coco_annotations(
            coco.dataset, source=path, classes=self.metainfo['classes'], images=Path(folder) if is_local else None
        )
        for problem in problems:
            if problem.fatal:
                raise ValueError(problem.message)
            print_log(problem.message, logger='current', level=logging.WARNING)
        return coco


@DATASETS.register_module()
class CityscapesDataset(CheckedMixin, mmseg.datasets.CityscapesDataset):
    """mmseg's ``CityscapesDataset``, whose label images are checked when they are loaded and whose bad files are named.

    mmseg crops a label image silently where its size is not the image's, and a GPU ends on an unknown id with an
    error that names no file.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Behind the loading of labels; a pipeline without it has none to check.
        for at, transform in enumerate(self.pipeline.transforms):
            if isinstance(transform, mmseg.datasets.LoadAnnotations):
                self.pipeline.transforms.insert(at + 1, self._check_labels)
                break

    def _check_labels(self, sample: dict) -> dict:
        path = Path(sample['seg_map_path'])
        problem = label_file_problem(path) if path.is_file() else None  # not in a bucket or database
        problem = problem or label_problem(
            sample['gt_seg_map'],
            shape=sample['ori_shape'],
            classes=len(self.metainfo['classes']),
            ignore=self.ignore_index,
        )
        if problem:
            raise ValueError(f'its label image {path} {problem}')
        return sample


@DATASETS.register_module()
class DigitBoxes(CocoDataset):
    """Digit scenes in COCO's format, as ``tools/make_digit_scenes.py coco`` writes them."""

    METAINFO: ClassVar = {'classes': tuple(map(str, range(10))), 'palette': PALETTE[1:]}


@DATASETS.register_module()
class DigitMaps(CityscapesDataset):
    """Digit scenes in CityScapes' format, as ``tools/make_digit_scenes.py cityscapes`` writes them."""

    METAINFO: ClassVar = {'classes': ('background', *map(str, range(10))), 'palette': PALETTE}
