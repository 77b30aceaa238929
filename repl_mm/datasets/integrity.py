"""Is a published data set complete and sound on disk?"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from repl_mm.datasets.checks import (
    Problem,
    as_found,
    coco_annotations,
    group,
    is_truncated,
    label_file_problem,
    label_problem,
    read_idx,
)
from repl_mm.datasets.digests import cifar10_digests, has_digest, stl10_digests, svhn_digests, wikitext2_digests

Track = Callable[[Sequence[Path]], Iterable[Path]]

# How many images the published sets have.
COUNTS = dict(
    coco=dict(train=118_287, val=5_000),
    cityscapes=dict(train=2_975, val=500),
    imagenet=dict(train=1_281_167, val=50_000),
)
IMAGENET_CLASSES = 1000
CITYSCAPES_CLASSES = 19
# The axes of its files.
FASHION_MNIST = {
    'train-images-idx3-ubyte.gz': (60_000, 28, 28),
    'train-labels-idx1-ubyte.gz': (60_000,),
    't10k-images-idx3-ubyte.gz': (10_000, 28, 28),
    't10k-labels-idx1-ubyte.gz': (10_000,),
}
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif')  # as mmpretrain's ImageNet reads them


def _truncated(paths: Iterable[Path]) -> list[Problem]:
    cut = [path for path in paths if is_truncated(path)]
    return group(cut, f'{len(cut):,} image file(s) break off before their end', todo='get them again', shown=20)


def _miscount(path: Path, number: int, *, expected: int, name: str) -> list[Problem]:
    if number == expected:
        return []
    return [Problem(f'{path} has {number:,} images instead of {expected:,}: get {_origin(name)}')]


def _origin(name: str) -> str:
    return f'{SOURCES[name].title} from {SOURCES[name].url}'


# --- COCO ---


def _check_coco(root: Path, track: Track) -> list[Problem]:
    problems = []
    for split, expected in COUNTS['coco'].items():
        folder, path = root / f'{split}2017', root / 'annotations' / f'instances_{split}2017.json'
        if path.is_file():
            try:
                annotations = json.loads(path.read_bytes())
            except ValueError as error:
                problems.append(Problem(f'{path} is no whole JSON file, {error}: get it again'))
            else:
                problems += coco_annotations(annotations, source=str(path), images=folder if folder.is_dir() else None)
                number = len(annotations['images']) if 'images' in annotations else 0
                problems += _miscount(path, number, expected=expected, name='coco')
        if folder.is_dir():
            problems += _truncated(track(sorted(folder.iterdir())))
    return problems


# --- CityScapes ---


def _check_cityscapes(root: Path, track: Track) -> list[Problem]:
    problems = []
    for split, expected in COUNTS['cityscapes'].items():
        folder = root / 'leftImg8bit' / split
        if not folder.is_dir():
            continue
        images = sorted(folder.glob('*/*_leftImg8bit.png'))
        labels = [_cityscapes_label(image, root / 'gtFine' / split) for image in images]
        problems += _miscount(folder, len(images), expected=expected, name='cityscapes')
        problems += _truncated(images)
        problems += _missing_labels(labels)
        label_of = dict(zip(images, labels, strict=True))
        found = (_label_file_problem(image, label_of[image]) for image in track(images) if label_of[image].is_file())
        bad = [problem for problem in found if problem]
        todo = f'make them again, after getting {_origin("cityscapes")}'
        problems += group(bad, f'{len(bad):,} label file(s) are unusable', todo=todo, shown=20)
    return problems


def _cityscapes_label(image: Path, folder: Path) -> Path:
    return folder / image.parent.name / image.name.replace('_leftImg8bit.png', '_gtFine_labelTrainIds.png')


def _missing_labels(labels: Sequence[Path]) -> list[Problem]:
    missing = [path for path in labels if not path.is_file()]
    todo = (
        f'get gtFine of {_origin("cityscapes")}, pip install cityscapesscripts, '
        'and call tools/prepare_data.py cityscapes ROOT --make-train-ids'
    )
    return group(missing, f'{len(missing):,} of {len(labels):,} label files are missing', todo=todo)


def _label_file_problem(image: Path, label: Path) -> str | None:
    if is_truncated(label):
        return f'{label} breaks off before its end'
    try:
        with Image.open(image) as opened:
            width, height = opened.size  # from its header
        with Image.open(label) as opened:
            labels = np.asarray(opened)
        problem = label_file_problem(label)
    except (OSError, SyntaxError) as error:  # Pillow raises both on broken PNGs
        return f'{label} or its image cannot be read, {error}'
    problem = problem or label_problem(labels, shape=(height, width), classes=CITYSCAPES_CLASSES)
    return problem and f'{label} {problem}'


# --- ImageNet ---


def _check_imagenet(root: Path, track: Track) -> list[Problem]:
    problems, classes = [], {}
    for split, expected in COUNTS['imagenet'].items():
        folder, listing = root / split, root / 'meta' / f'{split}.txt'
        if not folder.is_dir():
            continue
        names = _image_names(folder)
        # As mmpretrain chooses.
        if listing.is_file():
            listed, found = _read_listing(listing, set(names))
            names = [name for name in names if name in listed]
        else:
            classes[split], found = _class_folders(folder, names)
        problems += found
        problems += _miscount(folder, len(names), expected=expected, name='imagenet')
        problems += _truncated(track([folder / name for name in names]))
    if len(classes) == 2 and classes['train'] != classes['val']:
        differ = sorted(classes['train'] ^ classes['val'])
        text = f'{len(differ)} class folder(s) are in only one of {root / "train"} and {root / "val"}'
        problems += group(differ, text, todo='mmpretrain numbers the sorted folders; make them the same')
    return problems


def _image_names(folder: Path) -> list[str]:
    """The images below a folder, relative to it, sorted."""
    names = []
    for parent, _, files in os.walk(folder, followlinks=True):
        within = Path(parent).relative_to(folder)
        names += [str(within / name) for name in files if name.lower().endswith(IMAGE_SUFFIXES)]
    return sorted(names)


def _read_listing(path: Path, there: set[str]) -> tuple[set[str], list[Problem]]:
    """The names that an annotation file of mmpretrain lists, and its problems; a line is a name and a label."""
    rows = [line.strip().rsplit(' ', 1) for line in path.read_text().splitlines()]
    labels = {str(label) for label in range(IMAGENET_CLASSES)}
    bad = [' '.join(row) for row in rows if len(row) != 2 or row[1] not in labels]
    missing = [row[0] for row in rows if row[0] not in there]
    text = f'{path} has {len(bad):,} line(s) that are not a name and a label from 0 to {IMAGENET_CLASSES - 1}'
    return {row[0] for row in rows}, [
        *group(bad, text, todo='correct them'),
        *group(missing, f'{path} lists {len(missing):,} image(s) that are missing', todo='get them again', shown=20),
    ]


def _class_folders(folder: Path, names: Sequence[str]) -> tuple[set[str], list[Problem]]:
    """The folders that stand for classes, and their problems."""
    classes = {entry.name for entry in os.scandir(folder) if entry.is_dir()}
    empty = sorted(classes - {name.split(os.sep)[0] for name in names})
    problems = group(empty, f'{folder} has {len(empty)} empty class folder(s)', todo='get their images again')
    if len(classes) != IMAGENET_CLASSES:
        todo = f'sort the images into one folder per class, or list them with labels in meta/{folder.name}.txt'
        problems.append(Problem(f'{folder} has {len(classes)} of {IMAGENET_CLASSES} class folders: {todo}'))
    return classes, problems


# --- Sets whose files have published digests ---


def _check_digests(root: Path, track: Track, *, name: str, digests: Callable[[], Mapping[str, str]]) -> list[Problem]:
    known, there = digests(), [root / part for part in digests() if (root / part).is_file()]
    wrong = [path for path in track(there) if not has_digest(path, known[path.relative_to(root).as_posix()])]
    text = f'{len(wrong)} file(s) are damaged or of another version, by their digests'
    return group(wrong, text, todo=f'get {_origin(name)} again', shown=20)


# --- Fashion-MNIST ---
# Its gzipped files are found in several compressions; gzip has a check sum of the content.


def _check_fashion_mnist(root: Path, track: Track) -> list[Problem]:
    bad = []
    for path in track([path for path in (as_found(root / part) for part in FASHION_MNIST) if path.is_file()]):
        expected = FASHION_MNIST[f'{path.name.removesuffix(".gz")}.gz']
        try:
            shape = read_idx(path).shape
        except ValueError as error:
            bad.append(str(error))
        else:
            bad += [f'{path} holds {shape} instead of {expected}'] * (shape != expected)
    text = f'{len(bad)} file(s) are damaged or of another data set'
    return group(bad, text, todo=f'get {_origin("fashion-mnist")} again', shown=20)


# --- All ---


@dataclass(frozen=True)
class Source:
    """A published data set.

    Attributes:
        title: Its name.
        url: Where it is published.
        parts: Gives the folders and files that it consists of, relative to its root, as the host libraries expect.
        check: Finds the problems of the parts that are there.
    """

    title: str
    url: str
    parts: Callable[[], Iterable[str]]
    check: Callable[[Path, Track], list[Problem]]


SOURCES = dict(
    coco=Source(
        'COCO 2017',
        'https://cocodataset.org',
        lambda: (
            'train2017',
            'val2017',
            'annotations/instances_train2017.json',
            'annotations/instances_val2017.json',
        ),
        _check_coco,
    ),
    cityscapes=Source(
        'CityScapes',
        'https://www.cityscapes-dataset.com',
        lambda: ('leftImg8bit/train', 'leftImg8bit/val', 'gtFine/train', 'gtFine/val'),
        _check_cityscapes,
    ),
    imagenet=Source('ImageNet-1k', 'https://www.image-net.org', lambda: ('train', 'val'), _check_imagenet),
    cifar10=Source(
        'CIFAR-10',
        'https://www.cs.toronto.edu/~kriz/cifar.html',
        cifar10_digests,
        partial(_check_digests, name='cifar10', digests=cifar10_digests),
    ),
    svhn=Source(
        'SVHN',
        'http://ufldl.stanford.edu/housenumbers/',
        svhn_digests,
        partial(_check_digests, name='svhn', digests=svhn_digests),
    ),
    stl10=Source(
        'STL-10',
        'https://cs.stanford.edu/~acoates/stl10/',
        stl10_digests,
        partial(_check_digests, name='stl10', digests=stl10_digests),
    ),
    **{
        'fashion-mnist': Source(
            'Fashion-MNIST',
            'https://github.com/zalandoresearch/fashion-mnist',
            lambda: FASHION_MNIST,
            _check_fashion_mnist,
        ),
        'wikitext2': Source(
            'WikiText-2',
            'https://wikitext.smerity.com',
            wikitext2_digests,
            partial(_check_digests, name='wikitext2', digests=wikitext2_digests),
        ),
    },
)


def contents(name: str, root: Path) -> dict[str, int]:
    """How many files there are at each part of a data set."""
    return {part: _number_of_files(as_found(root / part)) for part in SOURCES[name].parts()}


def _number_of_files(path: Path) -> int:
    return 1 if path.is_file() else sum(len(files) for _, _, files in os.walk(path, followlinks=True))


def check(name: str, root: Path, *, track: Track = iter) -> list[Problem]:
    """What is wrong with a published data set on disk; nothing if it is complete and sound. Reads every file.

    Args:
        name: One of ``SOURCES``.
        root: The folder of its parts.
        track: Wraps the files of a long walk, to show progress.

    Raises:
        ValueError: Another name, or a root that is no folder.
        OSError: A file cannot be read.
    """
    if name not in SOURCES:
        raise ValueError(f'there is no data set {name!r}: give one of {", ".join(SOURCES)}')
    if not root.is_dir():
        parts = ', '.join([*SOURCES[name].parts()][:2])
        raise ValueError(f'{root} is no folder: give the one that holds {parts}, ..., or get {_origin(name)}')
    missing = [root / part for part in SOURCES[name].parts() if not as_found(root / part).exists()]
    return [missing_part(name, path) for path in missing] + SOURCES[name].check(root, track)


def missing_part(name: str, path: Path) -> Problem:
    """What to say of a part of a data set that is not there."""
    return Problem(f'{path} is missing: get {_origin(name)} and unpack it there')
