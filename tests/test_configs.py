"""Contract: every config parses and builds, and each replaced one differs from its twin by its backbone only.

Oracles: the twin config; upstream's configs of the three host libraries with a one-line override.
"""

import copy
from functools import cache
from pathlib import Path

import pytest
import torch
from helpers import randomise
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from mmengine.structures import InstanceData, PixelData
from torch import nn

from repl_mm.analysis.cost import RealLinspace
from repl_mm.surgery import computing_layers

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(
    path
    for path in (ROOT / 'configs').glob('*/*.py')
    if not path.name.startswith('_') and path.parent.name != 'studies'  # those are no configs
)
DENSE = [path for path in CONFIGS if path.parent.name in ('detection', 'segmentation')]
EVERY_4TH = dict(policy='interval', every=4)


@cache
def parsed(path: Path) -> Config:
    """A config as its file gives it; whoever changes it takes a copy."""
    return Config.fromfile(path)


def build(config: Config) -> nn.Module:
    init_default_scope(config.default_scope)
    if 'data_preprocessor' in config:
        config.model.setdefault('data_preprocessor', config.data_preprocessor)
    return MODELS.build(config.model)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_config_builds(path):
    config = copy.deepcopy(parsed(path))
    # Without memory for its weights: initialising those takes longer than all the rest.
    with torch.device('meta'), RealLinspace():
        model = build(config)
    assert bool(computing_layers(model)) == ('-repl' in path.stem)
    assert config.custom_hooks == [dict(type='repl_mm.CostHook')]


RECIPES = {
    # The paper, section IV: COCO with 4 GPUs, batch 8, Adam 4e-5, 100 epochs.
    'retinanet_r50_fpn_4xb2-100e_coco': dict(
        optimizer=('Adam', 4e-5), batch=2, max_epochs=100, data='repl_mm.CocoDataset'
    ),
    # mmdet's own 1x: 8 GPUs, batch 16, SGD 0.01, 12 epochs.
    'retinanet_r101-repl_fpn_8xb2-1x_coco': dict(
        optimizer=('SGD', 0.01), batch=2, max_epochs=12, data='repl_mm.CocoDataset'
    ),
    # mmdet's own 1x again, with the optimizer of its RetinaNet on Swin-T.
    'retinanet_swin-tiny-repl_fpn_8xb2-1x_coco': dict(
        optimizer=('SGD', 0.01), batch=2, max_epochs=12, data='repl_mm.CocoDataset'
    ),
    # The paper: one GPU, batch 16, SGD 0.1, 30k iterations, crop 768.
    'deeplabv3_r50-d8_1xb16-30k_cityscapes-768x768': dict(
        optimizer=('SGD', 0.1), batch=16, max_iters=30000, crop=(768, 768), data='repl_mm.CityscapesDataset'
    ),
    # mmseg's own, with the optimizer of its UPerNet on Swin-T.
    'swin-tiny-repl_upernet_4xb2-40k_cityscapes-512x1024': dict(
        optimizer=('AdamW', 6e-5), batch=2, max_iters=40000, crop=(512, 1024), data='repl_mm.CityscapesDataset'
    ),
    # mmseg's own.
    'deeplabv3plus_r101-d8-repl_4xb2-40k_cityscapes-512x1024': dict(
        optimizer=('SGD', 0.01), batch=2, max_iters=40000, crop=(512, 1024), data='repl_mm.CityscapesDataset'
    ),
}


@pytest.mark.parametrize(('name', 'recipe'), RECIPES.items(), ids=str)
def test_dense_recipes_are_the_published_ones(name, recipe):
    config = parsed(next(path for path in DENSE if path.stem == name))
    optimizer = config.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr) == recipe['optimizer']
    assert config.train_dataloader.batch_size == recipe['batch']
    for key in ('max_epochs', 'max_iters'):
        assert config.train_cfg.get(key) == recipe.get(key)
    for loader in ('train', 'val', 'test'):
        assert config[f'{loader}_dataloader'].dataset.type == recipe['data']
    if 'crop' in recipe:
        [crop] = [step for step in config.train_dataloader.dataset.pipeline if step.type == 'RandomCrop']
        assert crop.crop_size == config.model.data_preprocessor['size'] == recipe['crop']
    flips = [step for step in config.tta_pipeline[-1].transforms if any(t.type == 'RandomFlip' for t in step)]
    assert [transform.prob for transform in flips[0]] == [0.0, 1.0]


@pytest.mark.parametrize('path', [path for path in CONFIGS if '-repl' in path.stem], ids=lambda path: path.stem)
def test_twins_differ_by_the_backbone_only(path):
    config, twin = (parsed(p).to_dict() for p in (path, path.with_name(path.name.replace('-repl', ''))))
    ours, theirs = config['model'].pop('backbone'), twin['model'].pop('backbone')
    assert config == twin
    # A fine-tuned network starts from one of its own kind.
    if '_finetune_' in path.stem:
        checkpoints = [backbone['init_cfg'].pop('checkpoint') for backbone in (ours, theirs)]
        assert checkpoints == [f'work_dirs/vit-small-p16{kind}_4xb256-90e_in1k/epoch_90.pth' for kind in ('-repl', '')]
    assert 'repl' in ours
    assert {k: v for k, v in ours.items() if k not in ('type', 'repl')} == {
        k: v for k, v in theirs.items() if k != 'type'
    }


