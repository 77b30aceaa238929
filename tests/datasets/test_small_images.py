"""Contract: the published files of small images are read as they were written, and augmented as the paper says.

Oracles: three records of each format, written here byte by byte; NumPy's pad and slices.
"""

import gzip
import hashlib
import pickle
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torchvision
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DATASETS, init_default_scope
from scipy.io import savemat

from repl_mm.datasets.small_images import CIFAR10, STL10, SVHN, FashionMNIST

CONFIGS = Path(__file__).parents[2] / 'configs' / 'small_images'
NUMBER = 3


def images(side: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (NUMBER, side, side, channels), dtype=np.uint8)


def write_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, list[int]]:
    """One record in each of the first three batches: red, green and blue planes, row by row."""
    host = torchvision.datasets.CIFAR10
    records, labels, folder = images(32), [9, 0, 6], root / 'cifar-10-batches-py'
    folder.mkdir()
    digests = {}
    for at, (name, _) in enumerate([*host.train_list, *host.test_list, ('batches.meta', None)]):
        planes = (
            [records[at][..., channel].ravel() for channel in range(3)] if at < NUMBER else [np.empty(0, np.uint8)] * 3
        )
        content = {'data': np.concatenate(planes)[None] if at < NUMBER else np.empty((0, 3072), np.uint8)}
        content |= {'labels': labels[at : at + 1], 'label_names': list(CIFAR10.METAINFO['classes'])}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        digests[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    for attribute in ('train_list', 'test_list'):
        monkeypatch.setattr(host, attribute, [[name, digests[name]] for name, _ in getattr(host, attribute)])
    monkeypatch.setattr(host, 'meta', host.meta | dict(md5=digests['batches.meta']))
    return records, labels


def write_svhn(root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, list[int]]:
    """MATLAB's (H, W, 3, N), and 10 for the digit 0."""
    records = images(32)
    savemat(root / 'train_32x32.mat', dict(X=np.stack(list(records), axis=-1), y=np.array([[10], [1], [9]], np.uint8)))
    return records, [0, 1, 9]


def write_stl10(root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, list[int]]:
    """Planes again, but each column by column; labels from 1."""
    records, folder = images(96), root / 'stl10_binary'
    folder.mkdir()
    planes = [image[:, column, channel] for image in records for channel in range(3) for column in range(96)]
    (folder / 'train_X.bin').write_bytes(b''.join(map(bytes, planes)))
    (folder / 'train_y.bin').write_bytes(bytes([1, 10, 3]))
    return records, [0, 9, 2]


def write_fashion_mnist(root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, list[int]]:
    """IDX: the kind of number, the number of axes, the axes, the bytes; the labels lie unpacked."""
    records = images(28, 1)
    header = struct.pack('>BBBBIII', 0, 0, 8, 3, NUMBER, 28, 28)
    (root / 'train-images-idx3-ubyte.gz').write_bytes(gzip.compress(header + records.tobytes()))
    (root / 'train-labels-idx1-ubyte').write_bytes(struct.pack('>BBBBI', 0, 0, 8, 1, NUMBER) + bytes([9, 0, 5]))
    return np.concatenate([records] * 3, axis=-1), [9, 0, 5]


WRITERS = {CIFAR10: write_cifar10, SVHN: write_svhn, STL10: write_stl10, FashionMNIST: write_fashion_mnist}


@pytest.mark.parametrize('kind', WRITERS)
def test_three_records_written_by_hand(kind, tmp_path, monkeypatch):
    written, labels = WRITERS[kind](tmp_path, monkeypatch)
    read = kind(data_root=str(tmp_path), split='train', pipeline=[])
    assert [read[at]['gt_label'] for at in range(len(read))] == labels
    for at, image in enumerate(written):
        np.testing.assert_array_equal(read[at]['img'], image)


def test_classes_in_the_order_of_another_data_set(tmp_path, monkeypatch):
    """CIFAR-10's order, with STL-10's own names; the truck (label 9 of both) stays, the car is the second class."""
    written, _ = write_stl10(tmp_path, monkeypatch)
    names = ['airplane', 'car', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck']
    read = STL10(data_root=str(tmp_path), split='train', classes=names, pipeline=[])
    assert [read[at]['gt_label'] for at in range(len(read))] == [0, 9, 1]
    left = STL10(data_root=str(tmp_path), split='train', classes=['car', 'frog'], pipeline=[])
    assert [record['gt_label'] for record in left] == [0]
    np.testing.assert_array_equal(left[0]['img'], written[2])


@pytest.mark.parametrize(
    ('kind', 'files', 'message'),
    [
        (CIFAR10, {}, 'cifar-10-batches-py/data_batch_1 is missing: get CIFAR-10 from https://'),
        (SVHN, {'train_32x32.mat': b'no MATLAB'}, 'cannot read SVHN in'),
        (STL10, {'stl10_binary/train_X.bin': bytes(7), 'stl10_binary/train_y.bin': b'\1'}, 'cannot read STL-10 in'),
        (STL10, {'stl10_binary/train_X.bin': bytes(27648), 'stl10_binary/train_y.bin': b'\0'}, 'holds the label 0'),
        (
            STL10,
            {'stl10_binary/train_X.bin': bytes(27648), 'stl10_binary/train_y.bin': b'\1\1'},
            '1 images .* 2 labels',
        ),
        (STL10, {'stl10_binary/train_X.bin': b'', 'stl10_binary/train_y.bin': b''}, '0 images'),
        (
            FashionMNIST,
            {'train-images-idx3-ubyte.gz': gzip.compress(bytes(99), mtime=0)[:-9], 'train-labels-idx1-ubyte': b''},
            'not a whole IDX file',
        ),
    ],
    ids=['missing', 'no MATLAB', 'cut', 'label 0', 'too many labels', 'empty', 'no IDX'],
)
def test_what_is_missing_or_damaged_is_named(kind, files, message, tmp_path):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        kind(data_root=str(tmp_path), split='train', pipeline=[])


def test_pickles_other_than_the_published_ones_are_not_read(tmp_path, monkeypatch):
    write_cifar10(tmp_path, monkeypatch)
    (tmp_path / 'cifar-10-batches-py' / 'data_batch_2').write_bytes(b'cos\nsystem\n(S"touch read"\ntR.')
    with pytest.raises(ValueError, match='cannot read CIFAR-10 in'):
        CIFAR10(data_root=str(tmp_path), split='train', pipeline=[])


def test_another_split_is_refused():
    with pytest.raises(ValueError, match="the splits 'train' and 'test', got 'val'"):
        SVHN(data_root='data', split='val')


# What NumPy's pad makes of a ramp, by the paper's words for each set.
PADDED = {
    'resnet32_1xb1024-250e_cifar10': lambda ramp: (np.pad(ramp, ((4, 4), (4, 4), (0, 0)), mode='reflect'), 32, True),
    'resnet110_1xb1024-250e_svhn': lambda ramp: (np.pad(ramp, ((2, 2), (2, 2), (0, 0))), 32, False),
    'vit-tiny-p8_1xb512-250e_stl10': lambda ramp: (np.pad(ramp, ((4, 4), (4, 4), (0, 0))), 96, True),
    'vit-small-p16_finetune_1xb512-100e_svhn': lambda ramp: (np.pad(ramp, ((2, 2), (2, 2), (0, 0))), 32, False),
    'vit-tiny-p8_1xb512-250e_fashion-mnist': lambda ramp: (np.pad(ramp, ((4, 4), (4, 4), (0, 0))), 32, True),
}


@pytest.mark.parametrize('name', PADDED)
def test_augmentation_is_pad_crop_and_flip(name):
    config = Config.fromfile(CONFIGS / f'{name}.py')
    init_default_scope('mmpretrain')
    side = 96 if 'stl10' in name else 28 if 'fashion' in name else 32
    ramp = np.add.outer(np.arange(side), side * np.arange(side))[..., None].repeat(3, axis=-1).astype(np.int16)
    padded, crop, flips = PADDED[name](ramp)
    views = {}
    for y, x in np.ndindex(len(padded) - crop + 1, len(padded) - crop + 1):
        window = padded[y : y + crop, x : x + crop]
        views[window.tobytes()] = (y, x, False)
        views[np.ascontiguousarray(window[:, ::-1]).tobytes()] = (y, x, True)
    steps = config.train_dataloader.dataset.pipeline[:-1]
    if 'finetune' in name:
        assert steps.pop() == dict(type='Resize', scale=(224, 224), backend='pillow', interpolation='bicubic')
    augment = Compose(steps)
    seen = {views.get(np.ascontiguousarray(augment(dict(img=ramp))['img']).tobytes()) for _ in range(60)}
    assert None not in seen
    assert {flipped for *_, flipped in seen} == ({False, True} if flips else {False})
    assert len({y for y, *_ in seen}) > 2
    assert len({x for _, x, _ in seen}) > 2


def test_small_images_are_padded_alike_in_a_test():
    config = Config.fromfile(CONFIGS / 'vit-tiny-p8_1xb512-250e_fashion-mnist.py')
    init_default_scope('mmpretrain')
    image = images(28)[0]
    view = Compose(config.test_dataloader.dataset.pipeline[:-1])(dict(img=image))['img']
    np.testing.assert_array_equal(view, np.pad(image, ((2, 2), (2, 2), (0, 0))))


def shrink_by_hand(image: np.ndarray) -> np.ndarray:
    """96 to 32 pixels: a triangle of 1, 2, 3, 2, 1 ninths around the middle of three pixels, cut off at the border."""
    weights = np.zeros((32, 96))
    for at in range(32):
        for pixel, weight in enumerate((1, 2, 3, 2, 1), start=3 * at - 1):
            if 0 <= pixel < 96:
                weights[at, pixel] = weight
    weights /= weights.sum(axis=1, keepdims=True)
    return np.einsum('ay,bx,yxc->abc', weights, weights, image)


def test_a_network_of_cifar10_is_scored_on_stl10(tmp_path, monkeypatch):
    """Truck, horse and monkey: labels 9 and 7 of CIFAR-10, and none; a car, third in STL-10, is second in CIFAR-10."""
    config = Config.fromfile(CONFIGS / 'resnet32_adamw_1xb1024-250e_cifar10-to-stl10.py')
    init_default_scope('mmpretrain')
    written, _ = write_stl10(tmp_path, monkeypatch)
    for file in (tmp_path / 'stl10_binary').iterdir():
        file.rename(file.with_name(file.name.replace('train', 'test')))
    (tmp_path / 'stl10_binary' / 'test_y.bin').write_bytes(bytes([10, 8, 3]))
    read = DATASETS.build(config.test_dataloader.dataset | dict(data_root=str(tmp_path)))
    assert [read[at]['data_samples'].gt_label.item() for at in range(len(read))] == [9, 1]
    for at, image in enumerate(written[[0, 2]]):
        found = read[at]['inputs'].permute(1, 2, 0).numpy()
        assert np.abs(found - shrink_by_hand(image)).max() <= 1  # it rounds after each axis
    names = config.test_dataloader.dataset.classes
    assert set(CIFAR10.METAINFO['classes']) - set(names) == {'automobile'}
    assert [names.index(name) for name in CIFAR10.METAINFO['classes'] if name != 'automobile'] == [0, *range(2, 10)]
    trained = Config.fromfile(CONFIGS / 'resnet32_adamw_1xb1024-250e_cifar10.py')
    assert config.val_dataloader == config.test_dataloader
    scored = {'names', 'stl10', 'stl10_pipeline', 'val_dataloader', 'test_dataloader'}
    assert {key for key in config if config[key] != trained.get(key)} == scored


PAPER = {
    'vit-large-p8_adamw_1xb1024-250e_svhn': (1024, dict(type='AdamW', lr=0.01, weight_decay=1e-4)),
    'vit-small-p16-repl_finetune_1xb512-100e_stl10': (512, dict(type='AdamW', lr=2e-4, weight_decay=0.05)),
    '../classification/vit-base-p16_adamw_1xb128-100e_in1k': (128, dict(type='AdamW', lr=0.04, weight_decay=1e-4)),
    '../classification/resnet152_adamw_1xb32-100e_in1k': (32, dict(type='AdamW', lr=0.01, weight_decay=1e-4)),
    'resnet32_1xb1024-250e_cifar10': (1024, dict(type='SGD', lr=0.8, momentum=0.9, weight_decay=1e-4)),
    'vit-tiny-p8-repl_1xb512-250e_stl10': (512, dict(type='AdamW', lr=1e-3, weight_decay=0.05)),
}


@pytest.mark.parametrize('name', PAPER)
def test_recipes_are_the_papers(name):
    config = Config.fromfile(CONFIGS / f'{name}.py')
    assert (config.train_dataloader.batch_size, config.optim_wrapper.optimizer) == PAPER[name]
    assert config.train_cfg.max_epochs == int(re.search(r'-(\d+)e_', name)[1])
