"""Contract: what the equations predict is what the network does, to the last operation and byte.

Oracles: the two ways of getting each figure against each other; real tensors and a real optimizer; one block by hand.
"""

from pathlib import Path

import pytest
import torch
from cli_helpers import run
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from repl_mm.analysis.cost import Cost, build_empty, count, count_cost, optimizer_bytes, predict_cost, variants
from repl_mm.analysis.tables import Table
from repl_mm.deployment import RawOutputs

CONFIGS = Path(__file__).parents[2] / 'configs'
EVERY = dict(policy='interval', every=4)


def classifier(**backbone) -> Config:
    heads = dict(type='LinearClsHead', num_classes=10, in_channels=512, loss=dict(type='CrossEntropyLoss'))
    model = dict(type='ImageClassifier', backbone=backbone, neck=dict(type='GlobalAveragePooling'), head=heads)
    return Config(dict(default_scope='mmpretrain', model=model))


def vit(**repl) -> Config:
    arch = dict(embed_dims=64, num_layers=8, num_heads=4, feedforward_channels=160)
    backbone = dict(type='repl_mm.ReplViT', arch=arch, img_size=64, patch_size=8, drop_path_rate=0.1, repl=EVERY | repl)
    head = dict(type='VisionTransformerClsHead', num_classes=10, in_channels=64)
    return Config(dict(default_scope='mmpretrain', model=dict(type='ImageClassifier', backbone=backbone, head=head)))


CASES = {
    'BasicBlock': classifier(type='repl_mm.ReplResNet', depth=34, repl=dict(policy='budget', every=4)),
    'Bottleneck': Config.fromfile(CONFIGS / 'classification/resnet101-repl_4xb128-90e_in1k.py'),
    'grouped': classifier(type='repl_mm.ReplResNeXt', depth=50, groups=32, base_width=4, repl=EVERY),
    'CIFAR': Config.fromfile(CONFIGS / 'demo/resnet32-repl_digits.py'),
    'detector': Config.fromfile(CONFIGS / 'detection/retinanet_r50-repl_fpn_8xb2-1x_coco.py'),
    'dilated': Config.fromfile(CONFIGS / 'segmentation/deeplabv3plus_r50-d8-repl_4xb2-40k_cityscapes-512x1024.py'),
    'scalar': vit(),
    'scalar, MLP': vit(mlp_fusion=True),
    'headwise': vit(form='headwise'),
    'headwise, MLP': vit(form='headwise', mlp_fusion=True),
    'BasicBlock, lean': classifier(
        type='repl_mm.ReplResNet', depth=34, repl=dict(policy='budget', every=4, recompute=True, grad_fraction=0.25)
    ),
    'Bottleneck, lean': classifier(
        type='repl_mm.ReplResNet', depth=50, repl=EVERY | dict(recompute=True, grad_fraction=0.25)
    ),
    'BasicBlock, three quarters': classifier(
        type='repl_mm.ReplResNet', depth=34, repl=dict(policy='budget', every=4, grad_fraction=0.75)
    ),
    'headwise, MLP, lean': vit(form='headwise', mlp_fusion=True, recompute=True),
    'BasicBlock, right, gradients': classifier(
        type='repl_mm.ReplResNet', depth=34, repl=EVERY | dict(neighbours='next', stop_gradient=False)
    ),
    'Bottleneck, left': classifier(type='repl_mm.ReplResNet', depth=50, repl=EVERY | dict(neighbours='prev')),
    'Bottleneck, one, gradients, lean': classifier(
        type='repl_mm.ReplResNet',
        depth=50,
        repl=EVERY | dict(coefficients='one', stop_gradient=False, recompute=True, grad_fraction=0.5),
    ),
    'scalar, one': vit(sources='both', coefficients='one'),
    'scalar, MLP alone': vit(sources='mlp', neighbours='prev'),
    'scalar, no weights': vit(sources='none'),
    'scalar, MLP, gradients': vit(sources='both', stop_gradient=False),
    'scalar, MLP alone, gradients, lean': vit(sources='mlp', stop_gradient=False, recompute=True),
    'headwise, MLP, right, gradients': vit(form='headwise', sources='both', neighbours='next', stop_gradient=False),
    'ViT detector': Config.fromfile(CONFIGS / 'detection/retinanet_vit-base-p16-repl_sfp_8xb2-1x_coco.py'),
}
for name in ('grouped', 'Bottleneck, lean', 'Bottleneck, left', 'Bottleneck, one, gradients, lean'):
    CASES[name].model.head.in_channels = 2048


@pytest.mark.parametrize('name', CASES)
def test_prediction_and_count_agree(name):
    config, shape = CASES[name], (3, 64, 128)
    configs = variants(config)
    counted = {form: count_cost(c, shape) for form, c in configs.items()}
    predicted = predict_cost(config, counted['E2E'], shape)
    assert predicted == counted
    assert counted['drop'].parameters <= counted['RepL'].parameters < counted['E2E'].parameters
    assert counted['RepL'].forward == counted['deployed'].forward == count(config, input_shape=shape).flops
    assert counted['RepL'].activations < counted['E2E'].activations


