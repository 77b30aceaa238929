"""The small images of the papers' classification tables, in the files in which they are published."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torchvision.datasets
from mmpretrain.datasets import BaseDataset
from mmpretrain.datasets.categories import CIFAR10_CATEGORIES, FASHIONMNIST_CATEGORITES

from repl_mm.datasets.checks import as_found, read_idx
from repl_mm.datasets.integrity import SOURCES, missing_part
from repl_mm.engine.errors import explain
from repl_mm.registry import DATASETS


class SmallImages(BaseDataset):
    """Images that fit into memory, which come as (H, W, 3) uint8 arrays in RGB under ``img``.

    Args:
        data_root: The folder that ``tools/prepare_data.py`` looks through.
        split: ``'train'`` or ``'test'``.
        classes: Names of the set's own classes in the order of their labels, where it is another than the published
            one. Images of a class that is not listed are left out: so a network can be scored on a data set that it
            was not trained on.
        **kwargs: Passed on to mmpretrain's ``BaseDataset``, such as ``pipeline``.

    Raises:
        ValueError: Another split, or a file that is missing, damaged or of another format.
    """

    source: ClassVar[str]  # its name in SOURCES
    files: ClassVar[Mapping[str, Sequence[str]]]  # of a split, by their paths below the root

    def __init__(
        self,
        *,
        data_root: str,
        split: Literal['train', 'test'],
        classes: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        if split not in self.files:
            raise ValueError(f"{type(self).__name__} has the splits 'train' and 'test', got {split!r}")
        self.split = split
        super().__init__(ann_file='', data_root=data_root, classes=classes, **kwargs)

    def load_data_list(self) -> list[dict]:
        """All images of the split with their labels."""
        paths = [as_found(Path(self.data_root) / name) for name in self.files[self.split]]
        if missing := [path for path in paths if not path.is_file()]:
            raise ValueError(missing_part(self.source, missing[0]).message)
        title = SOURCES[self.source].title
        with explain(
            f'cannot read {title} in {self.data_root}, see tools/prepare_data.py {self.source}', errors=Exception
        ):
            images, labels = self.read(paths)
            if images.dtype != np.uint8 or len(images) != len(labels) or not len(images):
                raise ValueError(f'{len(images)} images of {images.dtype} and {len(labels)} labels')
            names = [self.METAINFO['classes'][label] for label in labels]
        number = {name: at for at, name in enumerate(self.metainfo['classes'])}
        return [
            dict(img=image, gt_label=number[name]) for image, name in zip(images, names, strict=True) if name in number
        ]

    def read(self, paths: Sequence[Path]) -> tuple[np.ndarray, Sequence[int] | np.ndarray]:
        """Images, (N, H, W, 3) uint8, and labels from 0, of the files of a split."""
        raise NotImplementedError


@DATASETS.register_module()
class CIFAR10(SmallImages):
    """CIFAR-10, the version for Python: 50,000 and 10,000 images of 32 x 32.

    Its files are pickles, which could run code: torchvision reads them, if their digests are the published ones.
    """

    METAINFO: ClassVar = {'classes': CIFAR10_CATEGORIES}
    source = 'cifar10'
    files: ClassVar = {
        split: [f'{torchvision.datasets.CIFAR10.base_folder}/{name}' for name, _ in listed]
        for split, listed in (
            ('train', torchvision.datasets.CIFAR10.train_list),
            ('test', torchvision.datasets.CIFAR10.test_list),
        )
    }

    def read(self, paths: Sequence[Path]) -> tuple[np.ndarray, Sequence[int] | np.ndarray]:
        published = torchvision.datasets.CIFAR10(self.data_root, train=self.split == 'train')
        return published.data, published.targets


@DATASETS.register_module()
class SVHN(SmallImages):
    """Street View House Numbers, cropped digits: 73,257 and 26,032 images of 32 x 32."""

    METAINFO: ClassVar = {'classes': tuple(map(str, range(10)))}
    source = 'svhn'
    files: ClassVar = {split: [f'{split}_32x32.mat'] for split in ('train', 'test')}

    def read(self, paths: Sequence[Path]) -> tuple[np.ndarray, Sequence[int] | np.ndarray]:
        from scipy.io import loadmat  # of an extra, and this module is imported for every data set

        content = loadmat(paths[0])
        images, labels = content['X'], content['y'].ravel()  # (H, W, 3, N), with 10 for the digit 0
        return np.ascontiguousarray(images.transpose(3, 0, 1, 2)), labels.astype(int) % 10


@DATASETS.register_module()
class STL10(SmallImages):
    """STL-10: 5,000 and 8,000 labelled images of 96 x 96."""

    METAINFO: ClassVar = {
        'classes': ('airplane', 'bird', 'car', 'cat', 'deer', 'dog', 'horse', 'monkey', 'ship', 'truck')
    }
    source = 'stl10'
    files: ClassVar = {
        split: [f'stl10_binary/{split}_X.bin', f'stl10_binary/{split}_y.bin'] for split in ('train', 'test')
    }

    def read(self, paths: Sequence[Path]) -> tuple[np.ndarray, Sequence[int] | np.ndarray]:
        # Column by column.
        images = np.fromfile(paths[0], dtype=np.uint8).reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1)
        labels = np.fromfile(paths[1], dtype=np.uint8).astype(int)  # from 1
        if labels.min(initial=1) < 1:
            raise ValueError(f'{paths[1]} holds the label 0')
        return np.ascontiguousarray(images), labels - 1


@DATASETS.register_module()
class FashionMNIST(SmallImages):
    """Fashion-MNIST: 60,000 and 10,000 grey images of 28 x 28, gzipped as they are published, or unpacked."""

    METAINFO: ClassVar = {'classes': FASHIONMNIST_CATEGORITES}
    source = 'fashion-mnist'
    files: ClassVar = {
        split: [f'{name}-images-idx3-ubyte.gz', f'{name}-labels-idx1-ubyte.gz']
        for split, name in (('train', 'train'), ('test', 't10k'))
    }

    def read(self, paths: Sequence[Path]) -> tuple[np.ndarray, Sequence[int] | np.ndarray]:
        images, labels = (read_idx(path) for path in paths)
        return np.repeat(images[..., None], 3, axis=-1), labels.astype(int)
