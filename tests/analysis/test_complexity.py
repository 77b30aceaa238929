"""Contract: parameters and operations are counted on the model itself, exactly.

Oracles: layer-by-layer sums by hand; torchvision's models and published figures.
"""

from pathlib import Path

import pytest
import torch
import torchvision
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch.utils.flop_counter import FlopCounterMode

from repl_mm.analysis.cost import Complexity, count

CONFIGS = Path(__file__).parents[2] / 'configs'
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


def test_lenet_layer_by_layer():
    config = classifier(dict(type='LeNet5', num_classes=10), dict(type='ClsHead'))
    convs = 2 * (28 * 28 * 6 * 25 + 10 * 10 * 16 * 6 * 25 + 120 * 16 * 25)
    assert count(config, input_shape=(1, 32, 32)) == Complexity(
        parameters=61_706, trainable=61_706, flops=convs + 2 * (120 * 84 + 84 * 10)
    )


def test_no_memory_is_taken():
    """A model of about 100 TiB, one tensor of which no machine allocates."""
    d, layers, patch = 2**20, 2, 4
    arch = dict(embed_dims=d, num_layers=layers, num_heads=16, feedforward_channels=4 * d)
    config = classifier(dict(type='VisionTransformer', arch=arch, img_size=8, patch_size=patch))
    block = 12 * d * d + (4 + 5 + 4) * d  # four projections and the MLP; biases; two norms
    embedding = d * 3 * patch * patch + d + d + 5 * d  # convolution and bias, class token, positions
    assert count(config, input_shape=(3, 8, 8)).parameters == layers * block + embedding + 2 * d


def test_nothing_is_loaded():
    missing = dict(type='Pretrained', checkpoint='no/such/file.pth')
    plain, pretrained = (
        count(classifier(dict(type='ResNet', depth=18, init_cfg=init_cfg)), input_shape=(3, 32, 32))
        for init_cfg in (None, missing)
    )
    assert plain == pretrained


def trunk(name: str, *, size: int) -> tuple[int, int]:
    """Parameters and operations of a ResNet of torchvision without its last layer."""
    with torch.device('meta'):
        model = getattr(torchvision.models, name)().eval()
        model.fc = torch.nn.Identity()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, size, size))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops()


def test_retinanet_of_mmdet():
    neck = dict(type='FPN', in_channels=[256, 512, 1024, 2048], out_channels=256, start_level=1, num_outs=5)
    anchors = dict(
        type='AnchorGenerator',
        octave_base_scale=4,
        scales_per_octave=3,
        ratios=[0.5, 1.0, 2.0],
        strides=[8, 16, 32, 64, 128],
    )
    model = dict(
        type='RetinaNet',
        backbone=dict(type='ResNet', depth=50, frozen_stages=1, norm_eval=True),
        neck=neck | dict(add_extra_convs='on_input'),
        bbox_head=dict(type='RetinaHead', num_classes=80, in_channels=256, anchor_generator=anchors),
    )
    found = count(Config(dict(default_scope='mmdet', model=model)), input_shape=(3, 64, 64))

    parameters, flops = trunk('resnet50', size=64)
    conv, biased = 256 * 256 * 9, 256 * 256 * 9 + 256
    lateral, extra = 256 * (512 + 1024 + 2048), 2048 * 256 * 9
    towers, predict = 8 * conv, 256 * 9 * (9 * 80 + 9 * 4)
    parameters += lateral + 3 * 256 + 3 * biased + extra + 256 + biased
    parameters += towers + 8 * 256 + predict + 9 * 80 + 9 * 4
    # Maps of 8 x 8, 4 x 4, 2 x 2, 1 and 1 positions.
    flops += 2 * (256 * (64 * 512 + 16 * 1024 + 4 * 2048) + conv * (64 + 16 + 4) + extra + conv)
    flops += 2 * (64 + 16 + 4 + 1 + 1) * (towers + predict)
    frozen = 9_536 + 215_808  # stem; first stage of torchvision's ResNet-50
    assert found == Complexity(parameters, parameters - frozen, flops)


def test_encoder_decoder_of_mmseg():
    head = dict(type='FCNHead', in_channels=512, channels=512, in_index=3, num_convs=0, concat_input=False)
    model = dict(type='EncoderDecoder', backbone=dict(type='ResNet', depth=18), decode_head=head | dict(num_classes=19))
    found = count(Config(dict(default_scope='mmseg', model=model)), input_shape=(3, 64, 64))
    parameters, flops = trunk('resnet18', size=64)
    assert found.parameters == parameters + 512 * 19 + 19
    assert found.flops == flops + 2 * 512 * 19 * 2 * 2


