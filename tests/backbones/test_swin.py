"""Contract: ReplSwin is each host library's Swin by that library's arguments, and takes sites as other backbones do.

Oracles: the three host classes; plain torch in float64; each way of getting a cost against the other.
"""

import copy
import re
from unittest import mock

import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F
from helpers import randomise
from mmdet.models.backbones import SwinTransformer as DetectionSwin
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.models.backbones import SwinTransformer as ClassificationSwin
from mmseg.models.backbones import SwinTransformer as SegmentationSwin
from test_backbones import assert_bit_equal
from test_configs import BATCHES
from torch import nn

from repl_mm.analysis.cost import RealLinspace, count_cost, predict_cost, variants
from repl_mm.backbones import ReplSwin
from repl_mm.backbones.configs import replaceable
from repl_mm.backbones.swin import StaticWindowAttention
from repl_mm.benchmark.step import TrainingStep
from repl_mm.benchmark.variants import build_variants
from repl_mm.deployment import deploy, relative_difference
from repl_mm.export.graph import as_onnx, as_torch, check, input_shape, trace
from repl_mm.export.quantization import quantize, quantize_onnx
from repl_mm.surgery import computing_layers

EVERY = dict(policy='interval', every=4)
SHAPE = dict(embed_dims=12, depths=[2, 2, 6, 2], num_heads=[1, 2, 3, 4])
TINY = SHAPE | dict(window_size=4)
ARCH = dict(arch=SHAPE, window_size=4)


def randomise_all(network: nn.Module) -> nn.Module:
    """As ``randomise``, and what a network adds to its tokens and scores by their position."""
    for name, parameter in randomise(network).named_parameters():
        if 'table' in name or 'absolute' in name:
            nn.init.normal_(parameter)
    return network


