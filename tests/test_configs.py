"""Contract: every config parses and builds, and each replaced one differs from its twin by its backbone only.

Oracles: the twin config; upstream's configs of the three host libraries with a one-line override.
"""

from pathlib import Path

import pytest
import torch
from conftest import randomise
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData, PixelData
from torch import nn

from repl_mm.replace import computing_layers

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(path for path in (ROOT / 'configs').glob('*/*.py') if not path.name.startswith('_'))
EVERY_4TH = dict(policy='interval', every=4)


def build(config: Config) -> nn.Module:
    init_default_scope(config.default_scope)
    if 'data_preprocessor' in config:
        config.model.setdefault('data_preprocessor', config.data_preprocessor)
    return MODELS.build(config.model)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_config_builds(path):
    config = Config.fromfile(path)
    model = build(config)
    assert bool(computing_layers(model)) == ('-repl' in path.stem)
    assert config.custom_hooks == [dict(type='repl_mm.CostHook')]


@pytest.mark.parametrize('path', [path for path in CONFIGS if '-repl' in path.stem], ids=lambda path: path.stem)
def test_twins_differ_by_the_backbone_only(path):
    config = Config.fromfile(path).to_dict()
    twin = Config.fromfile(path.with_name(path.name.replace('-repl', ''))).to_dict()
    ours, theirs = config['model'].pop('backbone'), twin['model'].pop('backbone')
    assert config == twin
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
        labels = PixelData(data=torch.randint(0, 19, (1, 64, 128)))
        samples.append(SegDataSample(gt_sem_seg=labels, metainfo=dict(img_shape=(64, 128), ori_shape=(64, 128))))
    return dict(inputs=[torch.randint(0, 255, (3, 64, 128), dtype=torch.uint8)] * 2, data_samples=samples)


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
        config.model.data_preprocessor.update(size=(64, 128))
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
        assert predictions[0].pred_sem_seg.data.shape == (1, 64, 128)
