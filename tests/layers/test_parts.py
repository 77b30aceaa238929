"""Contract: a reader lends what its block computes with, for every class that it stands in the table for.

Oracles: the block itself, against its residual branches put together of the parts.
"""

import importlib
from collections.abc import Callable

import mmdet.models.backbones.resnet as mmdet_resnet
import mmdet.models.backbones.swin as mmdet_swin
import mmpretrain.models.backbones.resnet as mmpretrain_resnet
import mmpretrain.models.backbones.swin_transformer as mmpretrain_swin
import mmpretrain.models.backbones.vision_transformer as mmpretrain_vit
import mmseg.models.backbones.resnet as mmseg_resnet
import mmseg.models.backbones.swin as mmseg_swin
import mmseg.models.backbones.vit as mmseg_vit
import pytest
import timm.models.resnet as timm_resnet
import timm.models.swin_transformer as timm_swin
import timm.models.vision_transformer as timm_vit
import torch
import torchvision.models.resnet as torchvision_resnet
import torchvision.models.swin_transformer as torchvision_swin
import torchvision.models.vision_transformer as torchvision_vit
from helpers import randomise
from torch import nn

from repl_mm.backbones import stochastic_depth
from repl_mm.backbones.language_model import CausalLayer
from repl_mm.layers import AdaptiveBlock, read
from repl_mm.layers import parts as table

TOKENS, GRID, MAP = (2, 16, 24), (2, 4, 4, 24), (2, 32, 6, 5)


