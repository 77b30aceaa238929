"""Is a sample of a data set sound? The host libraries decode cut images and silently skip bad boxes."""

import gzip
import os
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# What a COCO file's entries must have for mmdet to read them.
COCO_KEYS = dict(
    images={'id', 'file_name', 'height', 'width'},
    annotations={'id', 'image_id', 'category_id', 'bbox', 'area'},
    categories={'id', 'name'},
)

TAIL = 64 * 1024
PNG_START, PNG_END = b'\x89PNG\r\n\x1a\n', b'IEND\xaeB`\x82'
JPEG_START, JPEG_SCAN, JPEG_END = b'\xff\xd8', b'\xff\xda', b'\xff\xd9'


@dataclass(frozen=True)
class Problem:
    """Something wrong with a data set.

    Attributes:
        message: One line that names the file and says what to do.
        fatal: Whether training would fail or learn something wrong, rather than do with a little less data.
    """

    message: str
    fatal: bool = True


def group(
    cases: Sequence[Any],
    text: str,
    *,
    todo: str,
    describe: Callable[[Any], object] = str,
    shown: int = 3,
    fatal: bool = True,
) -> list[Problem]:
    """One problem for all cases of a kind, of which it shows a few; none where there is no case."""
    if not cases:
        return []
    examples = [str(describe(case)) for case in cases[:shown]] + ['...'] * (len(cases) > shown)
    return [Problem(f'{text} ({"; ".join(examples)}): {todo}', fatal=fatal)]


# --- Files ---


def is_truncated(path: Path) -> bool:
    """Whether a JPEG or PNG file breaks off before its end; OpenCV decodes such a JPEG to grey without an error.

    Looks at the last 64 KiB: a JPEG needs an end-of-image marker behind its last scan, a PNG its IEND chunk; bytes that
    follow do no harm. Other files, by their suffix or their first bytes, count as whole.

    Raises:
        OSError: The file cannot be read.
    """
    if path.suffix.lower() not in ('.jpg', '.jpeg', '.png'):
        return False
    with path.open('rb') as file:
        head = file.read(len(PNG_START))
        start = max(0, file.seek(0, os.SEEK_END) - TAIL)
        file.seek(start)
        tail = file.read()
    if len(head) < len(PNG_START):
        return True
    # By content: ImageNet has a PNG with the name of a JPEG.
    if head == PNG_START:
        return PNG_END not in tail
    if not head.startswith(JPEG_START):
        return False
    if start == 0:
        tail = tail[_first_scan(tail) :]
    return tail.rfind(JPEG_END) <= tail.rfind(JPEG_SCAN)


def _first_scan(jpeg: bytes) -> int:
    """Where the first scan begins, behind the segments: one of them may hold a thumbnail with an end of its own."""
    at = len(JPEG_START)
    while (at := jpeg.find(b'\xff', at)) >= 0 and at + 4 <= len(jpeg):
        if jpeg.startswith(JPEG_SCAN, at):
            return at
        is_marker = jpeg[at + 1] not in (0x00, 0xFF)
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], 'big') if is_marker else 1
    return len(jpeg)


def as_found(path: Path) -> Path:
    """A file that is published gzipped, or where it lies unpacked."""
    unpacked = path.with_name(path.name.removesuffix('.gz'))
    return unpacked if unpacked.exists() and not path.exists() else path


def read_idx(path: Path) -> np.ndarray:
    """The array of bytes in an IDX file, gzipped or not.

    Raises:
        OSError: The file cannot be read.
        ValueError: Not a whole IDX file of bytes.
    """
    try:
        with gzip.open(path) if path.suffix == '.gz' else path.open('rb') as file:
            content = file.read()
        _, kind, axes = struct.unpack_from('>HBB', content)
        shape = struct.unpack_from(f'>{axes}I', content, 4)
        if kind != 8:  # unsigned bytes
            raise ValueError(f'numbers of kind {kind}')
        return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
    except (EOFError, gzip.BadGzipFile, zlib.error, struct.error, ValueError) as error:
        raise ValueError(f'{path} is not a whole IDX file, {error}') from error


# --- COCO ---