def classification_batch(model: nn.Module) -> dict:
    from mmpretrain.structures import DataSample

    return dict(
        inputs=torch.randint(0, 255, (2, 3, 64, 64)), data_samples=[DataSample().set_gt_label(i) for i in range(2)]
    )


def detection_batch(model: nn.Module) -> dict:
    from mmdet.structures import DetDataSample

    samples = []
    for _ in range(2):
        boxes = InstanceData(bboxes=torch.tensor([[8.0, 8.0, 56.0, 40.0]]), labels=torch.tensor([3]))
        meta = dict(img_shape=(64, 96), ori_shape=(64, 96), scale_factor=(1.0, 1.0), batch_input_shape=(64, 96))
        samples.append(DetDataSample(gt_instances=boxes, metainfo=meta))
    return dict(inputs=[torch.randint(0, 255, (3, 64, 96), dtype=torch.uint8)] * 2, data_samples=samples)


def segmentation_batch(model: nn.Module) -> dict:
    from mmseg.structures import SegDataSample

    samples = []
    for _ in range(2):
        labels = PixelData(data=torch.randint(0, 19, (1, 32, 64)))
        samples.append(SegDataSample(gt_sem_seg=labels, metainfo=dict(img_shape=(32, 64), ori_shape=(32, 64))))
    return dict(inputs=[torch.randint(0, 255, (3, 32, 64), dtype=torch.uint8)] * 2, data_samples=samples)


BATCHES = dict(mmdet=detection_batch, mmseg=segmentation_batch)


@pytest.mark.parametrize('path', DENSE, ids=lambda path: path.stem)
def test_a_step_of_each_dense_recipe(path):
    """Forward and backward at a small size, with the recipe's own optimizer; every trainable weight gets a gradient."""
    config = copy.deepcopy(parsed(path))
    config.model.backbone.init_cfg = None
    if config.default_scope == 'mmseg':
        config.model.data_preprocessor.size = (32, 64)
    model = revert_sync_batchnorm(randomise(build(config))).train()
    with DefaultScope.overwrite_default_scope(config.default_scope):
        optimizer = build_optim_wrapper(model, config.optim_wrapper)
    data = model.data_preprocessor(BATCHES[config.default_scope](model), training=True)
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    assert loss.isfinite()
    optimizer.backward(loss)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, p in trained.items() if p.grad is None or not p.grad.isfinite().all()] == []
    before = {name: p.detach().clone() for name, p in trained.items()}
    optimizer.step()
    moved = [name for name, p in trained.items() if p.ne(before[name]).any()]
    assert len(moved) > 0.9 * len(trained)


UPSTREAM = {
    'mmpretrain::resnet/resnet50_8xb32_in1k.py': (
        dict(type='repl_mm.ReplResNet', repl=EVERY_4TH),
        classification_batch,
    ),
    'mmpretrain::vision_transformer/vit-base-p32_64xb64_in1k.py': (
        dict(type='repl_mm.ReplViT', img_size=64, repl=EVERY_4TH | dict(mlp_fusion=True)),
        classification_batch,
    ),
    'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py': (
        dict(type='repl_mm.ReplResNet', repl=EVERY_4TH, init_cfg=None),
        detection_batch,
    ),
    'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024.py': (
        dict(type='repl_mm.ReplResNetV1c', repl=EVERY_4TH),
        segmentation_batch,
    ),
}


@pytest.mark.parametrize('name', UPSTREAM)
def test_an_upstream_config_with_another_backbone_trains_and_evaluates(name):
    override, batch = UPSTREAM[name]
    config = get_config(name)
    config.model.pop('pretrained', None)
    config.model.backbone.update(override)
    if config.default_scope == 'mmseg':
        config.model.data_preprocessor.update(size=(32, 64))
        config = Config.fromstring(config.pretty_text.replace('SyncBN', 'BN'), '.py')
    model = randomise(build(config).train())
    layers = computing_layers(model)
    assert layers
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)

    losses = model(**model.data_preprocessor(batch(model), training=True), mode='loss')
    loss, _ = model.parse_losses(losses)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.abs().sum() > 0 for layer in layers for p in layer.parameters())
    before = layers[0].alpha.clone()
    optimizer.step()
    assert layers[0].alpha.ne(before).any()

    model.eval()
    with torch.no_grad():
        predictions = model(**model.data_preprocessor(batch(model)), mode='predict')
    assert len(predictions) == 2
    if config.default_scope == 'mmpretrain':
        assert predictions[0].pred_score.sum().isclose(torch.tensor(1.0))
    elif config.default_scope == 'mmdet':
        assert predictions[0].pred_instances.bboxes.shape[1] == 4
    else:
        assert predictions[0].pred_sem_seg.data.shape == (1, 32, 64)
