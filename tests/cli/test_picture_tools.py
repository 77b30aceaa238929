"""Contract: pictures of predictions and of data sets show what they claim, where it is, and large enough to read.

Oracles: boxes, maps and classes set by hand; NumPy's enlargement and blend; scikit-learn's labels.
"""

import itertools
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from cli_helpers import run
from matplotlib.axes import Axes
from mmdet.models import SingleStageDetector
from mmengine.structures import InstanceData, PixelData
from mmseg.models import EncoderDecoder
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

ROOT = Path(__file__).parents[2]
NUMBERS = itertools.count()
HEIGHT, WIDTH, FACTOR = 40, 64, 12  # 12 is the least whole factor that makes 40 pixels 480
BOX = (10, 10, 30, 30)
ROAD, VEGETATION = (128, 64, 128), (107, 142, 35)  # classes 0 and 8 in CityScapes' own palette
CLASSIFIER = ROOT / 'configs' / 'demo' / 'resnet32_digits.py'
BACKBONE = """dict(
    type='repl_mm.ReplResNet', depth=34, base_channels=8, stem_channels=8, repl=dict(policy='interval', every=4)
)"""
DETECTOR = """
_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'
default_scope = 'mmdet'
model = dict(
    backbone=dict(_delete_=True, **{backbone}),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=8),
    bbox_head=dict(num_classes=1, in_channels=8, feat_channels=8, stacked_convs=1),
)
meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(128, 80)),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=meta_keys),
]
train_pipeline = [test_pipeline[0], test_pipeline[2], dict(type='PackDetInputs')]
data = dict(
    type='CocoDataset', data_root='{root}', ann_file='boxes.json', data_prefix=dict(img='leftImg8bit/train/town'),
    metainfo=dict(classes=('person',), palette=[(255, 0, 0)]),
)
train_dataloader = dict(dataset=dict(**data, pipeline=train_pipeline))
val_dataloader = test_dataloader = dict(dataset=dict(**data, pipeline=test_pipeline, test_mode=True))
"""
SEGMENTER = """
default_scope = 'mmseg'
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', mean=[120.0] * 3, std=[60.0] * 3),
    backbone=dict(norm_cfg=dict(type='SyncBN'), **{backbone}),
    decode_head=dict(type='FCNHead', in_channels=64, in_index=3, channels=8, num_convs=1, num_classes=19),
    test_cfg=dict(mode='whole'),
)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='CLAHE'),  # writes into the image
    dict(type='Resize', scale=(128, 80)),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_pipeline = [test_pipeline[0], test_pipeline[3], dict(type='RandomFlip', prob=1.0), test_pipeline[4]]
data = dict(
    type='CityscapesDataset', data_root='{root}',
    data_prefix=dict(img_path='leftImg8bit/train', seg_map_path='gtFine/train'),
)
train_dataloader = dict(dataset=dict(**data, pipeline=train_pipeline))
test_dataloader = dict(dataset=dict(**data, pipeline=test_pipeline, test_mode=True))
"""


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    """Three images of noise in CityScapes' tree, left half road and right half vegetation, each with a box in COCO's
    format."""
    root = tmp_path_factory.mktemp('scenes')
    images, labels = root / 'leftImg8bit' / 'train' / 'town', root / 'gtFine' / 'train' / 'town'
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(3):
        noise = rng.integers(100, 140, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(noise).save(images / f'{i}_leftImg8bit.png')
        Image.fromarray(halves().astype(np.uint8)).save(labels / f'{i}_gtFine_labelTrainIds.png')
    x, y, right, bottom = BOX
    box = dict(category_id=1, bbox=[x, y, right - x, bottom - y], area=400, iscrowd=0)
    listed = [dict(id=i, file_name=f'{i}_leftImg8bit.png', height=HEIGHT, width=WIDTH) for i in range(3)]
    boxes = [dict(**box, id=i + 1, image_id=i) for i in range(3)]
    content = dict(images=listed, annotations=boxes, categories=[dict(id=1, name='person')])
    (root / 'boxes.json').write_text(json.dumps(content))
    return root


def halves():
    return np.where(np.arange(WIDTH) < WIDTH // 2, 0, 8) * np.ones((HEIGHT, 1), dtype=int)


@pytest.fixture
def write(tmp_path, scenes):
    """Write a config. Each has a name of its own, as mmengine keeps what it built under the config's name."""

    def _write(text):
        path = tmp_path / f'config{next(NUMBERS)}.py'
        path.write_text(text.replace('{root}', str(scenes)).replace('{backbone}', BACKBONE))
        return path

    return _write


@pytest.fixture
def seed_checkpoint(tmp_path):
    def _write(config):
        out = tmp_path / f'seed{next(NUMBERS)}.pth'
        assert run('seed_checkpoint', config, out)[0] == 0
        return out

    return _write


@pytest.fixture
def texts(monkeypatch):
    """What is written into pictures."""
    found, write_text = [], Axes.text

    def record(self, x, y, text, *args, **kwargs):
        found.append(text)
        return write_text(self, x, y, text, *args, **kwargs)

    monkeypatch.setattr(Axes, 'text', record)
    return found


def read(path):
    with Image.open(path) as image:
        return np.asarray(image.convert('RGB'))


def enlarged(pixels, factor=FACTOR):
    return np.kron(pixels, np.ones((factor, factor, 1), dtype=pixels.dtype))


def blend(pixels, labels):
    """Half of the image, half of the palette."""
    colours = np.where(labels[..., None] == 0, ROAD, VEGETATION)
    return enlarged(np.trunc(pixels / 2 + colours / 2).astype(np.uint8))


def changed_area(picture, image):
    """Left, top, right and bottom of all pixels that differ."""
    assert picture.shape == image.shape
    rows, columns = np.nonzero((picture != image).any(axis=2))
    return np.array([columns.min(), rows.min(), columns.max(), rows.max()])


# Half of a line, which is 3 points wide at 100 dots per inch, on either side.
LINE = 3
IMAGES = 'leftImg8bit/train/town'


def test_boxes_are_drawn_where_they_are_predicted(write, seed_checkpoint, scenes, texts, tmp_path, monkeypatch):
    def predict(self, inputs, samples, rescale=True):
        for sample in samples:
            assert (sample.ori_shape, sample.img_shape) == ((HEIGHT, WIDTH), (80, 128))
            boxes = torch.tensor([BOX, (40.0, 5.0, 60.0, 35.0)])
            scores = torch.tensor([0.9, 0.2])
            sample.pred_instances = InstanceData(bboxes=boxes, scores=scores, labels=torch.tensor([0, 0]))
        return samples

    monkeypatch.setattr(SingleStageDetector, 'predict', predict)
    config, image = write(DETECTOR), scenes / IMAGES / '1_leftImg8bit.png'
    checkpoint = seed_checkpoint(config)
    for threshold, boxes, right in (((), 1, 30), (('--score-thr', '0.1'), 2, 60)):
        texts.clear()
        code, said, _ = run('image_demo', config, checkpoint, image, '--out-dir', tmp_path / 'out', *threshold)
        assert (code, said.splitlines()[-1]) == (0, f'Wrote 1 picture(s) to {tmp_path / "out"}')
        assert texts == ['person: 90.0', 'person: 20.0'][:boxes]
        area = changed_area(read(tmp_path / 'out' / '1_leftImg8bit.png'), enlarged(read(image)))
        expected = np.array([10, 10 if boxes == 1 else 5, right, 30 if boxes == 1 else 35]) * FACTOR
        np.testing.assert_allclose(area, expected, atol=LINE)
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['1_leftImg8bit.png']


def test_pictures_of_a_test_show_boxes_above_the_threshold(
    write, seed_checkpoint, scenes, texts, tmp_path, monkeypatch
):
    """On the right, beside the ground truth."""

    def predict(self, inputs, samples, rescale=True):
        for sample in samples:
            boxes, scores = torch.tensor([BOX, (40.0, 5.0, 60.0, 35.0)]), torch.tensor([0.9, 0.2])
            sample.pred_instances = InstanceData(bboxes=boxes, scores=scores, labels=torch.tensor([0, 0]))
        return samples

    monkeypatch.setattr(SingleStageDetector, 'predict', predict)
    evaluator = f"test_evaluator = dict(type='CocoMetric', ann_file='{scenes}/boxes.json')\ntest_cfg = dict()\n"
    evaluator += 'train_dataloader = val_dataloader = None\n'
    config = write(DETECTOR + evaluator)
    loader = 'test_dataloader.sampler.type=DefaultSampler', 'test_dataloader.sampler.shuffle=False'
    arguments = config, seed_checkpoint(config), '--work-dir', tmp_path, '--show-dir', tmp_path / 'out'
    for threshold, boxes in (((), 1), (('--show-score-thr', '0.1'), 2)):
        texts.clear()
        done = run('test', *arguments, *threshold, '--cfg-options', *loader)
        assert done.code == 0, done.err
        assert texts == 3 * ['person', *['person: 90.0', 'person: 20.0'][:boxes]]
        picture, width = read(tmp_path / 'out' / '1_leftImg8bit.png'), WIDTH * FACTOR
        image = enlarged(read(scenes / IMAGES / '1_leftImg8bit.png'))
        left, right = changed_area(picture[:, :width], image), changed_area(picture[:, width:], image)
        np.testing.assert_allclose(left, np.array(BOX) * FACTOR, atol=LINE)
        np.testing.assert_allclose(right[0], BOX[0] * FACTOR, atol=LINE)


def test_a_predicted_map_is_blended_with_its_image(write, seed_checkpoint, scenes, tmp_path, monkeypatch):
    def predict(self, inputs, samples):
        assert not self.training
        for sample in samples:
            sample.pred_sem_seg = PixelData(data=torch.from_numpy(halves())[None])
        return samples

    monkeypatch.setattr(EncoderDecoder, 'predict', predict)
    config, out = write(SEGMENTER), tmp_path / 'out'
    code, said, _ = run('image_demo', config, seed_checkpoint(config), scenes / IMAGES, '--out-dir', out)
    assert (code, said.splitlines()[-1]) == (0, f'Wrote 3 picture(s) to {out}')
    assert sorted(path.name for path in out.iterdir()) == [f'{i}_leftImg8bit.png' for i in range(3)]
    for path in out.iterdir():
        picture, expected = read(path), blend(read(scenes / IMAGES / path.name), halves())
        # The legend is in the upper right corner.
        left, _, _, bottom = changed_area(picture, expected)
        assert left > 0.7 * WIDTH * FACTOR
        assert bottom < 0.3 * HEIGHT * FACTOR


@pytest.mark.parametrize('text', [DETECTOR, SEGMENTER])
def test_pictures_of_a_model_as_it_is(text, write, seed_checkpoint, scenes, tmp_path):
    """The whole way with nothing set by hand, and with a checkpoint's classes in place of the config's."""
    config, out = write(text), tmp_path / 'out'
    checkpoint = torch.load(seed_checkpoint(config), weights_only=True)
    classes = 1 if text is DETECTOR else 19
    checkpoint['meta'] = dict(dataset_meta=dict(classes=['thing'] * classes, palette=[(9, 9, 9)] * classes))
    torch.save(checkpoint, tmp_path / 'with_meta.pth')
    arguments = config, tmp_path / 'with_meta.pth', scenes / IMAGES, '--out-dir', out, '--score-thr', '0'
    assert run('image_demo', *arguments)[0] == 0
    pictures = [read(path) for path in sorted(out.iterdir())]
    assert [picture.shape for picture in pictures] == [(HEIGHT * FACTOR, WIDTH * FACTOR, 3)] * 3
    if text is SEGMENTER:
        # Whatever the classes, their colour is the checkpoint's.
        noise = read(scenes / IMAGES / '0_leftImg8bit.png')
        bottom = np.s_[HEIGHT * FACTOR // 2 :]
        np.testing.assert_array_equal(pictures[0][bottom], enlarged(np.trunc(noise / 2 + 4.5).astype(np.uint8))[bottom])


@pytest.fixture
def seven(seed_checkpoint, tmp_path):
    """A checkpoint of a classifier that takes everything for a 7."""
    weights = torch.load(seed_checkpoint(CLASSIFIER), weights_only=True)
    weights['state_dict']['head.fc.weight'].zero_()
    weights['state_dict']['head.fc.bias'].copy_(20.0 * (torch.arange(10) == 7))
    torch.save(weights, tmp_path / 'seven.pth')
    return tmp_path / 'seven.pth'


def test_a_class_is_written_on_an_image_from_file(seven, texts, tmp_path):
    """The config's data set is in memory: its pipeline loads no image."""
    digit = np.rint(load_digits().images[0] * 15).astype(np.uint8)[..., None].repeat(3, axis=2)
    Image.fromarray(digit).save(tmp_path / 'digit.png')
    code, _, _ = run('image_demo', CLASSIFIER, seven, tmp_path / 'digit.png', '--out-dir', tmp_path / 'out')
    assert code == 0
    assert texts == ['Prediction: 7, 1.00 (7)']
    picture = read(tmp_path / 'out' / 'digit.png')
    assert picture.shape == (480, 480, 3)
    left, top, _, bottom = changed_area(picture, enlarged(digit, 60))
    assert (left, top) >= (1, 1)
    assert bottom < 60


def test_a_bad_image_is_named_and_the_others_go_on(seven, tmp_path):
    folder, out = tmp_path / 'images', tmp_path / 'out'
    folder.mkdir()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), dtype=np.uint8))
    for name in ('b.png', 'b.jpg', 'a.jpg', 'cut.jpg'):
        noise.save(folder / name)
    content = (folder / 'cut.jpg').read_bytes()
    (folder / 'cut.jpg').write_bytes(content[: len(content) // 2])
    assert cv2.imread(str(folder / 'cut.jpg')) is not None  # OpenCV does not mind
    (folder / 'text.bmp').write_text('no image')
    (folder / 'notes.txt').write_text('notes')
    code, said, stderr = run('image_demo', CLASSIFIER, seven, folder, '--out-dir', out)
    assert code == 1
    assert said.splitlines()[-1] == f'Wrote 3 picture(s) to {out}'
    errors = [line for line in stderr.splitlines() if line.startswith('error: ')]
    assert errors[0] == f'error: cannot read {folder / "cut.jpg"}: the file is truncated'
    assert errors[1].startswith(f'error: cannot read {folder / "text.bmp"}: ')
    assert len(errors) == 2
    # Two images of one name get a picture each.
    assert sorted(path.name for path in out.iterdir()) == ['a.png', 'b.jpg.png', 'b.png.png']


def test_images_in_folders_of_classes_are_found(seven, tmp_path):
    """As data sets of classes lie; a second call takes no pictures of the first for images."""
    root, out = tmp_path / 'images', tmp_path / 'images' / 'out'
    for name in ('cat/1.png', 'dog/1.png', 'dog/a/1.jpg', 'dog/a/1.png'):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (8, 8)).save(root / name)
    for _ in range(2):
        code, said, _ = run('image_demo', CLASSIFIER, seven, root, '--out-dir', out)
        assert (code, said.splitlines()[-1]) == (0, f'Wrote 4 picture(s) to {out}')
        pictures = sorted(str(path.relative_to(out)) for path in out.rglob('*.*'))
        assert pictures == ['cat/1.png', 'dog/1.png', 'dog/a/1.jpg.png', 'dog/a/1.png.png']


def test_other_files_are_skipped_with_a_word(seven, tmp_path, monkeypatch):
    (tmp_path / 'images').mkdir()
    Image.new('RGB', (8, 8)).save(tmp_path / 'images' / 'a.png')
    (tmp_path / 'images' / 'notes.txt').touch()
    words = []
    monkeypatch.setattr('builtins.print', lambda *args, **kwargs: words.append(args[0]))
    assert run('image_demo', CLASSIFIER, seven, tmp_path / 'images', '--out-dir', tmp_path / 'out')[0] == 0
    assert 'Skipped 1 of another kind: notes.txt' in words


def test_bad_input_of_the_demo_is_one_line(seven, write, seed_checkpoint, tmp_path):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'images').mkdir()
    image = tmp_path / 'images' / 'a.png'
    Image.new('RGB', (8, 8)).save(image)
    content = image.read_bytes()
    out = '--out-dir', tmp_path / 'out'
    bare = write("default_scope = 'mmyolo'\nmodel = test_dataloader = dict(type='Nix')")
    segmenter = write(SEGMENTER)
    for args, expected in (
        ((CLASSIFIER, seven, tmp_path / 'nowhere.png', *out), f'there is no image or folder {tmp_path}/nowhere.png'),
        ((CLASSIFIER, seven, tmp_path / 'empty', *out), f'there is no image in {tmp_path}/empty: give one'),
        ((CLASSIFIER, tmp_path / 'nix.pth', image, *out), f'there is no checkpoint {tmp_path}/nix.pth'),
        ((CLASSIFIER, seven, image, '--out-dir', image.parent), 'is the folder of the images: give another one'),
        ((CLASSIFIER, seven, image, *out, '--device', 'abacus'), 'cannot use --device abacus: '),
        ((bare, seven, image, *out), "default_scope is one of mmpretrain, mmdet, mmseg, got 'mmyolo'"),
        (
            (segmenter, add_key(seed_checkpoint(segmenter)), image, *out),
            'does not fit the model, of its keys are 1 left',
        ),
    ):
        code, _, stderr = run('image_demo', *args)
        assert code == 2
        assert expected in stderr.splitlines()[-1]
        assert stderr.splitlines()[-1].startswith('error: ')
    assert '(decode_head.extra): give the config' in stderr
    assert not (tmp_path / 'out').exists()
    assert image.read_bytes() == content