def hw(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return block(x, (4, 4))


def plain(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return block(x)


# The class in the table -> an instance, and the shape of its input.
RESIDUAL: dict[str, Callable[[], nn.Module]] = {
    'mmpretrain.models.backbones.resnet.BasicBlock': lambda: mmpretrain_resnet.BasicBlock(32, 32),
    'mmpretrain.models.backbones.resnet.Bottleneck': lambda: mmpretrain_resnet.Bottleneck(32, 32),
    'repl_mm.layers.adaptive.AdaptiveBlock': lambda: AdaptiveBlock(mmpretrain_resnet.BasicBlock(32, 32)),
    'mmseg.models.backbones.resnet.BasicBlock': lambda: mmseg_resnet.BasicBlock(32, 32),
    'mmseg.models.backbones.resnet.Bottleneck': lambda: mmseg_resnet.Bottleneck(32, 8),
    'mmdet.models.backbones.resnet.BasicBlock': lambda: mmdet_resnet.BasicBlock(32, 32),
    'mmdet.models.backbones.resnet.Bottleneck': lambda: mmdet_resnet.Bottleneck(32, 8),
    'repl_mm.backbones.stochastic_depth.SkippableBlock': lambda: stochastic_depth.SkippableBottleneck(32, 8),
    'torchvision.models.resnet.BasicBlock': lambda: torchvision_resnet.BasicBlock(32, 32),
    'torchvision.models.resnet.Bottleneck': lambda: torchvision_resnet.Bottleneck(32, 8),
    'timm.models.resnet.BasicBlock': lambda: timm_resnet.BasicBlock(32, 32),
    'timm.models.resnet.Bottleneck': lambda: timm_resnet.Bottleneck(32, 8),
}
TRANSFORMER = {
    'mmpretrain.models.backbones.vision_transformer.TransformerEncoderLayer': (
        lambda: mmpretrain_vit.TransformerEncoderLayer(24, 3, 48),
        TOKENS,
        plain,
    ),
    'mmseg.models.backbones.vit.TransformerEncoderLayer': (
        lambda: mmseg_vit.TransformerEncoderLayer(24, 3, 48),
        TOKENS,
        plain,
    ),
    'mmpretrain.models.backbones.swin_transformer.SwinBlock': (
        lambda: mmpretrain_swin.SwinBlock(24, 3, window_size=2),
        TOKENS,
        hw,
    ),
    'mmdet.models.backbones.swin.SwinBlock': (lambda: mmdet_swin.SwinBlock(24, 3, 48, window_size=2), TOKENS, hw),
    'mmseg.models.backbones.swin.SwinBlock': (lambda: mmseg_swin.SwinBlock(24, 3, 48, window_size=2), TOKENS, hw),
    'torchvision.models.vision_transformer.EncoderBlock': (
        lambda: torchvision_vit.EncoderBlock(3, 24, 48, 0.0, 0.0),
        TOKENS,
        plain,
    ),
    'torchvision.models.swin_transformer.SwinTransformerBlock': (
        lambda: torchvision_swin.SwinTransformerBlock(24, 3, [2, 2], [0, 0]),
        GRID,
        plain,
    ),
    'timm.models.vision_transformer.Block': (lambda: timm_vit.Block(24, 3), TOKENS, plain),
    'timm.models.swin_transformer.SwinTransformerBlock': (
        lambda: timm_swin.SwinTransformerBlock(24, (4, 4), num_heads=3, window_size=2),
        GRID,
        plain,
    ),
    'torch.nn.modules.transformer.TransformerEncoderLayer': (
        lambda: nn.TransformerEncoderLayer(24, 3, 48, norm_first=True, batch_first=True, activation='gelu'),
        TOKENS,
        plain,
    ),
    'repl_mm.backbones.language_model.CausalLayer': (lambda: CausalLayer(24, 3, 48), TOKENS, plain),
}
OURS = [name for name in table.READERS if not name.startswith('test_')]


@pytest.mark.parametrize('name', OURS)
def test_every_name_still_is_a_class_with_a_forward_of_its_own(name):
    module, _, cls = name.rpartition('.')
    assert 'forward' in vars(getattr(importlib.import_module(module), cls))
    assert name in RESIDUAL or name in TRANSFORMER


@pytest.mark.parametrize('name', RESIDUAL)
def test_a_residual_block_computes_with_its_parts(name):
    block = randomise(RESIDUAL[name]()).eval()
    assert table.find_reader(block) is table.READERS[name]
    parts = read(block)
    x = torch.randn(MAP)
    out = x
    with torch.no_grad():
        for number, (conv, norm) in enumerate(zip(parts.convs, parts.norms, strict=True), start=1):
            out = norm(conv(out))
            out = out if number == len(parts.convs) else parts.activation(out)
        torch.testing.assert_close(block(x), parts.activation(x + out))


@pytest.mark.parametrize('name', TRANSFORMER)
def test_a_transformer_block_computes_with_its_parts(name):
    build, shape, call = TRANSFORMER[name]
    block = randomise(build()).eval()
    assert table.find_reader(block) is table.READERS[name]
    parts = read(block)
    assert parts.num_heads == 3
    fc1, fc2 = parts.mlp
    x = torch.randn(shape)
    with torch.no_grad():
        # The attention sees what its norm gives, and without its projection nothing of it is left.
        whole = call(block, x)
        nn.init.zeros_(parts.norm1.weight)
        nn.init.zeros_(parts.norm1.bias)
        assert not call(block, x).allclose(whole)
        nn.init.zeros_(parts.proj.weight)
        nn.init.zeros_(parts.proj.bias)
        torch.testing.assert_close(call(block, x), x + fc2(parts.activation(fc1(parts.norm2(x)))))


@pytest.mark.parametrize(
    ('network', 'pairs'),
    [
        (lambda: torchvision_resnet.ResNet(torchvision_resnet.BasicBlock, [1, 1, 1, 1]), [('conv1', 'bn1')]),
        (lambda: timm_resnet.ResNet(timm_resnet.BasicBlock, (1, 1, 1, 1)), [('conv1', 'bn1')]),
        (
            lambda: timm_resnet.ResNet(timm_resnet.BasicBlock, (1, 1, 1, 1), stem_type='deep'),
            [('conv1.0', 'conv1.1'), ('conv1.3', 'conv1.4'), ('conv1.6', 'bn1')],
        ),
        (lambda: mmseg_resnet.ResNet(18), [('conv1', 'bn1')]),
        (
            lambda: mmseg_resnet.ResNetV1c(depth=18),
            [('stem.0', 'stem.1'), ('stem.3', 'stem.4'), ('stem.6', 'stem.7')],
        ),
        (lambda: nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)), []),
    ],
)
def test_norms_of_a_known_stem(network, pairs):
    network = network()
    found = list(table.stem_pairs(network))
    expected = [tuple(map(network.get_submodule, pair)) for pair in pairs]
    assert [tuple(map(id, pair)) for pair in found] == [tuple(map(id, pair)) for pair in expected]
