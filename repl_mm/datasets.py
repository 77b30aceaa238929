"""Data sets that the host libraries lack."""

from typing import Literal

import numpy as np
from mmpretrain.datasets import BaseDataset
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from repl_mm.registry import DATASETS


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
        digits = load_digits()
        images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None].repeat(3, axis=-1)
        train, val = train_test_split(np.arange(len(images)), test_size=0.2, stratify=digits.target, random_state=0)
        return [
            dict(img=images[i], gt_label=int(digits.target[i]), sample_idx=int(i))
            for i in (train if self.split == 'train' else val)
        ]