def twins(theirs: nn.Module, ours: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Both networks with the same random weights, position biases among them, in train mode."""
    ours.load_state_dict(randomise_all(theirs).state_dict(), strict=True)
    for network in (ours, theirs):
        network.train()
    return ours, theirs


DENSE = {
    'padding': {},
    'rates': dict(drop_rate=0.1, attn_drop_rate=0.2, drop_path_rate=0.5, with_cp=True),
    'embeddings': dict(use_abs_pos_embed=True, pretrain_img_size=(72, 91), out_indices=(1, 3), frozen_stages=2),
    'frozen patches': dict(use_abs_pos_embed=True, pretrain_img_size=(72, 88), frozen_stages=0, drop_rate=0.5),
    'options': dict(patch_norm=False, qkv_bias=False, qk_scale=0.3, mlp_ratio=2, act_cfg=dict(type='ReLU')),
    'strides': dict(patch_size=2, strides=(2, 2, 1, 2), norm_cfg=dict(type='LN', eps=0.1)),
    'small maps': dict(window_size=9),
}


@pytest.mark.parametrize('host', [DetectionSwin, SegmentationSwin], ids=['mmdet', 'mmseg'])
@pytest.mark.parametrize('case', DENSE)
def test_without_sites_it_is_mmdets_and_mmsegs_bit_for_bit(case, host):
    options = TINY | DENSE[case]
    ours, theirs = twins(host(**copy.deepcopy(options)), ReplSwin(**options))
    assert frozen(ours) == frozen(theirs)
    # Their embeddings fit one size; others need padding in every stage.
    size = (72, 88) if 'use_abs_pos_embed' in options else (70, 90)
    seeded(assert_bit_equal, ours, theirs, torch.randn(2, 3, *size))


def seeded(compare, ours: nn.Module, theirs: nn.Module, x: torch.Tensor) -> None:
    """Call with both networks drawing the same random numbers."""
    for network in (ours, theirs):
        network.register_forward_pre_hook(lambda *_: torch.manual_seed(3) and None)
    compare(ours, theirs, x)


def frozen(network: nn.Module) -> tuple[set[str], set[str]]:
    """Parameters that are not trained, and modules with parameters or dropout that stay in eval mode."""
    modules = {name for name, module in network.named_modules() if not module.training and 'adap' not in name}
    return {name for name, p in network.named_parameters() if not p.requires_grad}, modules


@pytest.mark.parametrize(
    'options',
    [
        {},
        dict(out_indices=(0, 1, 2, 3), pad_small_map=True, drop_path_rate=0.5, drop_rate=0.2),
        dict(out_indices=(1, 3), frozen_stages=1, use_abs_pos_embed=True, img_size=128, out_after_downsample=True),
    ],
    ids=['classifier', 'features', 'frozen'],
)
def test_without_sites_it_is_mmpretrains_bit_for_bit(options):
    ours, theirs = twins(ClassificationSwin(**ARCH, **copy.deepcopy(options)), ReplSwin(**ARCH, **options))
    assert frozen(ours) == frozen(theirs)
    seeded(assert_bit_equal, ours, theirs, torch.randn(2, 3, 134, 140))


def test_the_default_is_the_tiny_one_of_each_library():
    with torch.device('meta'), RealLinspace():
        pairs = [(ReplSwin(), ClassificationSwin()), (ReplSwin(qk_scale=None), DetectionSwin())]
    for ours, theirs in pairs:
        shapes = [{key: value.shape for key, value in n.state_dict().items()} for n in (ours, theirs)]
        assert shapes[0] == shapes[1]
        assert ours.out_indices == theirs.out_indices
        rates = [[m.drop_prob for m in n.modules() if type(m).__name__ == 'DropPath'] for n in (ours, theirs)]
        assert rates[0] == rates[1]


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmdet', 'mmseg'])
def test_the_type_resolves_from_every_scope(scope):
    with DefaultScope.overwrite_default_scope(scope):
        assert type(MODELS.build(dict(type='repl_mm.ReplSwin', **TINY))) is ReplSwin


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(arch='tiny', depths=[2, 2, 6, 2]), 'depths: arguments of mmdet and mmseg; arch: of mmpretrain'),
        (
            dict(convert_weights=True, stage_cfgs={}),
            'convert_weights: arguments of mmdet .*; stage_cfgs: of mmpretrain',
        ),
        (dict(strides=(2, 2, 2, 2)), r'first being the patch size 4, got \(2, 2, 2, 2\)'),
        (dict(strides=(4, 2)), "'strides' is one number for each of 4 stages"),
        (dict(pretrained='a.pth', init_cfg=dict(type='Pretrained', checkpoint='b.pth')), "give 'init_cfg' alone"),
        (TINY | dict(repl=EVERY | dict(form='channelwise')), "one of 'scalar', 'headwise', 'blend', 'drop'"),
        (TINY | dict(repl=dict(policy='explicit', sites=[(0, 1)])), 'it is the last block of its stage'),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message) as error:
        ReplSwin(**options)
    assert '\n' not in str(error.value)


# --- Checkpoints ---


def official(network: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a network as the official repository names and orders them, with what it has besides."""
    found = {}
    for key, value in network.state_dict().items():
        if re.match(r'norm\d', key):
            continue
        key = (
            key.replace('stages', 'layers', 1)
            .replace('w_msa.', '')
            .replace('patch_embed.projection', 'patch_embed.proj')
        )
        key = key.replace('ffn.layers.0.0', 'mlp.fc1').replace('ffn.layers.1', 'mlp.fc2')
        if 'downsample' in key:
            # There the four pixels of a patch are the slower axis, by columns; in an unfolded map the faster, by rows.
            value = value.unflatten(-1, (-1, 4))[..., [0, 2, 1, 3]].transpose(-1, -2).flatten(-2)
        found[key] = value
    width = network.num_features[-1]
    masks = {'layers.0.blocks.1.attn_mask': torch.zeros(4, 16, 16)}
    return found | masks | {'norm.weight': torch.full((width,), 7.0), 'norm.bias': torch.ones(width)}


@pytest.mark.parametrize('window', [4, 5], ids=['window', 'another window'])
def test_official_weights_are_read_as_mmdet_reads_them(window, tmp_path):
    weights = official(randomise_all(DetectionSwin(**TINY)))
    if window != 4:
        # It interpolates the biases, but takes the places that they are for from the checkpoint.
        weights = {key: value for key, value in weights.items() if not key.endswith('index')}
    torch.save({'model': weights}, tmp_path / 'official.pth')
    options = TINY | dict(window_size=window, convert_weights=True)
    init = dict(type='Pretrained', checkpoint=str(tmp_path / 'official.pth'))
    theirs = DetectionSwin(**options, init_cfg=Config(dict(init=init)).init)
    networks = [ReplSwin(**options, init_cfg=init), ReplSwin(**options, pretrained=init['checkpoint']), theirs]
    for network in networks:
        network.init_weights()
        network.eval()
    for network in networks[:2]:
        ours, reference = network.state_dict(), theirs.state_dict()
        assert ours.keys() == reference.keys()
        assert all(torch.equal(ours[key], reference[key]) for key in ours)
    assert networks[0].norm3.weight.eq(1).all()  # not the classifier's


def test_mmsegs_weights_are_read_as_mmseg_reads_them(tmp_path):
    weights = randomise_all(SegmentationSwin(**TINY)).state_dict()
    for name, state_dict in {
        'backbone': weights,
        'model': {'state_dict': {f'backbone.{key}': value for key, value in weights.items()}},
    }.items():
        torch.save(state_dict, tmp_path / f'{name}.pth')
        init = dict(type='Pretrained', checkpoint=str(tmp_path / f'{name}.pth'))
        ours, theirs = ReplSwin(**TINY, init_cfg=init), SegmentationSwin(**TINY, init_cfg=init)
        for network in (ours, theirs):
            network.init_weights()
        assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in ours.state_dict().items())
        assert all(torch.equal(value, weights[key]) for key, value in ours.state_dict().items())