def coco_annotations(
    annotations: Mapping[str, Any], *, source: str, classes: Sequence[str] | None = None, images: Path | None = None
) -> list[Problem]:
    """What is wrong with the annotations of a detection data set, one problem per kind.

    Args:
        annotations: A parsed ``instances_*.json`` in COCO's format.
        source: Name of the file, for the messages.
        classes: Names that the categories must include.
        images: Folder that the images' file names are relative to; None leaves the files unchecked.
    """
    missing = [section for section in COCO_KEYS if section not in annotations]
    if missing:
        todo = "give a file of COCO's detection task, such as instances_train2017.json"
        return group(missing, f'{source} lacks {len(missing)} section(s)', todo=todo)
    if problems := _incomplete_entries(annotations, source):
        return problems
    files = {image['id']: image['file_name'] for image in annotations['images']}
    return [
        *_duplicate_ids(annotations, source),
        *_broken_links(annotations, source, files),
        *_unlike_classes(annotations['categories'], source, classes),
        *_bad_boxes(annotations, source, files),
        *(_missing_images(list(files.values()), source, images) if images is not None else []),
    ]


def _incomplete_entries(annotations: Mapping[str, Any], source: str) -> list[Problem]:
    problems = []
    for section, keys in COCO_KEYS.items():
        bad = [entry for entry in annotations[section] if not keys <= entry.keys() or not _has_box(entry, keys)]
        text = f'{source} has {len(bad):,} entries in {section} without all of {", ".join(sorted(keys))}'
        todo = 'complete or remove them, a bbox is four numbers and an area one'
        problems += group(bad, text, todo=todo, describe=lambda entry: str(entry)[:100])
    return problems


def _has_box(entry: Mapping[str, Any], keys: set[str]) -> bool:
    if 'bbox' not in keys:
        return True
    box, area = entry['bbox'], entry['area']
    return isinstance(box, list) and len(box) == 4 and all(map(_is_float, [*box, area]))


