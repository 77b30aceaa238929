"""Contract: RepL inside RetinaNet and DeepLabV3+ is the host's network but for the sites, and its scores are right.

Oracles: the host's ResNet with the same weights; sizes by hand; pycocotools on the written file; NumPy's confusion
matrix on the written images.
"""

import contextlib
import io
import itertools
import json
import os
import runpy
import sys
from pathlib import Path
from unittest import mock

import mmdet.models
import mmseg.models
import numpy as np
import pytest
import torch
from helpers import randomise
from matplotlib.axes import Axes
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from mmengine.structures import InstanceData, PixelData
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from repl_mm.datasets.digit_scenes import make_scenes, write_cityscapes, write_coco
from repl_mm.surgery import computing_layers

ROOT = Path(__file__).parents[2]
NUMBERS = itertools.count()
NAMES = {
    'mmdet': 'detection/retinanet_r50_fpn_8xb2-1x_coco.py',
    'mmseg': 'segmentation/deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024.py',
}
OURS = {'mmdet': 'repl_mm.ReplResNet', 'mmseg': 'repl_mm.ReplResNetV1c'}


def build(scope: str, **backbone) -> nn.Module:
    config = Config.fromfile(ROOT / 'configs' / NAMES[scope])
    config.model.backbone.update(init_cfg=None, **backbone)
    config = Config.fromstring(config.pretty_text.replace('SyncBN', 'BN'), '.py')
    if scope == 'mmseg':
        config.model.data_preprocessor.size = (64, 96)
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(config.model)


def boxes_of(*rows: list[float], size: tuple[int, int]) -> DetDataSample:
    instances = InstanceData(bboxes=torch.tensor(rows).reshape(-1, 4), labels=torch.arange(len(rows)))
    meta = dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0))
    return DetDataSample(gt_instances=instances, metainfo=meta)


def map_of(labels: torch.Tensor) -> mmseg.structures.SegDataSample:
    size = tuple(labels.shape)
    meta = dict(img_shape=size, ori_shape=size)
    return mmseg.structures.SegDataSample(gt_sem_seg=PixelData(data=labels[None]), metainfo=meta)


def batch(scope: str) -> dict:
    images = [torch.randint(0, 255, (3, 64, 96), dtype=torch.uint8) for _ in range(2)]
    if scope == 'mmdet':
        samples = [boxes_of([8, 8, 56, 40], size=(64, 96)), boxes_of([0, 0, 20, 60], [30, 2, 90, 60], size=(64, 96))]
    else:
        samples = [map_of(torch.randint(0, 19, (64, 96))) for _ in images]
    return dict(inputs=images, data_samples=samples)


def loss_of(model: nn.Module, data: dict) -> torch.Tensor:
    torch.manual_seed(0)  # dropout of the heads
    data = model.data_preprocessor(data, training=True)
    return model.parse_losses(model(**data, mode='loss'))[0]


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_without_sites_loss_and_gradients_are_the_hosts(scope):
    theirs = randomise(build(scope)).train()
    ours = build(scope, type=OURS[scope]).train()
    ours.load_state_dict(theirs.state_dict())
    assert type(ours.backbone) is not type(theirs.backbone)
    data = batch(scope)
    losses = [loss_of(model, data) for model in (theirs, ours)]
    for loss in losses:
        loss.backward()
    assert torch.equal(*losses)
    gradients = [{name: p.grad for name, p in model.named_parameters()} for model in (theirs, ours)]
    trained = [name for name, gradient in gradients[0].items() if gradient is not None]
    assert len(trained) > 100
    for name in gradients[0]:
        if name in trained:
            assert torch.equal(gradients[0][name], gradients[1][name]), name
        else:
            assert gradients[1][name] is None


@pytest.fixture(scope='module', params=['mmdet', 'mmseg'])
def backbone(request):
    """A scope and its backbone with sites, in eval mode."""
    scope = request.param
    return scope, build(scope, type=OURS[scope], repl=dict(policy='interval', every=4)).backbone.eval()


