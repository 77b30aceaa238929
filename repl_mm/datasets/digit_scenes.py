"""Scenes of real handwriting: scikit-learn's digits, scaled, turned and overlapping, on textured backgrounds.

They are written in the formats of COCO and CityScapes, for detection and segmentation that need no download. Train and
val scenes take their digits from disjoint sets of originals. A seed fixes every byte.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pycocotools.mask
from numpy.random import Generator
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

Split = Literal['train', 'val']

SIZES = ((128, 128), (112, 144), (144, 112))  # height, width
EMPTY = 0.03  # share of scenes without any digit
MOST_DIGITS = 5
DIGIT_SIZE = (32, 60)  # pixels that the 8 x 8 original is scaled to
MAX_TURN = 15  # degrees; more would turn a 6 towards a 9
MIN_VISIBLE = 0.7  # share of a digit that later ones may not cover
MIN_CONTRAST = 70  # between a digit and the background below it, of 255
INK = 0.4  # of an original's full intensity: where its strokes end


@dataclass(frozen=True)
class Scene:
    """An image with its ground truth.

    Attributes:
        image: RGB, (H, W, 3) uint8.
        owner: Which digit each pixel shows, (H, W): an index into ``digits``, or -1 for the background.
        digits: The digits of the scene, 0 to 9, in the order in which they were put down.
    """

    image: np.ndarray
    owner: np.ndarray
    digits: tuple[int, ...]


def make_scenes(*, split: Split, number: int, seed: int = 0) -> Iterator[Scene]:
    """Scenes one after the other; the first n of a longer call are those of a call for n."""
    originals, digits = _originals(split)
    for at in range(number):
        # One generator per scene, of its own sequence in each split.
        rng = np.random.default_rng([seed, split == 'val', at])
        yield _make_scene(originals, digits, size=SIZES[at % len(SIZES)], rng=rng)


def _originals(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 8, 8) in 0 to 1 and their digits (N,); the same division as ``repl_mm.Digits`` has."""
    data = load_digits()
    train, val = train_test_split(np.arange(len(data.target)), test_size=0.2, stratify=data.target, random_state=0)
    chosen = {'train': train, 'val': val}[split]
    return data.images[chosen] / 16, data.target[chosen]


def _make_scene(originals: np.ndarray, digits: np.ndarray, *, size: tuple[int, int], rng: Generator) -> Scene:
    image = _background(size, rng)
    owner = np.full(size, -1)
    placed: list[int] = []
    areas: list[int] = []
    for _ in range(0 if rng.random() < EMPTY else rng.integers(1, MOST_DIGITS + 1)):
        chosen = rng.integers(len(originals))
        opacity = _place(originals[chosen], size, rng)
        ink = opacity > 0.5
        still_visible = np.bincount(owner[(owner >= 0) & ~ink], minlength=len(placed))
        if (still_visible < MIN_VISIBLE * np.array(areas)).any():
            continue
        below = image[ink].mean(axis=0)
        image += opacity[..., None] * (_colour(below, rng) - image)
        owner[ink] = len(placed)
        placed.append(int(digits[chosen]))
        areas.append(int(ink.sum()))
    image += rng.normal(scale=4, size=image.shape)
    return Scene(np.clip(np.rint(image), 0, 255).astype(np.uint8), owner, tuple(placed))


def _background(size: tuple[int, int], rng: Generator) -> np.ndarray:
    """A colour with soft noise at three scales and faint stripes, (H, W, 3) in 0 to 255."""
    image = np.broadcast_to(rng.uniform(40, 215, size=3), (*size, 3)).copy()
    for cells, amplitude in ((3, 28), (9, 14), (30, 9)):
        grid = rng.uniform(-amplitude, amplitude, size=(cells, cells, 3))
        image += ndimage.zoom(grid, (size[0] / cells, size[1] / cells, 1), order=1)
    y, x = np.indices(size)
    angle, wavelength = rng.uniform(0, np.pi), rng.uniform(6, 30)
    stripes = np.sin(2 * np.pi / wavelength * (x * np.cos(angle) + y * np.sin(angle)))
    return image + rng.uniform(0, 14) * stripes[..., None]


def _place(original: np.ndarray, size: tuple[int, int], rng: Generator) -> np.ndarray:
    """Opacity of a digit in the scene, (H, W) in 0 to 1: scaled, turned, inside of the image as a whole."""
    scale = rng.uniform(*DIGIT_SIZE) / len(original)
    turn = np.deg2rad(rng.uniform(-MAX_TURN, MAX_TURN))
    half = scale * len(original) / 2
    centre = rng.uniform(half, np.subtract(size, half))
    to_original = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) / scale
    middle = (len(original) - 1) / 2
    intensity = ndimage.affine_transform(
        original, to_original, offset=middle - to_original @ centre, output_shape=size, order=3
    )
    # A soft edge of about one pixel where the strokes end.
    return np.clip((intensity - INK) * scale / 2 + 0.5, 0, 1)


def _colour(below: np.ndarray, rng: Generator) -> np.ndarray:
    """A colour that can be told from the mean one below."""
    while True:
        colour = rng.uniform(0, 255, size=3)
        if abs(colour.mean() - below.mean()) > MIN_CONTRAST:
            return colour


def write_coco(root: Path, scenes: Iterable[Scene], *, split: Split) -> None:
    """Write ``root/{split}/*.jpg`` and ``root/annotations/instances_{split}.json``, as in COCO's detection task.

    Category ids are the digits plus one; boxes and masks are those of the visible pixels.
    """
    folder = root / split
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    folder.mkdir(parents=True, exist_ok=True)
    for image_id, scene in enumerate(scenes, start=1):
        name = f'{image_id:012}.jpg'
        Image.fromarray(scene.image).save(folder / name, quality=92)
        height, width = scene.owner.shape
        images.append(dict(id=image_id, file_name=name, height=height, width=width))
        for at, digit in enumerate(scene.digits):
            instance = dict(id=len(annotations) + 1, image_id=image_id, category_id=digit + 1, iscrowd=0)
            annotations.append(instance | _outline(scene.owner == at))
    categories = [dict(id=digit + 1, name=str(digit), supercategory='digit') for digit in range(10)]
    path = root / 'annotations' / f'instances_{split}.json'
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))


def _outline(visible: np.ndarray) -> dict:
    """Box, area and mask of an instance in COCO's terms."""
    mask = pycocotools.mask.encode(np.asfortranarray(visible, dtype=np.uint8))
    return dict(
        bbox=pycocotools.mask.toBbox(mask).tolist(),
        area=int(visible.sum()),
        segmentation=dict(size=mask['size'], counts=mask['counts'].decode()),
    )


def write_cityscapes(root: Path, scenes: Iterable[Scene], *, split: Split) -> None:
    """Write the trees ``root/leftImg8bit/{split}`` and ``root/gtFine/{split}``, as in CityScapes, of the one city
    ``digits``.

    Class 0 is the background, a digit's class is the digit plus one.
    """
    folders = [root / kind / split / 'digits' for kind in ('leftImg8bit', 'gtFine')]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    for at, scene in enumerate(scenes):
        name = f'digits_{at:06}_000000'
        Image.fromarray(scene.image).save(folders[0] / f'{name}_leftImg8bit.png', compress_level=1)
        # The background's -1 takes the last place.
        classes = np.array([*(digit + 1 for digit in scene.digits), 0], dtype=np.uint8)
        Image.fromarray(classes[scene.owner]).save(folders[1] / f'{name}_gtFine_labelTrainIds.png')