def test_weights_by_other_names_are_refused(tmp_path):
    torch.save({'model': official(DetectionSwin(**TINY))}, tmp_path / 'official.pth')
    with pytest.raises(ValueError, match='holds no stages of a Swin: give convert_weights=True'):
        ReplSwin(**TINY, pretrained=str(tmp_path / 'official.pth')).init_weights()


def test_weights_of_a_network_without_sites_go_around_them(tmp_path):
    weights = randomise_all(DetectionSwin(**TINY)).state_dict()
    torch.save(weights, tmp_path / 'plain.pth')
    network = ReplSwin(**TINY, pretrained=str(tmp_path / 'plain.pth'), repl=EVERY)
    network.init_weights()
    own = network.state_dict()
    assert set(own) - set(weights) == {'stages.2.blocks.3.alpha', 'stages.2.blocks.3.beta'}
    assert all(torch.equal(own[key], weights[key]) for key in set(own) & set(weights))
    assert network.stages[2].blocks[3].alpha == 0.5


def test_weights_of_an_older_mmpretrain_are_renamed_as_it_does_itself():
    weights = randomise_all(ClassificationSwin(**ARCH)).state_dict()
    old = {key.replace('norm3.', 'norm.'): value for key, value in weights.items()}
    old['stages.0.blocks.1.attn.attn_mask'] = torch.zeros(4, 16, 16)
    ours, theirs = ReplSwin(**ARCH), ClassificationSwin(**ARCH)
    for network in (ours, theirs):
        network.load_state_dict(dict(old), strict=True)
    assert all(torch.equal(value, weights[key]) for key, value in ours.state_dict().items())
    assert all(torch.equal(value, weights[key]) for key, value in theirs.state_dict().items())


@pytest.mark.parametrize('repl', [None, EVERY], ids=['E2E', 'RepL'])
def test_position_biases_of_another_window_are_interpolated(repl):
    weights = randomise_all(ReplSwin(**TINY | dict(window_size=5))).state_dict()
    key = 'stages.1.blocks.0.attn.w_msa.relative_position_bias_table'
    network = ReplSwin(**TINY, repl=repl)
    network.load_state_dict(weights, strict=repl is None)
    table = F.interpolate(weights[key].T.reshape(1, 2, 9, 9), (7, 7), mode='bicubic')
    assert torch.equal(network.state_dict()[key], table.flatten(2)[0].T)


@pytest.mark.parametrize('options', [{}, dict(repl=EVERY)], ids=['E2E', 'RepL'])
def test_from_scratch_linear_layers_and_norms_begin_as_the_dense_hosts_do(options):
    torch.manual_seed(0)
    network = ReplSwin(**TINY, **options)
    network.init_weights()
    for module in network.modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().sub(0.02).abs() < 0.006
            assert module.bias is None or module.bias.eq(0).all()
    assert all(layer.alpha == 0.5 for layer in computing_layers(network))


# --- Sites ---

FORMS = {
    'scalar': {},
    'scalar, MLP': dict(mlp_fusion=True),
    'headwise': dict(form='headwise'),
    'headwise, MLP': dict(form='headwise', mlp_fusion=True, recompute=True),
}


def with_sites(name: str, **options) -> nn.Module:
    return randomise_all(ReplSwin(**TINY, repl=EVERY | FORMS[name], **options))


def test_sites_are_where_the_policy_says():
    assert ReplSwin(repl=EVERY).selection.sites == ((2, 3),)
    with torch.device('meta'), RealLinspace():
        sites = ReplSwin('small', repl=EVERY).selection.sites
    assert sites == tuple((2, index) for index in (3, 7, 11, 15))
    assert len(ReplSwin(**TINY, repl=dict(policy='budget', every=4)).selection.sites) == 2