@pytest.mark.parametrize('size', [(64, 64), (96, 64), (75, 101), (33, 200)])
def test_feature_maps_at_rectangular_sizes(backbone, size):
    """By hand: each stride of 2 rounds up; D8 has none after the second stage."""
    scope, backbone = backbone
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, *size))
    strides = {'mmdet': (4, 8, 16, 32), 'mmseg': (4, 8, 8, 8)}[scope]
    assert [tuple(m.shape) for m in maps] == [
        (1, channels, *(-(-side // stride) for side in size))
        for channels, stride in zip((256, 512, 1024, 2048), strides, strict=True)
    ]


PYRAMIDS = {
    'detection/retinanet_vit-base-p16-repl_sfp_8xb2-1x_coco.py': (8, 16, 32, 64, 128),
    'segmentation/vit-base-p16-repl_upernet_4xb2-40k_cityscapes-512x1024.py': (4, 8, 16, 32),
}


@pytest.fixture(scope='module', params=PYRAMIDS)
def pyramid(request):
    """A model over a Vision Transformer, whose MLPs are made narrow, and the strides of its pyramid."""
    name = request.param
    config = Config.fromfile(ROOT / 'configs' / name)
    arch = dict(embed_dims=768, num_layers=12, num_heads=12, feedforward_channels=32)
    config.model.backbone.update(arch=arch, init_cfg=None)
    config = Config.fromstring(config.pretty_text.replace('SyncBN', 'BN'), '.py')
    with DefaultScope.overwrite_default_scope(config.default_scope):
        return MODELS.build(config.model).eval(), PYRAMIDS[name]


@pytest.mark.parametrize('size', [(64, 64), (128, 64), (64, 192), (192, 128)])
def test_pyramids_over_a_vision_transformer(pyramid, size):
    model, expected = pyramid
    with torch.no_grad():
        maps = model.extract_feat(torch.randn(1, 3, *size))
    assert [tuple(m.shape[2:]) for m in maps] == [tuple(-(-s // stride) for s in size) for stride in expected]


def test_a_position_embedding_is_resized_to_a_rectangle():
    """A horizontal ramp stays one, and a model of that size from the start does the same."""
    options = dict(type='repl_mm.ReplViT', arch='deit-tiny', patch_size=16, out_type='featmap')
    with DefaultScope.overwrite_default_scope('mmseg'):
        square = MODELS.build(dict(options, img_size=64)).eval()
        wide = MODELS.build(dict(options, img_size=(64, 128))).eval()
    grid = torch.linspace(0, 1, 4).expand(4, 4)[..., None].expand(4, 4, 192).reshape(1, 16, 192)
    with torch.no_grad():
        square.pos_embed[:, 1:] = grid
        wide.load_state_dict({k: v for k, v in square.state_dict().items() if k != 'pos_embed'}, strict=False)
        wide.pos_embed[:, :1] = square.pos_embed[:, :1]
        resized = nn.functional.interpolate(
            grid.reshape(1, 4, 4, 192).permute(0, 3, 1, 2), size=(4, 8), mode='bicubic', align_corners=False
        )
        wide.pos_embed[:, 1:] = resized.flatten(2).transpose(1, 2)
        image = torch.randn(1, 3, 64, 128)
        torch.testing.assert_close(square(image)[0], wide(image)[0], rtol=1e-5, atol=1e-5)


def test_batches_of_mixed_sizes_and_images_without_objects():
    """They train, and boxes lie within their own image, whatever it was padded to."""
    model = randomise(build('mmdet', type=OURS['mmdet'], repl=dict(policy='interval', every=4)))
    sizes = [(64, 96), (96, 64)]
    samples = [boxes_of([8, 8, 56, 40], size=sizes[0]), boxes_of(size=sizes[1])]
    images = [torch.randint(0, 255, (3, *size), dtype=torch.uint8) for size in sizes]
    loss = loss_of(model.train(), dict(inputs=images, data_samples=samples))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)

    model.test_cfg.score_thr = 0.0
    model.bbox_head.test_cfg.score_thr = 0.0
    with torch.no_grad():
        found = model.eval().test_step(dict(inputs=images, data_samples=samples))
    for sample, (height, width) in zip(found, sizes, strict=True):
        boxes = sample.pred_instances.bboxes
        assert len(boxes) > 0
        assert boxes.min() >= 0
        assert (boxes <= torch.tensor([width, height, width, height])).all()


def test_only_background_has_a_loss():
    model = build('mmdet', type=OURS['mmdet']).train()
    losses = model(
        **model.data_preprocessor(dict(inputs=[torch.zeros(3, 64, 64)], data_samples=[boxes_of(size=(64, 64))]), True),
        mode='loss',
    )
    assert sum(losses['loss_cls']) > 0
    assert sum(losses['loss_bbox']) == 0


# --- Scores ---


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp('scenes')
    for name, write in (('coco', write_coco), ('cityscapes', write_cityscapes)):
        for split in ('train', 'val'):
            write(root / name, make_scenes(split=split, number=9), split=split)
    return root


def demo(scenes: Path, tmp_path: Path, name: str, **settings) -> Path:
    """A config file of a demo, over other scenes."""
    config = Config.fromfile(ROOT / 'configs' / 'demo' / name)
    text = config.pretty_text.replace('data/digits', str(scenes))
    path = tmp_path / f'config{next(NUMBERS)}.py'
    path.write_text(text)
    return path


def run(tool: str, *args: object) -> None:
    with (
        mock.patch.object(sys, 'argv', [tool, *map(str, args)]),
        mock.patch.dict(os.environ),
        DefaultScope.overwrite_default_scope('mmengine'),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        runpy.run_path(str(ROOT / 'tools' / tool), run_name='__main__')


def weights(config: Path, tmp_path: Path) -> Path:
    run('seed_checkpoint.py', config, tmp_path / 'seed.pth')
    return tmp_path / 'seed.pth'


def scores(work_dir: Path) -> dict[str, float]:
    return json.loads(next(work_dir.glob('2*/2*.json')).read_text())


def noisy_boxes(self, inputs, samples, **kwargs):
    """The ground truth, moved and partly of another class, under scores of no meaning."""
    rng = np.random.default_rng(len(samples))
    for sample in samples:
        truth = sample.gt_instances
        boxes = truth.bboxes.repeat(2, 1)
        boxes = boxes + torch.from_numpy(rng.normal(scale=2, size=boxes.shape)).float()
        labels = truth.labels.repeat(2)
        labels[rng.random(len(labels)) < 0.2] = 3
        found = torch.from_numpy(rng.random(len(labels))).float()
        sample.pred_instances = InstanceData(bboxes=boxes, labels=labels, scores=found)
    return samples


def test_the_score_of_boxes_is_that_of_pycocotools(scenes, tmp_path):
    config = demo(scenes, tmp_path, 'retinanet_r34_fpn_digits.py')
    out = tmp_path / 'predictions.bbox.json'
    with mock.patch.object(mmdet.models.SingleStageDetector, 'predict', noisy_boxes):
        run('test.py', config, weights(config, tmp_path), '--work-dir', tmp_path / 'work', '--out', out)
    found = scores(tmp_path / 'work')

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(scenes / 'coco' / 'annotations' / 'instances_val.json'))
        evaluation = COCOeval(truth, truth.loadRes(str(out)), 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert 0.05 < evaluation.stats[0] < 0.95
    for key, expected in zip(('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m'), evaluation.stats, strict=False):
        assert found[f'coco/bbox_{key}'] == pytest.approx(expected, abs=5.1e-4)  # written with three digits
    # Per class: the mean over thresholds and recalls; precision is (thresholds, recalls, classes, areas, limits).
    for digit in range(10):
        precision = evaluation.eval['precision'][:, :, digit, 0, -1]
        precision = precision[precision > -1]
        if precision.size:
            assert found[f'coco/{digit}_precision'] == pytest.approx(precision.mean(), abs=5.1e-4)
        else:
            assert np.isnan(found[f'coco/{digit}_precision'])  # it never occurs
    assert any(np.isnan(value) for value in found.values())


def test_the_score_of_maps_is_that_of_a_confusion_matrix(scenes, tmp_path):
    def noisy_map(self, inputs, samples):
        rng = np.random.default_rng(0)
        for sample in samples:
            labels = sample.gt_sem_seg.data.clone()
            wrong = torch.from_numpy(rng.random(labels.shape) < 0.3)
            labels[wrong] = torch.from_numpy(rng.integers(0, 11, int(wrong.sum()))).to(labels)
            sample.pred_sem_seg = PixelData(data=labels)
        return samples

    config = demo(scenes, tmp_path, 'deeplabv3plus_r34-d8_digits.py')
    out = tmp_path / 'maps'
    with mock.patch.object(mmseg.models.EncoderDecoder, 'predict', noisy_map):
        run('test.py', config, weights(config, tmp_path), '--work-dir', tmp_path / 'work', '--out', out)
    found = scores(tmp_path / 'work')

    confusion = np.zeros((11, 11))
    labels = sorted((scenes / 'cityscapes' / 'gtFine' / 'val').rglob('*.png'))
    assert len(labels) == len(list(out.iterdir())) == 9
    for path in labels:
        predicted = np.array(Image.open(out / path.name.replace('gtFine_labelTrainIds', 'leftImg8bit')))
        np.add.at(confusion, (np.array(Image.open(path)).ravel(), predicted.ravel()), 1)
    correct = confusion.diagonal()
    with np.errstate(invalid='ignore'):
        union = confusion.sum(0) + confusion.sum(1) - correct
        expected = dict(
            aAcc=correct.sum() / confusion.sum(),
            mIoU=np.nanmean(correct / union),
            mAcc=np.nanmean(correct / confusion.sum(1)),
        )
    assert 0.1 < expected['mIoU'] < 0.9
    for key, value in expected.items():
        assert found[key] == pytest.approx(100 * value, abs=5.1e-3)  # written with two digits


@pytest.mark.parametrize(
    ('name', 'out', 'message'),
    [
        ('retinanet_r34_fpn_digits.py', 'boxes.json', "ends in .pkl, or in .bbox.json for COCO's form, got"),
        ('deeplabv3plus_r34-d8_digits.py', 'maps.png', 'ends in .pkl, or is a folder for label images, got'),
        ('resnet32_digits.py', 'classes.bbox.json', 'ends in .pkl, got'),
    ],
)
def test_other_forms_of_predictions_are_refused(name, out, message, scenes, tmp_path, capsys):
    with pytest.raises(SystemExit, match='2'):
        run('test.py', demo(scenes, tmp_path, name), 'any.pth', '--out', tmp_path / out)
    assert message in capsys.readouterr().err


# --- Training ---


@pytest.mark.parametrize('name', ['retinanet_r34-repl_fpn_digits.py', 'deeplabv3plus_r34-d8-repl_digits.py'])
def test_a_plain_checkpoint_trains_under_norm_eval(name, scenes, tmp_path):
    """The sites' norms, which it does not hold, learn their statistics; all others keep the checkpoint's."""
    config = Config.fromfile(demo(scenes, tmp_path, name))
    plain = Config.fromfile(demo(scenes, tmp_path, name.replace('-repl', '')))
    with DefaultScope.overwrite_default_scope(config.default_scope):
        checkpoint = randomise(MODELS.build(plain.model.backbone)).state_dict()
    torch.save(checkpoint, tmp_path / 'plain.pth')
    config.model.backbone.update(
        norm_eval=True, frozen_stages=1, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'plain.pth'))
    )
    config.train_dataloader.batch_size = 3
    config.merge_from_dict({'work_dir': str(tmp_path / 'work'), 'default_hooks.checkpoint': None})
    short = dict(max_epochs=1) if config.train_cfg.by_epoch else dict(max_iters=3)
    config.train_cfg = dict(by_epoch=config.train_cfg.by_epoch, val_interval=99, **short)
    config.param_scheduler = None
    with DefaultScope.overwrite_default_scope(config.default_scope):
        runner = Runner.from_cfg(config)
        runner.train()
    backbone = runner.model.backbone
    sites = computing_layers(backbone)
    assert len(sites) == 4
    statistics = {key for key in backbone.state_dict() if key.endswith(('running_mean', 'running_var'))}
    for key in statistics & set(checkpoint):
        assert torch.equal(backbone.state_dict()[key], checkpoint[key]), key
    for site in sites[1:]:  # the first stage is frozen
        assert site.norm.num_batches_tracked == 3
        assert site.norm.running_mean.abs().max() > 1e-3
        assert site.norm.running_var.ne(1).all()


# --- Pictures of runs ---


def finished(config: Path, folder: Path) -> Path:
    """What training leaves that the pictures need: a config, a checkpoint and the pointer to it."""
    folder.mkdir()
    run('seed_checkpoint.py', config, folder / 'epoch_1.pth')
    (folder / 'config.py').write_text(config.read_text())
    (folder / 'last_checkpoint').write_text(str(folder / 'epoch_1.pth'))
    return folder


def test_a_grid_has_a_row_per_image_and_a_column_per_run(scenes, tmp_path, monkeypatch):
    """Oracles: the ground truth as the prediction draws the same picture, an empty map draws another."""
    config = demo(scenes, tmp_path, 'deeplabv3plus_r34-d8_digits.py')
    runs = [finished(config, tmp_path / name) for name in ('right', 'wrong')]
    answers = itertools.cycle([1] * 3 + [0] * 3)

    def predict(self, inputs, samples):
        for sample in samples:
            sample.pred_sem_seg = PixelData(data=sample.gt_sem_seg.data * next(answers))
        return samples

    drawn = []
    monkeypatch.setattr(mmseg.models.EncoderDecoder, 'predict', predict)
    imshow = Axes.imshow

    def record(self, picture, **kwargs):
        if not kwargs:  # the hosts' visualizers say where
            drawn.append(np.array(picture))
        return imshow(self, picture, **kwargs)

    monkeypatch.setattr(Axes, 'imshow', record)
    run('show_predictions.py', *runs, '--number', 3, '--out', tmp_path / 'grid.png')
    assert (tmp_path / 'grid.png').read_bytes().startswith(b'\x89PNG')
    images = sorted((scenes / 'cityscapes' / 'leftImg8bit' / 'val').rglob('*.png'))
    for row, at in enumerate((0, 4, 8)):  # spread evenly over nine images
        image, truth, right, wrong = drawn[4 * row : 4 * row + 4]
        assert np.array_equal(image, np.array(Image.open(images[at])))
        assert np.array_equal(truth, right)
        assert not np.array_equal(truth, wrong)
    # No line between the first picture and the last is white but for the gaps between rows.
    grid = np.array(Image.open(tmp_path / 'grid.png').convert('L'))
    white = (grid > 250).all(axis=1)
    first, last = np.flatnonzero((grid < 250).mean(axis=1) > 0.8)[[0, -1]]
    assert white[first:last].sum() <= 2 * 16
    columns = (grid[first:last] > 250).all(axis=0)
    assert columns.sum() <= 5 * 16


class Touch:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ('name', 'change', 'message'),
    [
        ('resnet32_digits.py', None, 'is a run of mmpretrain: give runs of mmdet or mmseg'),
        ('retinanet_r34_fpn_digits.py', 'last_checkpoint', 'holds no last_checkpoint'),
        ('retinanet_r34_fpn_digits.py', 'config.py', 'holds no config'),
        ('retinanet_r34_fpn_digits.py', 'epoch_1.pth', 'epoch_1.pth'),
        ('retinanet_r34_fpn_digits.py', 'code', 'epoch_1.pth'),
    ],
)
def test_runs_that_cannot_be_shown(name, change, message, scenes, tmp_path, capsys):
    folder = finished(demo(scenes, tmp_path, name), tmp_path / 'run')
    if change == 'code':
        torch.save(dict(state_dict=Touch(tmp_path / 'touched')), folder / 'epoch_1.pth')
    elif change:
        (folder / change).unlink()
    with pytest.raises(SystemExit, match='2'):
        run('show_predictions.py', folder, '--out', tmp_path / 'grid.png')
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'grid.png').exists()
    assert not (tmp_path / 'touched').exists()
