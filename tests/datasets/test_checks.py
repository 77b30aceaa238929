"""Contract: a sound data set gives no problem, and each defect gives a sentence that names exactly what is broken.

Oracles: small data sets by hand, each with one defect; mmdet's own rules for boxes; published digests; Pillow's
encoders for files that are whole, cut at known places.
"""

import gzip
import hashlib
import io
import json
import os
import runpy
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import cv2
import numpy as np
import pytest
from mmdet.datasets import CocoDataset
from mmpretrain.datasets import CIFAR10
from PIL import Image

from repl_mm.datasets import integrity as published
from repl_mm.datasets.checks import Problem, coco_annotations, is_truncated, label_file_problem, label_problem
from repl_mm.datasets.integrity import check, contents

TOOL = Path(__file__).parents[2] / 'tools' / 'prepare_data.py'
NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def only(problems: list[Problem]) -> Problem:
    assert len(problems) == 1, problems
    return problems[0]


def save(path: Path, image: np.ndarray = NOISE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


# --- Truncation ---


def encode(**kwargs) -> bytes:
    file = io.BytesIO()
    Image.fromarray(NOISE).save(file, **kwargs)
    return file.getvalue()


THUMBNAIL = b'Exif\0\0' + encode(format='JPEG', quality=20)
FILES = {
    'baseline.jpg': encode(format='JPEG'),
    'progressive.jpeg': encode(format='JPEG', progressive=True),
    'thumbnail.JPEG': encode(format='JPEG', exif=THUMBNAIL),
    'opencv.jpg': cv2.imencode('.jpg', NOISE)[1].tobytes(),
    'fill bytes.jpg': encode(format='JPEG').replace(b'\xff\xdb', b'\xff\xff\xff\xdb', 1),
    'plain.png': encode(format='PNG'),
    'png by content.JPEG': encode(format='PNG'),
}


@pytest.mark.parametrize('name', FILES)
def test_a_file_is_truncated_wherever_it_is_cut(name, tmp_path):
    path, whole = tmp_path / name, FILES[name]
    for length in [*range(0, len(whole), 29), len(whole) - 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert is_truncated(path), length
    for padding in (b'', b'\0', b'\0' * 1000):
        path.write_bytes(whole + padding)
        assert not is_truncated(path), len(padding)


def test_the_thumbnail_ends_before_the_image_does():
    """Or the case above would test nothing."""
    assert FILES['thumbnail.JPEG'].count(b'\xff\xd9') == 2


@pytest.mark.parametrize(
    'options',
    [dict(), dict(progressive=True), dict(exif=THUMBNAIL)],
    ids=['baseline', 'progressive', 'thumbnail'],
)
def test_files_larger_than_the_tail_that_is_read(options, tmp_path):
    path = tmp_path / 'large.jpg'
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, quality=95, **options)
    whole = path.read_bytes()
    assert len(whole) > 2 * 65536
    assert not is_truncated(path)
    for length in range(1000, len(whole), 5000):
        path.write_bytes(whole[:length])
        assert is_truncated(path), length


def test_opencv_reads_a_truncated_file_without_a_word(tmp_path):
    """Why there is such a check."""
    path = tmp_path / 'cut.jpg'
    path.write_bytes(FILES['baseline.jpg'][: len(FILES['baseline.jpg']) // 2 + 400])
    assert cv2.imread(str(path)).shape == NOISE.shape
    assert is_truncated(path)


def test_other_files_are_not_judged(tmp_path):
    (tmp_path / 'words.txt').write_text('')
    (tmp_path / 'bitmap.jpg').write_bytes(encode(format='BMP'))
    assert not is_truncated(tmp_path / 'words.txt')
    assert not is_truncated(tmp_path / 'bitmap.jpg')


# --- Label maps ---


@pytest.mark.parametrize(
    ('ids', 'expected'),
    [
        ([0, 18, 255], None),
        ([0, 34, 200, 255], 'holds the ids 34, 200, which are neither 0 to 18 nor 255 (ignored)'),
        ([19], 'holds the id 19, which is neither 0 to 18 nor 255 (ignored)'),
        (range(100), 'holds the ids 19, 20, 21, 22, 23, ..., which are neither 0 to 18 nor 255 (ignored)'),
    ],
)
def test_ids_of_a_label_map(ids, expected):
    labels = np.resize(np.array(ids, dtype=np.uint8), (10, 20))
    assert label_problem(labels, shape=(10, 20), classes=19) == expected


def test_negative_ids_and_another_ignored_id():
    labels = np.array([[-1, 0, 7]])
    assert label_problem(labels, shape=(1, 3), classes=8, ignore=-1) is None
    assert label_problem(labels, shape=(1, 3), classes=8).startswith('holds the id -1,')
    assert label_problem(labels, shape=(1, 3), classes=7, ignore=-1).startswith('holds the id 7,')


@pytest.mark.parametrize(('size', 'own'), [((20, 10), '20 x 10'), ((10, 20, 3), '10 x 20 x 3')])
def test_size_of_a_label_map(size, own):
    assert label_problem(np.zeros(size, np.uint8), shape=(10, 20), classes=19) == f'is {own} but its image is 10 x 20'


# --- COCO annotations ---


def instances() -> dict:
    """Three images, two of them with objects, one of those a box of exactly one pixel in the corner."""
    return dict(
        images=[dict(id=i, file_name=f'{i}.jpg', height=40, width=60) for i in (1, 2, 3)],
        annotations=[
            dict(id=11, image_id=1, category_id=5, bbox=[0, 0, 60, 40], area=2400, iscrowd=0),
            dict(id=12, image_id=1, category_id=9, bbox=[-0.9, -0.9, 61.8, 41.8], area=2000, iscrowd=1),
            dict(id=13, image_id=3, category_id=9, bbox=[59, 39, 1, 1], area=1, iscrowd=0),
        ],
        categories=[dict(id=5, name='cat'), dict(id=9, name='dog')],
    )


def problems_after(change, **kwargs) -> list[Problem]:
    annotations = instances()
    change(annotations)
    return coco_annotations(annotations, source='train.json', **kwargs)


def test_sound_annotations(tmp_path):
    for i in (1, 2, 3):
        (tmp_path / f'{i}.jpg').touch()
    assert coco_annotations(instances(), source='x', classes=('cat', 'dog'), images=tmp_path) == []
    assert coco_annotations(instances(), source='x', classes=('dog',)) == []
    assert coco_annotations(dict(images=[], annotations=[], categories=[]), source='x') == []


# --- Files of label maps ---

WIDE = np.array([[0, 300], [7 + 256, 255]], dtype=np.uint16)


@pytest.mark.parametrize(
    ('ids', 'mode', 'expected'),
    [
        (WIDE, 'I;16', 'holds the ids 263, 300, which 8 bits cannot hold'),
        (WIDE.astype(np.uint16) % 256, 'I;16', None),
        ((WIDE % 256).astype(np.uint8), 'L', None),
        ((WIDE % 256).astype(np.uint8), 'P', None),
    ],
)
def test_ids_that_eight_bits_cannot_hold(ids, mode, expected, tmp_path):
    """Reading 8 bits of each pixel, a host sees 300 as 44 and 263 as 7."""
    image = Image.fromarray(ids)
    if mode == 'P':
        image.putpalette(range(256))
    image.save(tmp_path / 'labels.png')
    with Image.open(tmp_path / 'labels.png') as saved:
        assert saved.mode == mode
    assert label_file_problem(tmp_path / 'labels.png') == expected


def test_fractions_as_ids(tmp_path):
    Image.fromarray(np.array([[1.0, 1.5]], np.float32)).save(tmp_path / 'labels.tif')
    assert label_file_problem(tmp_path / 'labels.tif') == 'holds the ids 1.5, which 8 bits cannot hold'


@pytest.mark.parametrize('format', ['JPEG', 'WEBP'])
def test_a_lossy_file_by_the_name_of_a_png(format, tmp_path):
    Image.fromarray(NOISE).save(tmp_path / 'labels.png', format=format)
    assert label_file_problem(tmp_path / 'labels.png') == f'is a {format} file, which changes ids: get it as PNG'


@pytest.mark.parametrize(
    ('change', 'parts'),
    [
        (lambda a: a.pop('categories'), ['lacks 1 section', '(categories)']),
        (
            lambda a: a['annotations'][1].update(category_id=7),
            ['1 annotation(s)', 'annotation 12 of 1.jpg: category 7'],
        ),
        (lambda a: a['annotations'][2].update(image_id=99), ['1 annotation(s)', 'annotation 13: image 99']),
        (lambda a: a['annotations'][2].update(id=11), ['in annotations', '(11)']),
        (lambda a: a['images'].append(a['images'][1]), ['in images', '(2)']),
        (lambda a: a['categories'].append(dict(id=5, name='cow')), ['in categories', '(5)']),
        (lambda a: a['annotations'][0].pop('area'), ['1 entries in annotations', "{'id': 11,"]),
        (lambda a: a['annotations'][0].update(bbox=[]), ['1 entries in annotations', "{'id': 11,"]),
        (lambda a: a['images'][2].pop('width'), ['1 entries in images', "{'id': 3,"]),
    ],
)
def test_annotations_that_cannot_be_learned_from(change, parts):
    problem = only(problems_after(change))
    assert problem.fatal
    assert problem.message.startswith('train.json ')
    assert all(part in problem.message for part in parts), problem.message


@pytest.mark.parametrize(
    ('box', 'area', 'what'),
    [
        ([60, 0, 5, 5], 25, 'outside of their image'),
        ([10, -5, 5, 5], 25, 'outside of their image'),
        ([10, 10, 0, 5], 3, 'of no area'),
        ([10, 10, 5, -5], 3, 'of no area'),
        ([10, 10, 5, 5], 0, 'of no area'),
        ([float('nan'), 10, 5, 5], 25, 'outside of their image'),
        ([10, 10, 0.9, 5], 3, 'narrower than 1 pixel'),
        ([10, 10, 5, 0.9], 3, 'narrower than 1 pixel'),
        ([50, 10, 11.1, 5], 25, "over their image's edge"),
        ([10, 10, 5, 31.1], 25, "over their image's edge"),
        ([-1.1, 10, 5, 5], 25, "over their image's edge"),
    ],
)
def test_a_bad_box_is_a_warning(box, area, what):
    problem = only(problems_after(lambda a: a['annotations'][2].update(bbox=box, area=area)))
    assert not problem.fatal
    assert f'train.json has 1 box(es) {what} (annotation 13 of 3.jpg: {box})' in problem.message


def test_boxes_left_out_are_those_that_mmdet_leaves_out():
    rng = np.random.default_rng(0)
    dataset = SimpleNamespace(data_prefix=dict(img=''), return_classes=False, cat_ids=[5], cat2label={5: 0})
    outcomes = set()
    for box in rng.integers(-4, 14, (2000, 4)) / 2:
        x, y, w, h = box.tolist()
        image = dict(id=1, img_id=1, file_name='1.jpg', height=4, width=3)
        box = dict(id=1, image_id=1, category_id=5, bbox=[x, y, w, h], area=w * h)
        raw = dict(raw_img_info=image, raw_ann_info=[box])
        left_out = CocoDataset.parse_data_info(dataset, raw)['instances'] == []
        content = dict(images=[image], annotations=[box], categories=[dict(id=5, name='cat')])
        messages = [problem.message for problem in coco_annotations(content, source='x')]
        assert any('leaves them out' in message for message in messages) == left_out, box
        assert len(messages) <= 1
        outcomes |= {left_out}
    assert outcomes == {True, False}


def test_ignored_boxes_are_left_alone():
    assert problems_after(lambda a: a['annotations'][2].update(bbox=[0, 0, 0, 0], ignore=1)) == []


def test_many_of_a_kind_are_one_problem():
    def change(annotations):
        box = dict(image_id=2, category_id=5, bbox=[1, 1, 0, 0], area=1)
        annotations['annotations'] += [dict(box, id=i) for i in range(100, 5100)]

    message = only(problems_after(change)).message
    assert '5,000 box(es)' in message
    assert [i for i in range(100, 110) if f'annotation {i} ' in message] == [100, 101, 102]
    assert '; ...)' in message


def test_a_class_without_a_category():
    problem = only(coco_annotations(instances(), source='train.json', classes=('cat', 'cow', 'dog')))
    assert problem.fatal
    assert 'no category for 1 of the 3 classes (cow)' in problem.message


def test_two_categories_of_one_name():
    problem = only(problems_after(lambda a: a['categories'].append(dict(id=6, name='cat')), classes=('cat', 'dog')))
    assert problem.fatal
    assert '(cat)' in problem.message


def test_classes_in_another_order():
    problem = only(coco_annotations(instances(), source='train.json', classes=('dog', 'cat')))
    assert not problem.fatal
    assert 'cat, dog' in problem.message


def test_images_that_are_missing(tmp_path):
    annotations = instances()
    annotations['images'][0]['file_name'] = 'sub/1.jpg'
    annotations['images'][1]['file_name'] = 'sub/2.jpg'
    for name in ('sub/1.jpg', '2.jpg', 'sub/3.jpg'):  # two of them elsewhere
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    problem = only(coco_annotations(annotations, source='train.json', images=tmp_path))
    assert problem.fatal
    assert f'{tmp_path} lacks 2 of the 3 images that train.json lists (sub/2.jpg; 3.jpg)' in problem.message


def test_a_folder_that_is_missing(tmp_path):
    problem = only(coco_annotations(instances(), source='train.json', images=tmp_path / 'none'))
    assert problem.fatal
    assert problem.message.startswith(f'{tmp_path}/none, ')


# --- Whole data sets ---


def make_coco(root: Path) -> None:
    for split, number in (('train', 3), ('val', 2)):
        annotations = instances()
        annotations['images'] = annotations['images'][:number]
        annotations['annotations'] = annotations['annotations'][:2]
        for image in annotations['images']:
            save(root / f'{split}2017' / image['file_name'])
        path = root / 'annotations' / f'instances_{split}2017.json'
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(annotations))


def make_cityscapes(root: Path) -> None:
    for split, cities in (('train', ('aachen', 'ulm')), ('val', ('frankfurt',))):
        for city in cities:
            save(root / 'leftImg8bit' / split / city / f'{city}_0_leftImg8bit.png')
            labels = np.resize(np.array([0, 18, 255], dtype=np.uint8), (40, 60))
            save(root / 'gtFine' / split / city / f'{city}_0_gtFine_labelTrainIds.png', labels)


def make_imagenet(root: Path) -> None:
    for split, number in (('train', 3), ('val', 1)):
        for folder in ('n01', 'n02'):
            for i in range(number):
                save(root / split / folder / f'{split}_{i}.jpg')


def make_fashion_mnist(root: Path) -> None:
    for name, shape in FASHION_MNIST.items():
        header = struct.pack(f'>HBB{len(shape)}I', 0, 8, len(shape), *shape)
        (root / name).write_bytes(gzip.compress(header + bytes(int(np.prod(shape)))))


def make_binary(root: Path, digests: dict[str, str]) -> None:
    for name in digests:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(name)


DIGESTS = dict(cifar10=published.cifar10_digests(), svhn=published.svhn_digests(), stl10=published.stl10_digests())
DIGESTS['wikitext2'] = published.wikitext2_digests()
FASHION_MNIST = {
    'train-images-idx3-ubyte.gz': (3, 28, 28),
    'train-labels-idx1-ubyte.gz': (3,),
    't10k-images-idx3-ubyte.gz': (2, 28, 28),
    't10k-labels-idx1-ubyte.gz': (2,),
}
COUNTS = dict(coco=dict(train=3, val=2), cityscapes=dict(train=2, val=1), imagenet=dict(train=6, val=2))


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Makes a small sound data set, of the size that ``check`` then expects."""
    monkeypatch.setattr(published, 'COUNTS', COUNTS)
    monkeypatch.setattr(published, 'IMAGENET_CLASSES', 2)
    monkeypatch.setattr(published, 'FASHION_MNIST', FASHION_MNIST)

    def make(name: str) -> Path:
        if name in DIGESTS:
            make_binary(tmp_path, DIGESTS[name])
            for part in DIGESTS[name]:
                kind = hashlib.sha1 if name == 'wikitext2' else hashlib.md5
                monkeypatch.setitem(DIGESTS[name], part, kind(part.encode()).hexdigest())
        else:
            makers = dict(coco=make_coco, cityscapes=make_cityscapes, imagenet=make_imagenet)
            (makers | {'fashion-mnist': make_fashion_mnist})[name](tmp_path)
        return tmp_path

    return make


@pytest.mark.parametrize('name', published.SOURCES)
def test_a_sound_tree_has_no_problem(name, tree):
    root = tree(name)
    assert check(name, root) == []
    expected = sum(len(files) for _, _, files in os.walk(root))
    assert sum(contents(name, root).values()) == expected


@pytest.mark.parametrize('name', published.SOURCES)
def test_an_empty_folder_lacks_every_part(name, tmp_path):
    problems = check(name, tmp_path)
    source = published.SOURCES[name]
    for part, problem in zip(source.parts(), problems, strict=True):
        assert problem.fatal
        assert problem.message.startswith(f'{tmp_path / part} is missing: ')
        assert source.url in problem.message
    assert set(contents(name, tmp_path).values()) == {0}


@pytest.mark.parametrize(
    ('name', 'victim'),
    [
        ('coco', 'val2017/2.jpg'),
        ('cityscapes', 'leftImg8bit/train/ulm/ulm_0_leftImg8bit.png'),
        ('cityscapes', 'gtFine/val/frankfurt/frankfurt_0_gtFine_labelTrainIds.png'),
        ('imagenet', 'train/n02/train_1.jpg'),
        ('cifar10', 'cifar-10-batches-py/data_batch_3'),
        ('svhn', 'test_32x32.mat'),
        ('stl10', 'stl10_binary/train_y.bin'),
        ('fashion-mnist', 'train-images-idx3-ubyte.gz'),
        ('fashion-mnist', 't10k-labels-idx1-ubyte.gz'),
    ],
)
def test_exactly_the_damaged_file_is_named(name, victim, tree):
    root = tree(name)
    if name in DIGESTS:
        (root / victim).write_text('something else')
    else:
        cut(root / victim)
    problem = only(check(name, root))
    assert problem.fatal
    named = [p for p in root.rglob('*') if p.is_file() and str(p) in problem.message]
    assert named == [root / victim]


@pytest.mark.parametrize(
    ('name', 'victim', 'parts'),
    [
        ('coco', 'train2017/3.jpg', ['lacks 1 of the 3 images', '(3.jpg)']),
        ('coco', 'annotations/instances_val2017.json', ['instances_val2017.json is missing', 'cocodataset.org']),
        ('cityscapes', 'gtFine/train/ulm/ulm_0_gtFine_labelTrainIds.png', ['1 of 2 label', '/ulm_0_gtFine', '--make']),
        ('cityscapes', 'leftImg8bit/val/frankfurt/frankfurt_0_leftImg8bit.png', ['/val has 0 images instead of 1']),
        ('imagenet', 'train/n01/train_0.jpg', ['/train has 5 images instead of 6', 'www.image-net.org']),
        ('svhn', 'train_32x32.mat', ['/train_32x32.mat is missing', 'housenumbers']),
    ],
)
def test_a_missing_file(name, victim, parts, tree):
    root = tree(name)
    (root / victim).unlink()
    problem = only(check(name, root))
    assert problem.fatal
    assert all(part in problem.message for part in parts), problem.message


def test_fashion_mnist_may_lie_unpacked_and_is_told_from_another_set(tree):
    root = tree('fashion-mnist')
    for path in root.iterdir():
        path.with_suffix('').write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert check('fashion-mnist', root) == []
    (root / 'train-images-idx3-ubyte').write_bytes(struct.pack('>HBBIII', 0, 8, 3, 3, 32, 32) + bytes(3 * 32 * 32))
    assert (
        'train-images-idx3-ubyte holds (3, 32, 32) instead of (3, 28, 28)' in only(check('fashion-mnist', root)).message
    )


@pytest.mark.parametrize('content', ['{"images": [', '{"images": []}'])
def test_annotations_that_are_not_whole(content, tree):
    root = tree('coco')
    path = root / 'annotations' / 'instances_val2017.json'
    path.write_text(content)
    problems = check('coco', root)
    assert problems
    assert all(problem.fatal and str(path) in problem.message for problem in problems)


@pytest.mark.parametrize(
    ('labels', 'what'),
    [
        (np.full((40, 60), 33, np.uint8), 'holds the id 33, which is neither 0 to 18 nor 255 (ignored)'),
        (np.zeros((60, 40), np.uint8), 'is 60 x 40 but its image is 40 x 60'),
    ],
)
def test_cityscapes_labels_that_do_not_fit(labels, what, tree):
    root = tree('cityscapes')
    path = root / 'gtFine' / 'train' / 'ulm' / 'ulm_0_gtFine_labelTrainIds.png'
    save(path, labels)
    problem = only(check('cityscapes', root))
    assert problem.fatal
    assert f'({path} {what})' in problem.message


def test_cityscapes_labels_that_cannot_be_read(tree):
    root = tree('cityscapes')
    path = root / 'gtFine' / 'train' / 'ulm' / 'ulm_0_gtFine_labelTrainIds.png'
    content = bytearray(path.read_bytes())
    content[45] ^= 255  # in the compressed pixels
    path.write_bytes(content)
    problem = only(check('cityscapes', root))
    assert f'{path} or its image cannot be read' in problem.message


def test_imagenet_validation_images_in_one_folder(tree):
    root = tree('imagenet')
    for folder in ('n01', 'n02'):
        (root / 'val' / folder / 'val_0.jpg').rename(root / 'val' / f'{folder}.jpg')
        (root / 'val' / folder).rmdir()
    problem = check('imagenet', root)[0]
    assert problem.fatal
    assert f'{root}/val has 0 of 2 class folders' in problem.message
    (root / 'meta').mkdir()
    listing = root / 'meta' / 'val.txt'
    save(root / 'val' / 'unlisted.jpg')
    listing.write_text('n01.jpg 0\nn02.jpg 1\n')
    assert check('imagenet', root) == []
    listing.write_text('n01.jpg 0\nn02.jpg 2\n')
    assert f'{listing} has 1 line(s)' in only(check('imagenet', root)).message
    assert '(n02.jpg 2)' in only(check('imagenet', root)).message
    listing.write_text('n01.jpg 0\nn02.jpg 1\nn03.jpg 1\n')
    assert f'{listing} lists 1 image(s) that are missing (n03.jpg)' in only(check('imagenet', root)).message


def test_imagenet_folders_that_would_shift_the_labels(tree):
    root = tree('imagenet')
    (root / 'val' / 'n02').rename(root / 'val' / 'n00')
    assert '(n00; n02)' in only(check('imagenet', root)).message


def test_an_empty_class_folder_of_imagenet(tree):
    root = tree('imagenet')
    (root / 'val' / 'n02' / 'val_0.jpg').unlink()
    problems = check('imagenet', root)
    assert f'{root}/val has 1 empty class folder(s) (n02)' in problems[0].message
    assert len(problems) == 2  # and the count


def test_every_image_is_tracked(tree):
    seen = []
    check('imagenet', tree('imagenet'), track=lambda paths: seen.extend(paths) or paths)
    assert len(set(seen)) == 8


def test_the_digests_are_those_of_the_published_files():
    """Oracles: mmpretrain's own list; digests as published."""
    batches = [*CIFAR10.train_list, *CIFAR10.test_list, [CIFAR10.meta['filename'], CIFAR10.meta['md5']]]
    assert published.cifar10_digests() == {f'{CIFAR10.base_folder}/{name}': md5 for name, md5 in batches}
    assert published.svhn_digests() == {
        'train_32x32.mat': 'e26dedcc434d2e4c54c9b2d4a06d8373',
        'test_32x32.mat': 'eb5a983be6a315427106f1b164d9cef3',
    }
    assert published.stl10_digests() == {
        'stl10_binary/train_X.bin': '918c2871b30a85fa023e0c44e0bee87f',
        'stl10_binary/train_y.bin': '5a34089d4802c674881badbb80307741',
        'stl10_binary/unlabeled_X.bin': '5242ba1fed5e4be9e1e742405eb56ca4',
        'stl10_binary/test_X.bin': '7f263ba9f9e0b06b93213547f721ac82',
        'stl10_binary/test_y.bin': '36f9794fa4beb8a2c72628de14fa638e',
    }


def test_the_module_needs_no_torch():
    code = 'import sys; import repl_mm.datasets.integrity; print("torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout == 'False\n'


# --- The tool ---


def call(monkeypatch, *args: object) -> int:
    """The exit code of the tool in this process."""
    monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, args)])
    try:
        runpy.run_path(str(TOOL), run_name='__main__')
    except SystemExit as leaving:
        return leaving.code
    return 0