@pytest.mark.parametrize('name', ['CIFAR', 'headwise, MLP'])
def test_counts_are_those_of_real_tensors(name):
    config, shape = CASES[name], (3, 32, 32) if name == 'CIFAR' else (3, 64, 64)
    counted = count_cost(config, shape)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(config.model).train()
    parameters = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    assert counted.parameters == sum(p.numel() for p in model.parameters())
    found = []
    for images in (4, 5):
        saved = {}

        def keep(tensor, saved=saved):
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs = RawOutputs(model)(torch.randn(images, *shape))
        found.append(sum(s.nbytes() for address, s in saved.items() if address not in parameters))
        assert outputs
    assert counted.activations == found[1] - found[0]


def test_a_bottleneck_by_hand():
    """Eq. 46-47; a site of layer3 in ResNet-101 at 64 x 128: 1024 and 256 channels at 4 x 8 positions."""
    config = CASES['Bottleneck']
    counted = {form: count_cost(c, (3, 64, 128)) for form, c in variants(config).items()}
    sites, channels, middle, positions = 5, 1024, 256, 32
    weights = 2 * channels * middle + 9 * middle**2
    operations = 2 * positions * weights
    removed = counted['E2E'] - counted['drop']
    assert removed == Cost(
        parameters=sites * (weights + 4 * middle + 2 * channels),
        trainable=sites * (weights + 4 * middle + 2 * channels),
        forward=sites * operations,
        backward=sites * 2 * operations,
        activations=sites * 4 * positions * (4 * middle + 2 * channels),
    )
    placed = counted['RepL'] - counted['drop']
    assert placed.parameters == sites * (2 * middle + 2 * channels)
    assert placed.backward == sites * (2 * operations - 2 * positions * 2 * channels * middle)


@pytest.mark.parametrize(
    ('optimizer', 'states'),
    [(dict(type='SGD', lr=0.1, momentum=0.9), 1), (dict(type='SGD', lr=0.1), 0), (dict(type='AdamW', lr=0.1), 2)],
)
def test_optimizer_state_by_hand(optimizer, states):
    model = build_empty(CASES['detector'])  # its first stage is frozen
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trainable < sum(p.numel() for p in model.parameters())
    assert optimizer_bytes(model, optimizer) == 4 * states * trainable


def test_stochastic_depth_is_counted_without_skips():
    config, shape = CASES['CIFAR'], (3, 32, 32)
    skipping = Config(config.to_dict())
    skipping.model.backbone.stochastic_depth = 0.9
    assert count_cost(skipping, shape) == count_cost(config, shape)


def test_skip_attention_is_counted_beside_its_twin():
    """Six attentions, of 17 tokens, against six estimates on 16 patches; D = 192."""
    configs = variants(Config.fromfile(CONFIGS / 'small_images/vit-tiny-p8-skip-attention_1xb512-250e_cifar10.py'))
    counted = {name: count_cost(config, (3, 32, 32)) for name, config in configs.items()}
    assert list(counted) == ['E2E', 'Skip-Attention']
    plain = Config.fromfile(CONFIGS / 'small_images/vit-tiny-p8_1xb512-250e_cifar10.py')
    assert counted['E2E'] == count_cost(plain, (3, 32, 32))
    spared, tokens, patches, width = counted['E2E'] - counted['Skip-Attention'], 17, 16, 192
    attention = 2 * tokens * 4 * width**2 + 4 * tokens**2 * width
    estimate = 2 * patches * (4 * width**2 + 2 * width * 25) + 2 * 3 * width
    assert spared.forward == 6 * (attention - estimate)
    assert spared.parameters == -6 * (49 * width + 3)


def test_bad_input():
    with pytest.raises(ValueError, match='replaces nothing: give its backbone'):
        variants(Config.fromfile(CONFIGS / 'demo/resnet32_digits.py'))
    frozen = classifier(type='repl_mm.ReplResNet', depth=34, frozen_stages=3, repl=EVERY)
    with pytest.raises(ValueError, match=r'the site \(2, 3\) lies in a frozen stage'):
        predict_cost(frozen, Cost(), (3, 64, 64))
    code, _, stderr = run('cost', CONFIGS / 'demo/resnet32-repl_digits.py', '--size', '0', '32')
    assert (code, '--size is at least 1 x 1, got 0 x 32' in stderr) == (2, True)


def test_tool_shows_both(monkeypatch):
    found = []
    monkeypatch.setattr(Table, 'print', lambda table: found.append(table))
    done = run('cost', CONFIGS / 'demo/resnet32-repl_digits.py', '--size', '32', '32')
    assert (done.code, done.err) == (0, '')
    columns = list(map(list, zip(*found[0].rows, strict=True)))
    assert columns[0] == ['E2E', 'drop', '', 'RepL', '', 'deployed', '']
    assert columns[2][3] == '370,138 (-20.7 %)'
    assert columns[2][2::2] == ['the same'] * 3
    assert columns[7][0] == f'{466_906 * 4 / 2**20:.1f}'