def _is_float(value: Any) -> bool:
    """JSON has whole numbers of any size."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) <= sys.float_info.max)


def _duplicate_ids(annotations: Mapping[str, Any], source: str) -> list[Problem]:
    problems = []
    for section in COCO_KEYS:
        ids = Counter(entry['id'] for entry in annotations[section])
        twice = [key for key, number in ids.items() if number > 1] if len(ids) < len(annotations[section]) else []
        text = f'{source} has {len(twice):,} id(s) that occur more than once in {section}'
        problems += group(twice, text, todo='give every entry an id of its own')
    return problems


def _broken_links(annotations: Mapping[str, Any], source: str, files: Mapping[Any, str]) -> list[Problem]:
    categories = {category['id'] for category in annotations['categories']}
    homeless = [a for a in annotations['annotations'] if a['image_id'] not in files]
    unknown = [a for a in annotations['annotations'] if a['category_id'] not in categories]
    return [
        *group(
            homeless,
            f'{source} has {len(homeless):,} annotation(s) of images that it does not list',
            todo='remove them or list the images',
            describe=lambda a: f'annotation {a["id"]}: image {a["image_id"]}',
        ),
        *group(
            unknown,
            f'{source} has {len(unknown):,} annotation(s) of categories that it does not list',
            todo='correct their ids or list the categories',
            describe=lambda a: (
                f'annotation {a["id"]} of {files.get(a["image_id"], "no listed image")}: category {a["category_id"]}'
            ),
        ),
    ]


def _unlike_classes(categories: Sequence[Mapping], source: str, classes: Sequence[str] | None) -> list[Problem]:
    """mmdet numbers the wanted categories in the order of the file, whatever the order of ``classes``."""
    if classes is None:
        return []
    found = [category['name'] for category in categories if category['name'] in classes]
    missing = [name for name in classes if name not in found]
    twice = [name for name, number in Counter(found).items() if number > 1]
    problems = group(
        missing,
        f'{source} has no category for {len(missing)} of the {len(classes)} classes',
        todo='mmdet would shift the labels of the others; correct the names in the file or in metainfo.classes',
    )
    problems += group(
        twice, f'{source} has {len(twice)} category name(s) more than once', todo='give each category another name'
    )
    if not problems and found != list(classes):
        message = f'{source} has the classes in another order, {", ".join(found[:3])}, ...: list them so in'
        problems.append(Problem(f'{message} metainfo.classes, or predictions will carry wrong names', fatal=False))
    return problems


def _bad_boxes(annotations: Mapping[str, Any], source: str, files: Mapping[Any, str]) -> list[Problem]:
    """The conditions under which mmdet's ``CocoDataset`` leaves boxes out, and boxes that it keeps though they reach
    over the edge."""
    sizes = {image['id']: (image['width'], image['height']) for image in annotations['images']}
    checked = [a for a in annotations['annotations'] if a['image_id'] in sizes and not a.get('ignore')]
    corner, extent = np.split(np.array([a['bbox'] for a in checked], dtype=float).reshape(-1, 4), 2, axis=1)
    edge = np.array([sizes[a['image_id']] for a in checked], dtype=float).reshape(-1, 2)
    area = np.array([a['area'] for a in checked], dtype=float)
    inside = np.minimum(corner + extent, edge) - np.maximum(corner, 0)
    skipped, kept = 'mmdet leaves them out; correct or remove them', 'mmdet keeps them as they are; clip them'
    problems, is_left = [], np.ones(len(checked), dtype=bool)
    # Negated, so that a NaN is found.
    for what, is_bad, todo in (
        ('of no area', ~((extent > 0).all(axis=1) & (area > 0)), skipped),
        ('narrower than 1 pixel', ~(extent >= 1).all(axis=1), skipped),
        ('outside of their image', ~(inside > 0).all(axis=1), skipped),
        ("over their image's edge", ~((corner >= -1) & (corner + extent <= edge + 1)).all(axis=1), kept),
    ):
        bad = np.flatnonzero(is_bad & is_left).tolist()
        is_left &= ~is_bad
        problems += group(
            bad,
            f'{source} has {len(bad):,} box(es) {what}',
            todo=todo,
            describe=lambda at: _describe_box(checked[at], files),
            fatal=False,
        )
    return problems


def _describe_box(annotation: Mapping[str, Any], files: Mapping[Any, str]) -> str:
    return f'annotation {annotation["id"]} of {files[annotation["image_id"]]}: {annotation["bbox"]}'


def _missing_images(names: Sequence[str], source: str, folder: Path) -> list[Problem]:
    if not folder.is_dir():
        return [Problem(f'{folder}, the folder for the images of {source}, is missing: put the images there')]
    # One listing of each folder takes a fraction of the time of a look at each file.
    parents = {os.path.dirname(name) for name in names}
    there = {name: set(os.listdir(folder / name)) for name in parents if (folder / name).is_dir()}
    missing = [name for name in names if os.path.basename(name) not in there.get(os.path.dirname(name), ())]
    text = f'{folder} lacks {len(missing):,} of the {len(names):,} images that {source} lists'
    return group(missing, text, todo='get them again', shown=20)


# --- Label maps ---

LOSSY = ('JPEG', 'MPO', 'WEBP')


def label_file_problem(path: Path) -> str | None:
    """What is wrong with the file of a label map, before a host reads 8 bits of each pixel; as :func:`label_problem`.

    Raises:
        OSError: It is no image.
    """
    with Image.open(path) as opened:
        if opened.format in LOSSY:
            return f'is a {opened.format} file, which changes ids: get it as PNG'
        if opened.mode in ('L', 'P', '1', 'RGB', 'RGBA', 'LA', 'PA'):  # 8 bits or less
            return None
        ids = np.unique(np.asarray(opened))
    cut = ids[(ids < 0) | (ids > 255) | (ids != np.floor(ids))]
    return f'holds the ids {", ".join(map(str, cut[:5]))}, which 8 bits cannot hold' if cut.size else None


def label_problem(labels: np.ndarray, *, shape: tuple[int, int], classes: int, ignore: int = 255) -> str | None:
    """What is wrong with the label map of an image, as the rest of a sentence that begins with its name.

    Args:
        labels: A class id for every pixel, (H, W).
        shape: Height and width of the image.
        classes: Number of classes; the ids are 0 to ``classes - 1``.
        ignore: Id of pixels without a class.
    """
    if labels.shape != tuple(shape):
        own, other = (' x '.join(map(str, size)) for size in (labels.shape, shape))
        return f'is {own} but its image is {other}'
    is_known = (labels >= 0) & (labels < classes) | (labels == ignore)
    if is_known.all():
        return None
    ids = np.unique(labels[~is_known])
    listed = ', '.join(map(str, ids[:5])) + ', ...' * (len(ids) > 5)
    what = f'ids {listed}, which are' if len(ids) > 1 else f'id {listed}, which is'
    return f'holds the {what} neither 0 to {classes - 1} nor {ignore} (ignored)'