def affine(linear: nn.Linear) -> oracles.Affine:
    return linear.weight, linear.bias


@pytest.mark.parametrize('name', FORMS)
def test_a_site_is_its_equation_and_trains_no_neighbour(name):
    network = with_sites(name).double()
    stage = network.stages[2].blocks
    layer, prev, next = stage[3], stage[2], stage[4]

    def norm(module: nn.LayerNorm) -> oracles.Function:
        return lambda x: oracles.layer_norm(x, weight=module.weight, bias=module.bias, eps=module.eps)

    x = torch.randn(2, 20, 48, dtype=torch.double, requires_grad=True)
    mix = dict(alpha=layer.alpha, beta=layer.beta)
    mix |= dict(prev=affine(prev.attn.w_msa.proj), next=affine(next.attn.w_msa.proj))
    expected = oracles.headwise(x, **mix, norm=norm(prev.norm1)) if 'headwise' in name else oracles.scalar(x, **mix)
    if 'MLP' in name:
        pairs = [tuple(map(affine, (block.ffn.layers[0][0], block.ffn.layers[1]))) for block in (prev, next)]
        expected = oracles.fused_mlp(expected, prev=pairs[0], next=pairs[1], norm=norm(prev.norm2), activation=F.gelu)
    out = layer(x, (4, 5))
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    wanted = [x, layer.alpha, layer.beta]
    grad = torch.randn_like(out)
    for ours, theirs in zip(
        torch.autograd.grad(out, wanted, grad, retain_graph=True),
        torch.autograd.grad(expected, wanted, grad),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    layer(x, (4, 5)).sum().backward()
    assert [name for block in (prev, next) for name, p in block.named_parameters() if p.grad is not None] == []


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize('name', [*FORMS, 'drop'])
def test_deployed_equals_dynamic(name, dtype, tolerance):
    repl = EVERY | (FORMS.get(name) or dict(form=name)) if name != 'scalar' else EVERY
    network = ReplSwin(**TINY, repl=repl)
    network = (network if name == 'drop' else randomise(network)).to(dtype).eval()
    static = deploy(network)
    x = torch.randn(2, 3, 70, 90, dtype=dtype)
    with torch.no_grad():
        assert relative_difference(static(x), network(x)) <= tolerance
    # What is deployed loads into what the config of a deployed network builds.
    built = ReplSwin(**TINY, repl=repl, deploy=True).to(dtype).eval()
    built.load_state_dict(static.state_dict(), strict=True)
    with torch.no_grad():
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(built(x), static(x), strict=True))


def test_windows_are_put_together_as_the_host_does():
    host = ClassificationSwin(**ARCH, pad_small_map=True)
    host.eval()
    for attention in (block.attn for stage in host.stages for block in stage.blocks):
        static = StaticWindowAttention(attention)
        x = torch.randn(3, 35, attention.w_msa.embed_dims)
        assert torch.equal(static(x, (5, 7)), attention(x, (5, 7)))
        assert static.state_dict().keys() == attention.state_dict().keys()


# --- Models ---


def classifier(**backbone) -> Config:
    head = dict(type='LinearClsHead', num_classes=10, in_channels=96, loss=dict(type='CrossEntropyLoss'))
    backbone = dict(type='repl_mm.ReplSwin', **ARCH, pad_small_map=True, repl=EVERY) | backbone
    model = dict(type='ImageClassifier', backbone=backbone, neck=dict(type='GlobalAveragePooling'), head=head)
    wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3))
    return Config(dict(default_scope='mmpretrain', model=model, optim_wrapper=wrapper))


@pytest.mark.parametrize('name', ['scalar', 'headwise, MLP'])
def test_predicted_and_counted_costs_agree(name):
    config = classifier(repl=EVERY | FORMS[name])
    counted = {variant: count_cost(c, (3, 64, 96)) for variant, c in variants(config).items()}
    assert predict_cost(config, counted['E2E'], (3, 64, 96)) == counted
    assert counted['drop'].forward < counted['RepL'].forward == counted['deployed'].forward < counted['E2E'].forward


def test_a_hosts_config_becomes_one_with_sites():
    config = get_config('mmdet::swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py')
    ours = replaceable(config).model.backbone
    assert (ours.type, ours.repl) == ('repl_mm.ReplSwin', None)
    assert {k: v for k, v in ours.items() if k not in ('type', 'repl')} == {
        k: v for k, v in config.model.backbone.items() if k != 'type'
    }


