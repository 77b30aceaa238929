"""Contract: a sample or annotation that is broken is named; training goes on without a bad sample, a score does not.

Oracles: digit scenes with one defect each, the host libraries' data sets on the sound ones.
"""

import json
import logging
from pathlib import Path

import mmseg.datasets
import numpy as np
import pytest
from mmengine.logging import MMLogger
from PIL import Image

from repl_mm.datasets.checked import CityscapesDataset, CocoDataset, DigitBoxes, DigitMaps
from repl_mm.datasets.digit_scenes import make_scenes, write_cityscapes, write_coco

LOAD_BOXES = [
    dict(type='LoadImageFromFile'),
    dict(type='mmdet.LoadAnnotations', with_bbox=True),
    dict(type='mmdet.Resize', scale_factor=1.0),
    dict(type='mmdet.PackDetInputs'),
]
LOAD_MAPS = [
    dict(type='LoadImageFromFile'),
    dict(type='mmseg.LoadAnnotations'),
    dict(type='mmseg.RandomCrop', crop_size=(64, 64)),
    dict(type='mmseg.PackSegInputs'),
]
NUMBER = 12


@pytest.fixture
def coco(tmp_path):
    write_coco(tmp_path, make_scenes(split='train', number=NUMBER), split='train')
    return tmp_path


@pytest.fixture
def cityscapes(tmp_path):
    write_cityscapes(tmp_path, make_scenes(split='train', number=NUMBER), split='train')
    return tmp_path