def test_the_tool_on_what_is_missing(tmp_path):
    (tmp_path / 'train_32x32.mat').touch()
    done = subprocess.run([sys.executable, TOOL, 'svhn', tmp_path], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert f'{tmp_path}/test_32x32.mat is missing: get SVHN from http://ufldl.stanford.edu/housenumbers/' in done.stdout
    assert f'damaged or of another version, by their digests ({tmp_path}/train_32x32.mat)' in done.stdout
    assert '1 file(s)  train_32x32.mat' in done.stdout
    assert 'Complete' not in done.stdout


def test_the_tool_on_a_complete_set_with_warnings(tree, monkeypatch, capsys):
    root = tree('coco')
    path = root / 'annotations' / 'instances_train2017.json'
    annotations = json.loads(path.read_text())
    annotations['annotations'][0]['bbox'] = [90, 90, 5, 5]
    path.write_text(json.dumps(annotations))
    assert call(monkeypatch, 'coco', root) == 0
    out = capsys.readouterr().out
    assert 'annotation 11 of 1.jpg: [90, 90, 5, 5]' in out
    assert '3 file(s)  train2017\n' in out
    assert out.endswith('Complete.\n')


@pytest.mark.parametrize(
    ('args', 'sentence'),
    [
        (['mnist', '.'], "error: there is no data set 'mnist': give one of coco, cityscapes, imagenet"),
        (['coco', 'none'], 'error: none is no folder: give the one that holds train2017'),
        (
            ['wikitext2', 'none'],
            'error: none is no folder: give the one that holds wiki.train.tokens, wiki.valid.tokens, ..., or get '
            'WikiText-2 from https://wikitext.smerity.com',
        ),
        (['coco', '.', '--make-train-ids'], 'error: --make-train-ids is for cityscapes, not for coco'),
        (['cityscapes', '.', '--make-train-ids'], 'error: --make-train-ids: '),
    ],
)
def test_bad_arguments_are_a_sentence(args, sentence, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'cityscapesscripts', None)
    assert call(monkeypatch, *args) == 2
    error = capsys.readouterr().err
    assert error.startswith(sentence)
    assert ('pip install cityscapesscripts' in error) == (args[0] == 'cityscapes')


def test_missing_labels_are_made_from_the_polygons(tree, monkeypatch):
    root = tree('cityscapes')
    folder = root / 'gtFine' / 'train' / 'ulm'
    labels = folder / 'ulm_0_gtFine_labelTrainIds.png'
    others = {path: path.read_bytes() for path in root.rglob('*.png') if path != labels}
    labels.unlink()
    for path in list(others):
        if 'gtFine' in path.name:
            path.with_name(path.name.replace('labelTrainIds.png', 'polygons.json')).write_text('other')
    (folder / 'ulm_0_gtFine_polygons.json').write_text('7')

    def json2labelimg(source: str, target: str, encoding: str) -> None:
        assert encoding == 'trainIds'
        assert not labels.exists()
        save(Path(target), np.full((40, 60), int(Path(source).read_text()), np.uint8))

    module = ModuleType('json2labelImg')
    module.json2labelImg = json2labelimg
    monkeypatch.setitem(sys.modules, 'cityscapesscripts', ModuleType('cityscapesscripts'))
    monkeypatch.setitem(sys.modules, 'cityscapesscripts.preparation', ModuleType('preparation'))
    monkeypatch.setitem(sys.modules, 'cityscapesscripts.preparation.json2labelImg', module)
    assert call(monkeypatch, 'cityscapes', root) == 1
    assert not labels.exists()
    assert call(monkeypatch, 'cityscapes', root, '--make-train-ids') == 0
    assert np.unique(np.asarray(Image.open(labels))).tolist() == [7]
    assert {path: path.read_bytes() for path in root.rglob('*.png') if path != labels} == others