def test_the_default_scope_is_left_as_it_was():
    with DefaultScope.overwrite_default_scope('mmseg'):
        count(classifier(dict(type='LeNet5')), input_shape=(1, 32, 32))
        assert DefaultScope.get_current_instance().scope_name == 'mmseg'


POLICIES = {
    'plain': None,
    'interval': dict(policy='interval', every=4),
    'budget': dict(policy='budget', every=4),
    'drop': dict(policy='budget', every=4, form='drop'),
}
FORMS = {
    'plain': None,
    'scalar': dict(policy='interval', every=4),
    'headwise': dict(policy='interval', every=4, form='headwise'),
    'scalar + MLP': dict(policy='interval', every=4, mlp_fusion=True),
    'drop': dict(policy='interval', every=4, form='drop'),
}
# Parameters and operations of the backbone. The tests above derive the differences; these see to it that nothing moves.
RESNETS = {
    (34, 'plain'): (21_284_672, 7_326_498_816),
    (34, 'interval'): (20_105_024, 7_095_287_808),
    (34, 'budget'): (15_017_792, 6_401_654_784),
    (34, 'drop'): (15_013_952, 5_476_810_752),
    (50, 'plain'): (23_508_032, 8_174_272_512),
    (50, 'interval'): (22_393_408, 8_174_272_512),
    (50, 'budget'): (21_000_000, 8_174_272_512),
    (50, 'drop'): (20_993_600, 6_864_076_800),
    (101, 'plain'): (42_500_160, 15_598_714_880),
    (101, 'interval'): (36_927_040, 15_598_714_880),
    (101, 'budget'): (34_419_008, 15_598_714_880),
    (101, 'drop'): (34_399_808, 12_104_859_648),
    (152, 'plain'): (58_143_808, 23_023_157_248),
    (152, 'interval'): (48_948_032, 23_023_157_248),
    (152, 'budget'): (47_275_840, 23_023_157_248),
    (152, 'drop'): (47_248_960, 17_782_374_400),
    (32, 'plain'): (466_256, 138_248_192),
    (32, 'interval'): (369_488, 124_092_416),
    (32, 'budget'): (351_056, 119_373_824),
    (32, 'drop'): (350_480, 100_499_456),
    (110, 'plain'): (1_730_064, 506_298_368),
    (110, 'interval'): (1_342_992, 449_675_264),
    (110, 'budget'): (1_264_656, 440_238_080),
    (110, 'drop'): (1_262_544, 374_177_792),
}
VITS = {
    ('deit-tiny', 'plain'): (5_524_416, 2_506_982_400),
    ('deit-tiny', 'scalar'): (4_634_692, 2_127_834_624),
    ('deit-tiny', 'headwise'): (4_634_700, 2_127_834_624),
    ('deit-tiny', 'scalar + MLP'): (4_634_692, 2_360_225_280),
    ('deit-tiny', 'drop'): (4_634_688, 2_098_785_792),
    ('deit-small', 'plain'): (21_665_664, 9_196_996_608),
    ('deit-small', 'scalar'): (18_116_740, 7_799_626_752),
    ('deit-small', 'headwise'): (18_116_760, 7_799_626_752),
    ('deit-small', 'scalar + MLP'): (18_116_740, 8_729_189_376),
    ('deit-small', 'drop'): (18_116_736, 7_683_431_424),
    ('base', 'plain'): (85_798_656, 35_126_120_448),
    ('base', 'scalar'): (71_622_916, 29_775_083_520),
    ('base', 'headwise'): (71_622_960, 29_775_083_520),
    ('base', 'scalar + MLP'): (71_622_916, 33_493_334_016),
    ('base', 'drop'): (71_622_912, 29_310_302_208),
    ('large', 'plain'): (303_301_632, 123_107_377_152),
    ('large', 'scalar'): (240_320_522, 99_589_926_912),
    ('large', 'headwise'): (240_320_672, 99_589_926_912),
    ('large', 'scalar + MLP'): (240_320_522, 116_115_484_672),
    ('large', 'drop'): (240_320_512, 97_524_232_192),
}


@pytest.mark.parametrize(('case', 'expected'), RESNETS.items(), ids=str)
def test_resnets_are_as_large_as_ever(case, expected):
    (depth, policy), cifar = case, case[0] in (32, 110)
    kind = dict(type='repl_mm.ReplResNetCIFAR') if cifar else dict(type='repl_mm.ReplResNet', out_indices=(3,))
    side = 32 if cifar else 224
    found = count(classifier(kind | dict(depth=depth, repl=POLICIES[policy])), input_shape=(3, side, side))
    assert (found.parameters, found.flops) == expected
    if policy == 'plain' and not cifar:
        assert expected == trunk(f'resnet{depth}', size=224)


