"""Contract: parameters and operations are counted on the model itself, exactly.

Oracles: layer-by-layer sums by hand; torchvision's published figures.
"""

import pytest
from mmengine.config import Config

from repl_mm.analysis.complexity import Complexity, count

R34_BLOCK = 2 * 2 * 64 * 64 * 9 * 56 * 56  # two 3x3 convolutions; every BasicBlock of ResNet-34 has as many operations


def classifier(backbone: dict, head: dict | None = None, neck: dict | None = None) -> Config:
    model = dict(type='ImageClassifier', backbone=backbone, neck=neck, head=head)
    return Config(dict(default_scope='mmpretrain', model=model))


def resnet34(**repl) -> Complexity:
    head = dict(type='LinearClsHead', num_classes=1000, in_channels=512)
    backbone = dict(type='repl_mm.ReplResNet', depth=34, out_indices=(3,), repl=repl or None)
    return count(classifier(backbone, head, dict(type='GlobalAveragePooling')), input_shape=(3, 224, 224))


def vit(tokens: int, d: int, blocks: int, **options) -> Complexity:
    backbone = dict(type='repl_mm.ReplViT', arch='deit-tiny' if d == 192 else 'deit-small', **options)
    return count(classifier(backbone), input_shape=(3, 224, 224))


def vit_block(tokens: int, d: int) -> int:
    """Eq. 57's denominator: four projections, the MLP, and the two products of the attention."""
    return 2 * tokens * (4 * d * d + 8 * d * d) + 2 * 2 * tokens * tokens * d


def test_resnet34_is_torchvisions():
    """torchvision: 21,797,672 parameters, 3.664 G multiply-adds."""
    found = resnet34()
    assert found.parameters == found.trainable == 21_797_672
    assert round(found.flops / 2e9, 3) == 3.664


@pytest.mark.parametrize(
    ('repl', 'sites', 'removed_channels'),
    [
        (dict(policy='interval', every=4), 1, [256]),
        (dict(policy='budget', every=4), 4, [64, 128, 256, 512]),
        (dict(policy='budget', every=4, form='drop'), 4, [64, 128, 256, 512]),
    ],
    ids=['interval', 'budget', 'drop'],
)
def test_resnet34_with_sites(repl, sites, removed_channels):
    found, plain, dropped = resnet34(**repl), resnet34(), 'form' in repl
    assert plain.flops - found.flops == sites * R34_BLOCK // (1 if dropped else 2)  # Eq. 56
    own = sum(0 if dropped else 4 * c for c in removed_channels)
    assert plain.parameters - found.parameters == sum(2 * 9 * c * c + 4 * c for c in removed_channels) - own


def test_a_bottleneck_site_does_the_operations_of_the_block_that_it_replaces():
    plain, replaced, dropped = (
        count(
            classifier(dict(type='repl_mm.ReplResNet', depth=101, out_indices=(3,), repl=repl)),
            input_shape=(3, 224, 224),
        ).flops
        for repl in (None, dict(policy='interval', every=4), dict(policy='interval', every=4, form='drop'))
    )
    block = 2 * 14 * 14 * (2 * 1024 * 256 + 9 * 256 * 256)
    assert replaced == plain
    assert plain - dropped == 5 * block


def test_vit_small_attention_included():
    tokens, d = 14 * 14 + 1, 384
    assert vit(tokens, d, 12).flops == 2 * 196 * d * 3 * 16 * 16 + 12 * vit_block(tokens, d)


@pytest.mark.parametrize(
    ('repl', 'site'),
    [
        (dict(form='scalar'), lambda t, d: 2 * t * d * d),  # Eq. 57's numerator
        (dict(form='headwise'), lambda t, d: 2 * t * d * d),
        (dict(form='scalar', mlp_fusion=True), lambda t, d: 2 * t * 9 * d * d),
        (dict(form='drop'), lambda t, d: 0),
    ],
    ids=['scalar', 'headwise', 'mlp', 'drop'],
)
def test_vit_tiny_with_sites(repl, site):
    tokens, d = 197, 192
    found = vit(tokens, d, 12, repl=dict(policy='interval', every=4) | repl)
    assert vit(tokens, d, 12).flops - found.flops == 2 * (vit_block(tokens, d) - site(tokens, d))


def test_frozen_parameters_are_not_trainable():
    config = classifier(dict(type='repl_mm.ReplResNet', depth=18, frozen_stages=0))
    found = count(config, input_shape=(3, 32, 32))
    assert found.parameters - found.trainable == 64 * 3 * 49 + 2 * 64


def test_the_config_is_left_as_it_was():
    config = classifier(dict(type='repl_mm.ReplResNetCIFAR', depth=32))
    before = config.to_dict()
    count(config, input_shape=(3, 32, 32))
    assert config.to_dict() == before