@pytest.mark.parametrize('name', ['E2E', 'RepL, budget', 'SD', 'AC', 'RepL, budget + AC'])
def test_variants_train_a_step(name):
    config = build_variants(classifier(), [name])[name]
    assert config.model.backbone.get('drop_path_rate') == (0.2 if name == 'SD' else None)
    step = TrainingStep(config, batch=2, size=(64, 64), backend='eager', device=torch.device('cpu'))
    blocks = [block for stage in step.model.backbone.repl_stages().values() for block in stage]
    assert sum('forward' in vars(b) for b in blocks) == ('AC' in name) * (12 - 2 * ('budget' in name))
    before = copy.deepcopy(step.model.state_dict())
    with mock.patch.object(step.wrapper, 'zero_grad'):
        step()
    assert [n for n, p in step.model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    assert any(value.ne(before[key]).any() for key, value in step.model.state_dict().items())


# Fewer blocks: exporting takes seconds for each of them.
SHORT = dict(arch=dict(embed_dims=12, depths=[1, 3], num_heads=[1, 2]), out_indices=(1,))
SHORT |= dict(repl=dict(policy='explicit', sites=[(1, 1)], mlp_fusion=True))


def test_images_of_a_graph_are_free_and_their_size_is_not():
    network = randomise(ReplSwin(**SHORT, window_size=4, pad_small_map=True)).eval()
    static = deploy(network)
    program = trace(static, (64, 96))
    assert list(input_shape(program)) == ['batch', 3, 64, 96]
    for format, content in {'onnx': as_onnx(program, model=static), 'torch': as_torch(program)}.items():
        assert check(network, program, content, format=format) <= 1e-5


def test_the_smallest_image_is_one_window_in_the_last_stage():
    network = ReplSwin(**ARCH).eval()
    side = network.least_side
    assert side == 4 * 32
    assert network(torch.randn(1, 3, side, side))[0].shape == (1, 96, 4, 4)
    with pytest.raises(AssertionError, match='smaller than the window'):
        network(torch.randn(1, 3, side - 32, side))
    padded = ReplSwin(**TINY).eval()
    assert padded.least_side == 0
    assert padded(torch.randn(1, 3, 20, 20))[3].shape == (1, 96, 1, 1)


@pytest.mark.parametrize('method', [quantize, quantize_onnx])
def test_int8_is_close_and_not_equal(method):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        static = deploy(randomise(MODELS.build(classifier(**SHORT).model)).eval())
    images = torch.randn(2, 3, 64, 96)
    int8 = method(static, [images])
    with torch.no_grad():
        assert 1e-5 < relative_difference(int8.backbone(images), static.backbone(images)) < 0.2


SMALL = dict(type='repl_mm.ReplSwin', **SHAPE, init_cfg=None, convert_weights=False, repl=EVERY | FORMS['scalar, MLP'])
WIDTHS = [12, 24, 48, 96]
UPSTREAM = {
    'mmdet::swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py': dict(neck=dict(in_channels=WIDTHS[1:])),
    'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py': dict(neck=dict(in_channels=WIDTHS)),
    'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py': dict(
        data_preprocessor=dict(size=(64, 128)),
        decode_head=dict(in_channels=WIDTHS, channels=16),
        auxiliary_head=dict(in_channels=WIDTHS[2], channels=16),
    ),
}


@pytest.mark.parametrize('name', UPSTREAM)
def test_an_upstream_config_trains_a_step_and_predicts(name):
    config = get_config(name)
    config.model.backbone.update(SMALL)
    for part, options in UPSTREAM[name].items():
        config.model[part].update(options)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        model = revert_sync_batchnorm(randomise(MODELS.build(config.model))).train()
        batch = BATCHES[config.default_scope](model)
        for sample in batch['data_samples']:
            if 'mask' in name:
                sample.gt_instances.masks = BitmapMasks(np.ones((1, 64, 96), dtype=np.uint8), 64, 96)
        loss, _ = model.parse_losses(model(**model.data_preprocessor(copy.deepcopy(batch), training=True), mode='loss'))
        loss.backward()
        [layer] = computing_layers(model)
        assert loss.isfinite()
        assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in layer.parameters())
        with torch.no_grad():
            found = model.eval()(**model.data_preprocessor(batch), mode='predict')
    assert len(found) == 2
    assert all(('pred_instances' if config.default_scope == 'mmdet' else 'pred_sem_seg') in sample for sample in found)