@pytest.fixture
def warnings(caplog):
    """The warnings that were logged so far."""
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    yield lambda: [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    logger.removeHandler(caplog.handler)


def boxes(root: Path, **kwargs) -> DigitBoxes:
    prefix = dict(data_root=str(root), ann_file='annotations/instances_train.json', data_prefix=dict(img='train'))
    return DigitBoxes(**prefix | dict(pipeline=LOAD_BOXES) | kwargs)


def maps(root: Path, **kwargs) -> DigitMaps:
    prefix = dict(img_path='leftImg8bit/train', seg_map_path='gtFine/train')
    return DigitMaps(**dict(data_root=str(root), data_prefix=prefix, pipeline=LOAD_MAPS) | kwargs)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def annotate(root: Path, change) -> None:
    path = root / 'annotations' / 'instances_train.json'
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def label_file(root: Path, at: int) -> Path:
    return sorted((root / 'gtFine').rglob('*.png'))[at]


def test_sound_files_are_read_as_the_hosts_read_them(coco, cityscapes, warnings):
    samples = maps(cityscapes, pipeline=LOAD_MAPS[:2])
    theirs = mmseg.datasets.CityscapesDataset(
        data_root=str(cityscapes), data_prefix=dict(samples.data_prefix), pipeline=LOAD_MAPS[:2]
    )
    for at in range(NUMBER):
        assert np.array_equal(samples[at]['gt_seg_map'], theirs[at]['gt_seg_map'])
    assert len([boxes(coco)[at] for at in range(NUMBER)]) == NUMBER
    assert warnings() == []


@pytest.mark.parametrize('damage', [cut, lambda path: path.write_bytes(b''), Path.unlink])
def test_training_goes_on_without_a_bad_image_and_names_it(damage, cityscapes, warnings):
    dataset = maps(cityscapes)
    path = Path(dataset.get_data_info(4)['img_path'])
    damage(path)
    for at in range(NUMBER):
        assert dataset[at]['inputs'].shape == (3, 64, 64)
    assert len(warnings()) >= 1
    assert all(message.startswith(f'cannot read the sample {path}: ') for message in warnings())
    assert all(message.endswith('Training goes on without it') for message in warnings())


def test_a_cut_jpeg_is_bad_although_opencv_decodes_it(coco, warnings):
    dataset = boxes(coco)
    path = coco / 'train' / '000000000003.jpg'
    cut(path)
    assert dataset.prepare_data(2) is None
    assert warnings() == [
        f'cannot read the sample {path}: the file is truncated. Get the file again, or take it out of the data set. '
        'Training goes on without it'
    ]


def test_a_score_does_not_go_on_without_a_bad_image(coco):
    dataset = boxes(coco, test_mode=True)
    cut(coco / 'train' / '000000000003.jpg')
    assert dataset[1]['inputs'].shape == (3, 112, 144)
    with pytest.raises(ValueError, match=r'cannot read the sample .*000000000003.jpg: the file is truncated'):
        dataset[2]


def test_a_pipeline_that_reads_nothing_ends_training(coco):
    dataset = boxes(
        coco, pipeline=[dict(type='mmdet.LoadAnnotations', with_bbox=True), dict(type='mmdet.Resize', scale=8)]
    )
    with pytest.raises(ValueError, match=r'cannot read the sample .*Get the file again'):
        dataset[0]


def test_bad_samples_far_apart_never_end_training(coco, warnings):
    """More of them than are allowed in a row, with good ones between."""
    dataset = boxes(coco)
    cut(coco / 'train' / '000000000003.jpg')
    for _ in range(dataset.MOST_IN_A_ROW + 2):
        assert dataset.prepare_data(2) is None
        assert dataset.prepare_data(3) is not None
    assert len(warnings()) == dataset.MOST_IN_A_ROW + 2


@pytest.mark.parametrize(
    ('labels', 'expected'),
    [
        (np.full((128, 128), 11, np.uint8), r'holds the id 11, which is neither 0 to 10 nor 255'),
        (np.full((128, 127), 3, np.uint8), 'is 128 x 127 but its image is 128 x 128'),
    ],
)
def test_bad_label_images_are_named(labels, expected, cityscapes):
    path = label_file(cityscapes, 0)
    Image.fromarray(labels).save(path)
    for pipeline in (LOAD_MAPS, [LOAD_MAPS[0], dict(type='mmseg.Resize', scale=(64, 64)), *LOAD_MAPS[1::2]]):
        dataset = maps(cityscapes, pipeline=pipeline, test_mode=True)
        with pytest.raises(ValueError, match=f'its label image {path} {expected}'):
            dataset[0]


def test_ignored_pixels_are_no_bad_label(cityscapes):
    path = label_file(cityscapes, 0)
    Image.fromarray(np.full((128, 128), 255, np.uint8)).save(path)
    assert maps(cityscapes, test_mode=True)[0]['data_samples'].gt_sem_seg.data.unique().tolist() == [255]


FATAL = [
    (lambda c: c['annotations'][0].update(category_id=99), 'categor.*000000000001.jpg'),
    (lambda c: c['annotations'][0].update(image_id=99), 'image'),
    (lambda c: c.update(annotations=[], categories=c['categories'][1:]), 'class'),
    (lambda c: c['images'][2].update(file_name='nowhere.jpg'), 'nowhere.jpg'),
    (lambda c: c.pop('images'), 'images'),
]


@pytest.mark.parametrize(('change', 'expected'), FATAL)
def test_annotations_that_would_mislead_are_refused(change, expected, coco):
    annotate(coco, change)
    with pytest.raises(ValueError, match=rf'instances_train.json.*{expected}'):
        boxes(coco)


def test_a_file_that_is_no_json_is_named(coco):
    cut(coco / 'annotations' / 'instances_train.json')
    with pytest.raises(ValueError, match=r'instances_train.json is not a COCO annotation file'):
        boxes(coco)


@pytest.mark.parametrize('box', [[500, 500, 10, 10], [10, 10, 0, 5]])
def test_boxes_that_the_host_leaves_out_are_told(box, coco, warnings):
    number = len(boxes(coco).get_data_info(0)['instances'])
    annotate(coco, lambda content: content['annotations'][0].update(bbox=box))
    assert len(boxes(coco).get_data_info(0)['instances']) == number - 1
    assert len(warnings()) == 1
    assert '000000000001.jpg' in warnings()[0]


def test_images_in_a_bucket_are_not_looked_for(coco):
    prefix = dict(img='s3://bucket/train')
    assert len(boxes(coco, data_root=None, ann_file=str(coco / 'annotations/instances_train.json'), data_prefix=prefix))
    with pytest.raises(ValueError, match='is missing'):
        boxes(coco, data_prefix=dict(img='nowhere'))


def test_a_hidden_test_set_has_no_annotations(coco):
    annotate(coco, lambda content: content.pop('annotations'))
    assert len(boxes(coco, test_mode=True, pipeline=[])) == NUMBER


def test_a_class_that_never_occurs_and_an_image_without_objects(coco):
    annotate(coco, lambda c: c.update(annotations=[a for a in c['annotations'] if a['category_id'] != 4]))
    annotate(coco, lambda c: c.update(annotations=[a for a in c['annotations'] if a['image_id'] != 1]))
    dataset = boxes(coco)
    labels = {box['bbox_label'] for at in range(NUMBER) for box in dataset.get_data_info(at)['instances']}
    assert labels
    assert 3 not in labels
    assert max(labels) == 9  # those behind it keep their numbers
    assert len(dataset[0]['data_samples'].gt_instances) == 0


def test_published_names_are_the_hosts():
    assert len(CocoDataset.METAINFO['classes']) == 80
    assert len(CityscapesDataset.METAINFO['classes']) == 19
