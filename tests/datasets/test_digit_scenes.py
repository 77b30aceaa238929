"""Contract: digit scenes are real handwriting with exact ground truth, in the formats of COCO and CityScapes, and a
seed fixes every byte.

Oracles: scikit-learn's digits, boxes and areas counted from the pixels with NumPy, pycocotools, the host libraries'
own data sets.
"""

import json
import subprocess
import sys
from pathlib import Path

import mmdet.datasets
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from sklearn.datasets import load_digits

import repl_mm.datasets.digit_scenes
from repl_mm.datasets.checked import DigitBoxes, DigitMaps, Digits
from repl_mm.datasets.digit_scenes import make_scenes, write_cityscapes, write_coco

ROOT = Path(__file__).parents[2]
NUMBER = 40


@pytest.fixture(scope='module')
def scenes():
    return list(make_scenes(split='train', number=NUMBER))


@pytest.fixture(scope='module')
def coco(scenes, tmp_path_factory):
    root = tmp_path_factory.mktemp('coco')
    write_coco(root, scenes, split='train')
    return root


@pytest.fixture(scope='module')
def cityscapes(scenes, tmp_path_factory):
    root = tmp_path_factory.mktemp('cityscapes')
    write_cityscapes(root, scenes, split='train')
    return root


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [(['--train', '0'], '--train and --val are at least 1, got 0 and 150'), ([], 'holds something')],
)
def test_the_tool_wants_images_and_a_new_folder(arguments, message, tmp_path):
    (tmp_path / 'old.png').touch()
    tool = [sys.executable, ROOT / 'tools/make_digit_scenes.py', 'coco', tmp_path]
    done = subprocess.run([*tool, *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ['old.png']


@pytest.mark.parametrize('kind', ['coco', 'cityscapes'])
def test_every_byte_is_the_same_in_another_process(kind, coco, cityscapes, tmp_path):
    tool = [sys.executable, ROOT / 'tools/make_digit_scenes.py', kind, tmp_path / 'out']
    subprocess.run([*tool, '--train', str(NUMBER), '--val', '2'], check=True, capture_output=True)
    written = {'coco': coco, 'cityscapes': cityscapes}[kind]
    files = [path for path in written.rglob('*') if path.is_file()]
    assert len(files) == {'coco': NUMBER + 1, 'cityscapes': 2 * NUMBER}[kind]
    for path in files:
        assert path.read_bytes() == (tmp_path / 'out' / path.relative_to(written)).read_bytes(), path.name


def test_a_seed_and_a_split_are_scenes_of_their_own(scenes):
    for others in (make_scenes(split='train', number=3, seed=1), make_scenes(split='val', number=3)):
        for other, scene in zip(others, scenes, strict=False):
            assert other.image.shape == scene.image.shape
            assert not np.array_equal(other.image, scene.image)


def test_train_and_val_take_their_digits_from_disjoint_originals():
    parts = {split: repl_mm.datasets.digit_scenes._originals(split) for split in ('train', 'val')}
    images = {split: {image.tobytes() for image in originals} for split, (originals, _) in parts.items()}
    assert not images['train'] & images['val']
    assert images['train'] | images['val'] == {image.tobytes() for image in load_digits().images / 16}
    # The same originals as in the classification demo, with their own digits.
    for split, (_, digits) in parts.items():
        samples = Digits(split=split)
        assert digits.tolist() == [samples.get_data_info(at)['gt_label'] for at in range(len(samples))]


def test_scenes_have_several_digits_or_none_in_three_sizes(scenes):
    assert {scene.image.shape for scene in scenes} == {(128, 128, 3), (112, 144, 3), (144, 112, 3)}
    many = list(make_scenes(split='train', number=200))
    assert {len(scene.digits) for scene in many} == {0, 1, 2, 3, 4, 5}
    assert {digit for scene in many for digit in scene.digits} == set(range(10))


def test_a_digit_differs_from_what_it_lies_on(scenes):
    for scene in scenes:
        for at in range(len(scene.digits)):
            ink = scene.image[scene.owner == at].mean()
            around = scene.image[scene.owner == -1].mean()
            others = [scene.image[scene.owner == other].mean() for other in range(at)]
            assert max(abs(ink - other) for other in [around, *others]) > 30


def test_boxes_and_areas_are_those_of_the_visible_pixels(scenes, coco):
    annotations = COCO(str(coco / 'annotations' / 'instances_train.json'))
    for image_id, scene in enumerate(scenes, start=1):
        found = annotations.loadAnns(annotations.getAnnIds(image_id))
        assert [instance['category_id'] - 1 for instance in found] == list(scene.digits)
        for at, instance in enumerate(found):
            visible = scene.owner == at
            rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
            left, top = columns[0], rows[0]
            assert instance['bbox'] == [left, top, columns[-1] - left + 1, rows[-1] - top + 1]
            assert instance['area'] == np.count_nonzero(visible)
            assert np.array_equal(annotations.annToMask(instance), visible)


def test_most_of_every_digit_is_visible(monkeypatch):
    """Without later digits on top, each scene's digits cover no more than 1 / 0.7 of what they show."""
    with_overlap = list(make_scenes(split='train', number=60))
    monkeypatch.setattr(repl_mm.datasets.digit_scenes, 'MIN_VISIBLE', 1)
    apart = list(make_scenes(split='train', number=60))
    # The bound is at work: without overlap fewer digits find a place.
    assert sum(len(scene.digits) for scene in apart) < sum(len(scene.digits) for scene in with_overlap)
    smallest = min(np.count_nonzero(scene.owner == at) for scene in with_overlap for at in range(len(scene.digits)))
    assert smallest > 40


def test_the_hosts_data_set_reads_the_boxes(coco):
    arguments = dict(
        data_root=str(coco), ann_file='annotations/instances_train.json', data_prefix=dict(img='train'), test_mode=True
    )
    theirs = mmdet.datasets.CocoDataset(metainfo=dict(classes=tuple('0123456789')), **arguments)
    ours = DigitBoxes(**arguments)
    assert len(ours) == len(theirs) == NUMBER
    annotations = json.loads((coco / 'annotations' / 'instances_train.json').read_text())['annotations']
    assert sum(len(theirs.get_data_info(at)['instances']) for at in range(NUMBER)) == len(annotations)
    for at in range(NUMBER):
        assert ours.get_data_info(at)['instances'] == theirs.get_data_info(at)['instances']


def test_the_hosts_data_set_reads_the_maps(scenes, cityscapes):
    prefix = dict(img_path='leftImg8bit/train', seg_map_path='gtFine/train')
    pipeline = [dict(type='LoadImageFromFile'), dict(type='mmseg.LoadAnnotations')]
    dataset = DigitMaps(data_root=str(cityscapes), data_prefix=prefix, pipeline=pipeline)
    assert len(dataset) == NUMBER
    for at, scene in enumerate(scenes):
        sample = dataset[at]
        assert np.array_equal(sample['img'][..., ::-1], scene.image)  # the host reads BGR
        classes = np.array([*(1 + digit for digit in scene.digits), 0])
        assert np.array_equal(sample['gt_seg_map'], classes[scene.owner])


def test_label_images_are_plain_grey(cityscapes):
    for path in (cityscapes / 'gtFine').rglob('*.png'):
        assert Image.open(path).mode == 'L'