@pytest.mark.parametrize(('case', 'expected'), VITS.items(), ids=str)
def test_vits_are_as_large_as_ever(case, expected):
    arch, form = case
    found = count(classifier(dict(type='repl_mm.ReplViT', arch=arch, repl=FORMS[form])), input_shape=(3, 224, 224))
    assert (found.parameters, found.flops) == expected


# Total and trainable parameters, and operations of one image: 800 x 1344 (COCO), 512 x 1024 (CityScapes). The hosts
# publish 37.74 M (what is trainable), 68.1 M and 43.6 M parameters for the three networks of depth 50.
DENSE = {
    'detection/retinanet_r50_fpn_4xb2-100e_coco': (37_968_692, 37_743_348, 500_975_075_328),
    'detection/retinanet_r50-repl_fpn_4xb2-100e_coco': (36_854_068, 36_628_724, 500_975_075_328),
    'detection/retinanet_r101_fpn_8xb2-1x_coco': (56_960_820, 56_735_476, 660_070_268_928),
    'detection/retinanet_r101-repl_fpn_8xb2-1x_coco': (51_387_700, 51_162_356, 660_070_268_928),
    'detection/retinanet_vit-base-p16_sfp_8xb2-1x_coco': (98_362_100, 98_362_100, 1_713_153_282_048),
    'detection/retinanet_vit-base-p16-repl_sfp_8xb2-1x_coco': (84_186_360, 84_186_360, 1_574_987_298_816),
    'segmentation/deeplabv3_r50-d8_1xb16-30k_cityscapes-768x768': (68_113_030, 68_113_030, 1_078_156_328_960),
    'segmentation/deeplabv3_r50-d8-repl_1xb16-30k_cityscapes-768x768': (66_998_406, 66_998_406, 1_078_156_328_960),
    'segmentation/deeplabv3_r101-d8_4xb2-40k_cityscapes-512x1024': (87_105_158, 87_105_158, 1_388_467_716_096),
    'segmentation/deeplabv3_r101-d8-repl_4xb2-40k_cityscapes-512x1024': (81_532_038, 81_532_038, 1_388_467_716_096),
    'segmentation/deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024': (43_589_878, 43_589_878, 704_631_537_664),
    'segmentation/deeplabv3plus_r50-d8-repl_4xb2-40k_cityscapes-512x1024': (42_475_254, 42_475_254, 704_631_537_664),
    'segmentation/deeplabv3plus_r101-d8_1xb16-30k_cityscapes-768x768': (62_582_006, 62_582_006, 1_014_942_924_800),
    'segmentation/deeplabv3plus_r101-d8-repl_1xb16-30k_cityscapes-768x768': (57_008_886, 57_008_886, 1_014_942_924_800),
    'segmentation/vit-base-p16_upernet_4xb2-40k_cityscapes-512x1024': (143_438_374, 143_438_374, 1_846_155_972_608),
    'segmentation/vit-base-p16-repl_upernet_4xb2-40k_cityscapes-512x1024': (
        129_262_634,
        129_262_634,
        1_805_858_404_352,
    ),
}


@pytest.mark.parametrize(('name', 'expected'), DENSE.items(), ids=str)
def test_dense_recipes_are_as_large_as_ever(name, expected):
    shape = (3, 800, 1344) if name.startswith('detection') else (3, 512, 1024)
    found = count(Config.fromfile(CONFIGS / f'{name}.py'), input_shape=shape)
    assert (found.parameters, found.trainable, found.flops) == expected


@pytest.mark.parametrize(('depth', 'sites'), [(50, 1), (101, 5)])
def test_what_the_sites_of_a_dense_network_save(depth, sites):
    """By hand: a Bottleneck of the third stage has three convolutions and norms, its site 2 B + 2 C (Eq. 13-15)."""
    block = 1024 * 256 + 9 * 256 * 256 + 256 * 1024 + 2 * (256 + 256 + 1024)
    for kind in (
        'detection/retinanet_r{}{}_fpn',
        'segmentation/deeplabv3_r{}-d8{}_',
        'segmentation/deeplabv3plus_r{}-d8{}_',
    ):
        plain, replaced = (
            next(size for name, (size, *_) in DENSE.items() if name.startswith(kind.format(depth, repl)))
            for repl in ('', '-repl')
        )
        assert plain - replaced == sites * (block - 2 * 256 - 2 * 1024)