def add_key(checkpoint):
    weights = torch.load(checkpoint, weights_only=True)
    weights['state_dict']['decode_head.extra'] = torch.zeros(1)
    torch.save(weights, checkpoint)
    return checkpoint


def test_a_map_follows_the_flip_of_its_image(write, scenes, tmp_path):
    out = tmp_path / 'out'
    code, said, _ = run('browse_dataset', write(SEGMENTER), '--out-dir', out, '--number', 99)
    assert (code, said.splitlines()[-1]) == (0, f'Wrote 3 pictures to {out}')
    assert sorted(path.name for path in out.iterdir()) == ['train_0.png', 'train_1.png', 'train_2.png']
    for i in range(3):
        noise = read(scenes / IMAGES / f'{i}_leftImg8bit.png')
        left, _, _, bottom = changed_area(read(out / f'train_{i}.png'), blend(noise[:, ::-1], halves()[:, ::-1]))
        assert left > 0.7 * WIDTH * FACTOR
        assert bottom < 0.3 * HEIGHT * FACTOR


def test_boxes_follow_their_image(write, scenes, texts, tmp_path):
    """Also in validation, where upstream's pipelines load boxes behind the resizing of the image."""
    config, out = write(DETECTOR), tmp_path / 'out'
    for split in ('train', 'val'):
        assert run('browse_dataset', config, '--out-dir', out, '--split', split, '--number', 2)[0] == 0
    assert sorted(path.name for path in out.iterdir()) == ['train_0.png', 'train_2.png', 'val_0.png', 'val_2.png']
    assert texts == ['person'] * 4
    noise = read(scenes / IMAGES / '2_leftImg8bit.png')
    twice = enlarged(cv2.resize(noise, (128, 80)), FACTOR // 2)
    for name, image in (('train_2.png', enlarged(noise)), ('val_2.png', twice)):
        np.testing.assert_allclose(changed_area(read(out / name), image), np.array(BOX) * FACTOR, atol=LINE)


def test_a_data_set_in_memory(texts, tmp_path):
    """Oracle: scikit-learn's labels; the first and the last image of those that are not held out."""
    code, _, _ = run('browse_dataset', CLASSIFIER, '--out-dir', tmp_path / 'out', '--number', 2)
    assert code == 0
    labels = load_digits().target
    kept, _ = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    assert texts == [f'Ground truth: {labels[i]} ({labels[i]})' for i in (kept[0], kept[-1])]
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['train_0000.png', 'train_1436.png']
    assert read(tmp_path / 'out' / 'train_0000.png').shape == (480, 480, 3)


@pytest.mark.parametrize('corner', [(55, 2, 64, 12), (50, 36, 64, 40), (0, 0, 6, 6)])
def test_labels_end_inside_of_the_picture(corner, monkeypatch):
    """Oracle: matplotlib's own extent of the text as drawn."""
    from repl_mm.visualization import BoxVisualizer

    visualizer = BoxVisualizer()
    visualizer.set_image(np.zeros((480, 768, 3), dtype=np.uint8))
    visualizer.draw_texts('baseball glove: 97.3', torch.tensor(corner[:2]) * FACTOR, font_sizes=5)
    extent = visualizer.ax_save.texts[0].get_window_extent()
    assert 0 < extent.x0 < extent.x1 < 768
    assert 0 < extent.y0 < extent.y1 < 480
    assert extent.height > 12


def test_bad_input_of_browsing_is_one_line(write, tmp_path):
    config = write(DETECTOR)
    missing = 'train_dataloader.dataset.ann_file=nix.json'
    no_boxes = write(DETECTOR + "train_dataloader['dataset']['pipeline'].pop(1)\n")
    for args, expected in (
        ((config, '--number', 0), '--number is at least 1, got 0'),
        (
            (config, '--cfg-options', missing),
            'cannot load the train data, check train_dataloader in the config: No such',
        ),
        ((no_boxes,), 'the pipeline of train_dataloader loads no annotations: choose another --split'),
        ((write(SEGMENTER), '--split', 'val'), 'lacks val_dataloader'),
    ):
        code, _, stderr = run('browse_dataset', *args, '--out-dir', tmp_path / 'out')
        assert code == 2
        assert expected in stderr.splitlines()[-1]
    assert not list(tmp_path.glob('out/*'))
    assert 'nix.json' in run('browse_dataset', config, '--cfg-options', missing, '--out-dir', tmp_path / 'out')[2]
