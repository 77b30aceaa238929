"""Contract: without sites a backbone is its host class; with sites only the sites differ, and nothing breaks the links.

Oracles: the host classes, torchvision's networks and state dicts, the un-replaced parent.
"""

import copy
import io
import pickle

import pytest
import torch
import torchvision
from helpers import randomise
from mmdet.models.backbones import ResNet as DetectionResNet
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import init_default_scope
from mmengine.runner.checkpoint import load_state_dict
from mmpretrain.models.backbones import ResNet as ClassificationResNet
from mmpretrain.models.backbones import ResNet_CIFAR, VisionTransformer
from mmseg.models.backbones import ResNet as SegmentationResNet
from mmseg.models.backbones import ResNetV1c, ResNetV1d, ResNeXt
from torch import nn

from repl_mm.backbones import (
    ReplResNet,
    ReplResNetCIFAR,
    ReplResNetV1c,
    ReplResNetV1d,
    ReplResNeXt,
    ReplViT,
)
from repl_mm.compat import can_compile
from repl_mm.layers import ComputingBasicBlock, ComputingBottleneck, ComputingLayer, Drop
from repl_mm.surgery import computing_layers

EVERY_4TH = dict(policy='interval', every=4)
TINY = dict(embed_dims=24, num_layers=6, num_heads=3, feedforward_channels=48)


def twins(ours: nn.Module, theirs: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Both networks with the same random weights, statistics and mode."""
    randomise(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    ours.train()
    theirs.train()
    return ours, theirs


def assert_bit_equal(ours: nn.Module, theirs: nn.Module, x: torch.Tensor) -> None:
    """The same features and gradients in train mode, the same buffers after it, the same features in eval mode."""
    outputs = [network(x) for network in (ours, theirs)]
    assert len(outputs[0]) == len(outputs[1])
    for network, features in zip((ours, theirs), outputs, strict=True):
        sum(feature.square().mean() for feature in features).backward()
        network.eval()
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))
    gradients = [{name: p.grad for name, p in n.named_parameters() if p.grad is not None} for n in (ours, theirs)]
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
    assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), theirs.buffers(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(ours(x), theirs(x), strict=True))


HOSTS = {
    'ResNet-18': (ReplResNet, SegmentationResNet, dict(depth=18)),
    'ResNet-34 mmpretrain': (ReplResNet, ClassificationResNet, dict(depth=34, out_indices=(3,))),
    'ResNet-50 mmdet': (ReplResNet, DetectionResNet, dict(depth=50, frozen_stages=1, norm_eval=True)),
    'ResNet-101': (ReplResNet, SegmentationResNet, dict(depth=101)),
    'ResNet-152': (ReplResNet, ClassificationResNet, dict(depth=152, out_indices=(3,))),
    'ResNet-50 D8': (
        ReplResNetV1c,
        ResNetV1c,
        dict(depth=50, dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1), multi_grid=(1, 2, 4), contract_dilation=True),
    ),
    'ResNet-50 V1d': (ReplResNetV1d, ResNetV1d, dict(depth=50)),
    'ResNeXt-50': (ReplResNeXt, ResNeXt, dict(depth=50, groups=32, base_width=4)),
    'CIFAR ResNet-18': (ReplResNetCIFAR, ResNet_CIFAR, dict(depth=18)),
    'ViT': (ReplViT, VisionTransformer, dict(arch=TINY, img_size=64)),
    'ViT maps': (
        ReplViT,
        VisionTransformer,
        dict(arch=TINY, img_size=64, out_type='featmap', out_indices=[1, 5], with_cls_token=False, patch_size=8),
    ),
    'ViT pooled': (ReplViT, VisionTransformer, dict(arch=TINY, img_size=64, out_type='avg_featmap', patch_size=32)),
}


@pytest.mark.parametrize('case', HOSTS)
def test_without_sites_a_backbone_is_its_host_bit_for_bit(case):
    ours, theirs, options = HOSTS[case]
    assert_bit_equal(*twins(ours(**options), theirs(**copy.deepcopy(options))), torch.randn(2, 3, 64, 64))


class Features(nn.Module):
    """The last feature map of a torchvision ResNet, as a tuple."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        del network.avgpool, network.fc
        self.__dict__.update(network.__dict__)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return (self.layer4(self.layer3(self.layer2(self.layer1(x)))),)


@pytest.mark.parametrize(
    ('name', 'options', 'theirs'),
    [
        ('resnet18', dict(depth=18), {}),
        ('resnet34', dict(depth=34), {}),
        ('resnet50', dict(depth=50), {}),
        ('resnet101', dict(depth=101), {}),
        ('resnet152', dict(depth=152), {}),
        (
            'resnet50',
            dict(depth=50, dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1), contract_dilation=True),
            dict(replace_stride_with_dilation=[False, True, True]),
        ),
    ],
    ids=['18', '34', '50', '101', '152', '50-D8'],
)
def test_without_sites_a_resnet_is_torchvisions_bit_for_bit(name, options, theirs):
    theirs = Features(torchvision.models.get_model(name, **theirs))
    assert_bit_equal(*twins(ReplResNet(out_indices=(3,), **options), theirs), torch.randn(2, 3, 64, 64))


def test_a_vit_without_sites_has_torchvisions_parameters():
    count = sum(p.numel() for p in torchvision.models.vit_b_16().parameters())
    # torchvision's head has 768 x 1000 weights and 1000 biases.
    assert sum(p.numel() for p in ReplViT(arch='base').parameters()) == count - 769_000


@pytest.mark.parametrize(
    ('depth', 'every', 'parameters'),
    [
        # Kept blocks minus removed ones: two 3x3 convolutions and 2 norms out, 4 C in (Eq. 43-44).
        (34, None, 21_284_672),
        (34, 4, 21_284_672 - (2 * 256**2 * 9 + 4 * 256) + 4 * 256),
        (50, None, 23_508_032),
        (50, 4, 23_508_032 - (2 * 1024 * 256 + 256**2 * 9 + 4 * 256 + 2 * 1024) + 2 * 256 + 2 * 1024),
        (101, None, 42_500_160),
        (101, 4, 42_500_160 - 5 * (2 * 1024 * 256 + 256**2 * 9 + 2 * 256)),
        (152, None, 58_143_808),
        # One site in the second stage, eight in the third.
        (152, 4, 58_143_808 - (2 * 512 * 128 + 128**2 * 9 + 2 * 128) - 8 * (2 * 1024 * 256 + 256**2 * 9 + 2 * 256)),
    ],
)
def test_parameters_of_a_resnet(depth, every, parameters):
    with torch.device('meta'):
        network = ReplResNet(depth, repl=every and dict(policy='interval', every=every))
    assert sum(p.numel() for p in network.parameters()) == parameters


@pytest.mark.parametrize(('depth', 'parameters'), [(32, 466_256), (44, None), (56, None), (110, 1_730_064)])
def test_parameters_of_a_cifar_resnet(depth, parameters):
    """Counted layer by layer: 6 n + 2 layers of 16, 32 and 64 channels, and two projection shortcuts."""
    n = (depth - 2) // 6
    norm = lambda channels: 2 * channels  # noqa: E731
    count = 3 * 16 * 9 + norm(16)
    for left, channels in ((16, 16), (16, 32), (32, 64)):
        count += left * channels * 9 + (2 * n - 1) * channels * channels * 9 + 2 * n * norm(channels)
        count += left * channels + norm(channels) if left != channels else 0
    assert parameters in (count, None)
    assert sum(p.numel() for p in ReplResNetCIFAR(depth).parameters()) == count


@pytest.mark.parametrize(('form', 'own'), [('scalar', 2), ('headwise', 6), ('drop', 0)])
def test_parameters_of_a_vit(form, own):
    d = 192
    block = 4 * d + 3 * (d * d + d) + (d * d + d) + (4 * d * d + 4 * d) + (4 * d * d + d)
    with torch.device('meta'):
        plain, replaced = ReplViT('deit-tiny'), ReplViT('deit-tiny', repl=EVERY_4TH | dict(form=form))
    counts = [sum(p.numel() for p in network.parameters()) for network in (plain, replaced)]
    assert counts[0] - counts[1] == 2 * (block - own)


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmdet', 'mmseg'])
def test_the_type_resolves_from_every_default_scope(scope):
    from mmengine.registry import MODELS

    init_default_scope(scope)
    assert type(MODELS.build(dict(type='repl_mm.ReplResNet', depth=34, repl=EVERY_4TH))) is ReplResNet


def test_a_config_is_not_changed():
    config = dict(arch=TINY, img_size=64, out_indices=(-1,), repl=dict(policy='explicit', sites=[[0, 2]]))
    before = copy.deepcopy(config)
    ReplViT(**config)
    assert config == before


def test_sites_and_forms_are_where_the_config_says():
    network = ReplResNet(101, repl=EVERY_4TH)
    names = [name for name, module in network.named_modules() if isinstance(module, ComputingLayer)]
    assert names == ['layer3.3', 'layer3.7', 'layer3.11', 'layer3.15', 'layer3.19']
    assert all(isinstance(layer, ComputingBottleneck) for layer in computing_layers(network))
    dropped = ReplResNet(101, repl=EVERY_4TH | dict(form='drop'))
    assert [n for n, m in dropped.named_modules() if isinstance(m, Drop)] == names


def test_a_dropped_network_is_the_parent_without_those_blocks():
    parent = ResNet_CIFAR(18, num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,))
    parent.layer1.append(copy.deepcopy(parent.layer1[1]))
    dropped = copy.deepcopy(parent)
    del dropped.layer1[1]
    ours = ReplResNetCIFAR(34, num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,),
                           repl=dict(policy='explicit', sites=[(0, 1)], form='drop'))  # fmt: skip
    ours.load_state_dict(parent.state_dict(), strict=False)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(ours(x)[0], dropped(x)[0])


@pytest.mark.parametrize(
    ('network', 'message'),
    [
        (lambda: ReplResNet(50, repl=dict(policy='interval', every=6)), 'every=6 leaves no site in ReplResNet-50'),
        (lambda: ReplResNet(18, repl=EVERY_4TH), 'choose a deeper network'),
        (lambda: ReplResNet(34, repl=4), "'repl' is a dict such as .* or None, got 4"),
        (lambda: ReplResNet(34, repl=[]), "'repl' is a dict"),
        (lambda: ReplResNet(34, repl=dict(every=4)), "unknown policy None: choose one of 'interval'"),
        (lambda: ReplResNet(34, repl=EVERY_4TH | dict(form='scalar')), "choose one of 'channelwise', 'blend'"),
        (lambda: ReplResNet(34, repl=EVERY_4TH | dict(mlp_fusion=True)), "no option 'mlp_fusion'"),
        (lambda: ReplViT(TINY, repl=EVERY_4TH | dict(form='channelwise')), "one of 'scalar', 'headwise', 'blend'"),
        (lambda: ReplViT(TINY, repl=EVERY_4TH | dict(mlp_fusion=1)), "'mlp_fusion' is True or False, got 1"),
    ],
)
def test_bad_options_are_named(network, message):
    with pytest.raises(ValueError, match=message):
        network()


def test_dilated_sites_take_the_dilation_of_the_removed_block():
    d8 = dict(dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1), multi_grid=(1, 2, 4), contract_dilation=True)
    network = ReplResNetV1c(depth=101, repl=EVERY_4TH, **d8)
    parent = ResNetV1c(depth=101, **d8)
    for site in network.selection.sites:
        stage = f'layer{site.stage + 1}'
        geometry = getattr(network, stage)[site.index].geometry
        assert geometry['dilation'] == getattr(parent, stage)[site.index].conv2.dilation == (2, 2)
    assert network(torch.randn(1, 3, 32, 48))[3].shape == (1, 2048, 4, 6)


@pytest.mark.parametrize(
    ('network', 'keys'),
    [
        (lambda: ReplResNet(34, repl=EVERY_4TH), {'alpha', 'beta', 'norm.weight', 'norm.bias', 'norm.running_mean',
                                                  'norm.running_var'}),
        (lambda: ReplResNet(34, repl=EVERY_4TH | dict(form='drop')), set()),
    ],
)  # fmt: skip
def test_a_torchvision_checkpoint_leaves_out_exactly_the_sites(network, keys):
    network = network()
    checkpoint = torchvision.models.resnet34().state_dict()
    loaded = network.load_state_dict(checkpoint, strict=False)
    assert set(loaded.missing_keys) == {f'layer3.3.{key}' for key in keys}
    assert set(loaded.unexpected_keys) == {k for k in checkpoint if k.startswith(('layer3.3.', 'fc.'))}
    assert torch.equal(network.layer3[2].conv2.weight, checkpoint['layer3.2.conv2.weight'])


def test_the_hosts_loader_reports_the_same_keys(caplog):
    network, checkpoint = ReplResNet(34, repl=EVERY_4TH), ReplResNet(34).state_dict()
    load_state_dict(network, checkpoint, strict=False)
    assert torch.equal(network.layer3[4].conv1.weight, checkpoint['layer3.4.conv1.weight'])
    with pytest.raises(RuntimeError, match=r'unexpected key in source state_dict: layer3\.3\.conv1\.weight'):
        load_state_dict(network, checkpoint, strict=True)


@pytest.mark.parametrize(
    ('network', 'other', 'message'),
    [
        (lambda: ReplResNet(34), lambda: ReplResNet(18), r'another depth: it has \[2, 2, 2, 2\].* has \[3, 4, 6, 3\]'),
        (lambda: ReplResNet(101, repl=EVERY_4TH), lambda: ReplResNet(50), 'another depth'),
        (lambda: ReplResNet(34), lambda: ReplResNet(50), 'belongs to another network|has another block'),
        (lambda: ReplResNet(34), lambda: ReplResNet(34, repl=EVERY_4TH), 'has a computing layer at layer3.3'),
        (
            lambda: ReplResNet(34, repl=dict(policy='explicit', sites=[(2, 1)])),
            lambda: ReplResNet(34, repl=EVERY_4TH),
            'has a computing layer at layer3.3',
        ),
        (lambda: ReplViT(TINY, img_size=64), lambda: ReplViT(TINY | dict(num_layers=5), img_size=64), 'another depth'),
        (
            lambda: ReplViT(TINY, img_size=64),
            lambda: ReplViT(TINY | dict(embed_dims=48), img_size=64),
            'another network',
        ),
        (
            lambda: ReplViT(TINY, img_size=64, repl=EVERY_4TH | dict(form='headwise')),
            lambda: ReplViT(TINY, img_size=64, repl=EVERY_4TH),
            r'layers.3.alpha has shape \(1,\) there and \(3,\) here',
        ),
    ],
)
@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_a_checkpoint_of_another_network_is_refused(network, other, message, prefix):
    network = network() if not prefix else nn.ModuleDict({'backbone': network()})
    checkpoint = {prefix + key: value for key, value in other().state_dict().items()}
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(ValueError, match=message):
        load_state_dict(network, checkpoint, strict=False)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items() if 'layer' in key)


def test_a_checkpoint_without_blocks_and_one_with_other_positions_still_load():
    ReplResNet(34).load_state_dict({'fc.weight': torch.ones(1)}, strict=False)
    small, large = (ReplViT(TINY, img_size=size, repl=EVERY_4TH) for size in (64, 96))
    large.load_state_dict(small.state_dict())
    assert torch.equal(large.layers[3].alpha, small.layers[3].alpha)


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
@pytest.mark.parametrize('repl', [None, EVERY_4TH])
def test_checkpoints_from_before_norms_counted_batches_load(repl, prefix):
    """torch 0.4 and older wrote no ``num_batches_tracked``."""
    theirs = randomise(ReplResNet(34, repl=repl)).state_dict()
    old = {prefix + key: value for key, value in theirs.items() if not key.endswith('num_batches_tracked')}
    assert len(old) < len(theirs)
    ours = ReplResNet(34, repl=EVERY_4TH)
    load_state_dict(nn.ModuleDict({'backbone': ours}) if prefix else ours, old, strict=repl is not None)
    own = ours.state_dict()
    site = {key for key in own if key.startswith('layer3.3.')}
    expected = {key for key in own if not key.endswith('num_batches_tracked')} - (set() if repl else site)
    assert all(torch.equal(own[key], theirs[key]) for key in expected)


def saved_and_loaded(network: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    fresh = ReplResNet(34, repl=EVERY_4TH)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    return fresh


COPIES = {
    'state dict': saved_and_loaded,
    'deepcopy': copy.deepcopy,
    'pickle': lambda network: pickle.loads(pickle.dumps(network)),
    'average': lambda network: ExponentialMovingAverage(network).module,
}


@pytest.mark.parametrize('how', COPIES)
def test_a_copy_keeps_its_own_links(how):
    network = randomise(ReplResNet(34, repl=EVERY_4TH))
    twin = COPIES[how](network)
    layer = twin.layer3[3]
    assert layer.prev is twin.layer3[2]
    assert layer.next is twin.layer3[4]
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(twin.eval()(x)[3], network.eval()(x)[3])
    nn.init.zeros_(twin.layer3[2].conv2.weight)
    nn.init.zeros_(twin.layer3[4].conv1.weight)
    assert layer.weight().eq(0).all()
    assert network.layer3[3].weight().ne(0).any()
    twin.train()


def test_no_parameter_has_two_owners():
    network = ReplResNet(34, repl=EVERY_4TH)
    names = [name for name, _ in network.named_parameters(remove_duplicate=False)]
    assert len(names) == len({id(p) for p in network.parameters()})


@pytest.mark.parametrize('index', [2, 4])
def test_a_broken_link_is_refused_before_training(index):
    network = ReplResNet(34, repl=EVERY_4TH)
    network.layer3[index] = copy.deepcopy(network.layer3[index])
    with pytest.raises(ValueError, match=rf'layer3\.3 reads a {"left" if index == 2 else "right"} neighbour'):
        network.train()
    network.eval()


def test_train_and_eval_return_the_backbone():
    for network in (ReplResNet(18), ReplResNetCIFAR(32), ReplViT(TINY)):
        assert network.train() is network
        assert network.eval() is network


@pytest.mark.parametrize('norm', ['BN', 'SyncBN', 'GN'])
def test_the_sites_norm_follows_the_backbones(norm):
    cfg = dict(type=norm, requires_grad=False) | (dict(num_groups=4) if norm == 'GN' else {})
    network = ReplResNet(34, norm_cfg=cfg, repl=EVERY_4TH)
    layer = network.layer3[3]
    assert type(layer.norm) is type(network.layer3[2].bn1 if norm != 'GN' else network.layer3[2].gn1)
    assert not any(p.requires_grad for p in layer.norm.parameters())
    assert layer.alpha.requires_grad


def test_frozen_stages_freeze_their_sites():
    network = ReplResNet(34, frozen_stages=3, repl=dict(policy='budget', every=4))
    # At once: an optimizer is built before the first call of train().
    assert not any(p.requires_grad for p in network.layer3[3].parameters())
    network.layer3[3].norm.num_batches_tracked.fill_(100)
    network.train()
    assert not any(p.requires_grad for p in network.layer3[3].parameters())
    assert not network.layer3[3].norm.training
    assert all(p.requires_grad for p in network.layer4[1].parameters())
    vit = ReplViT(TINY, frozen_stages=4, repl=EVERY_4TH).train()
    assert not any(p.requires_grad for p in vit.layers[3].parameters())
    assert not vit.layers[2].training
    assert vit.layers[4].training


def test_a_norm_without_statistics_learns_them_under_norm_eval():
    network = ReplResNet(34, norm_eval=True, frozen_stages=3, repl=dict(policy='budget', every=4))
    network.load_state_dict(torchvision.models.resnet34().state_dict(), strict=False)
    site, kept = network.layer3[3].norm, network.layer3[2].bn2
    before = kept.running_mean.clone()
    for _ in range(3):  # mmengine's loops call train() before every epoch, or every iteration
        network.train()
        assert site.training
        assert not kept.training
        network(torch.randn(2, 3, 64, 64))
    assert site.num_batches_tracked == 3
    assert site.running_mean.ne(0).all()
    assert torch.equal(kept.running_mean, before)


@pytest.mark.parametrize(('batches', 'training'), [(99, True), (100, False)])
def test_a_norm_with_statistics_follows_norm_eval(batches, training):
    """By hand: 0.9 ** 100 of the initial statistics are left."""
    trained = ReplResNet(34, repl=dict(policy='budget', every=4))
    trained.layer3[3].norm.num_batches_tracked.fill_(batches)
    network = ReplResNet(34, norm_eval=True, repl=dict(policy='budget', every=4))
    network.load_state_dict(trained.state_dict())
    network.train()
    assert network.layer3[3].norm.training == training
    assert not network.eval().layer3[3].norm.training


@pytest.mark.parametrize('network', [ReplResNet, ReplResNetCIFAR], ids=['mmseg', 'mmpretrain'])
@pytest.mark.parametrize('zero', [True, False])
def test_init_weights_reaches_the_sites(network, zero):
    network = network(34, zero_init_residual=zero, repl=EVERY_4TH)
    site = network.layer3[3]
    assert isinstance(site, ComputingBasicBlock)
    randomise(site)
    network.init_weights()
    assert site.alpha.eq(1).all()
    assert site.norm.weight.eq(0 if zero else 1).all()
    assert site.norm.bias.eq(0).all()
    assert network.layer3[2].bn2.weight.eq(0 if zero else 1).all()


@pytest.mark.parametrize('as_list', [True, False])
def test_init_weights_keeps_what_a_checkpoint_held(tmp_path, as_list):
    trained = randomise(ReplResNet(34, repl=EVERY_4TH))
    torch.save(trained.state_dict(), tmp_path / 'trained.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'trained.pth'))
    network = ReplResNet(34, repl=EVERY_4TH, init_cfg=[init_cfg] if as_list else init_cfg)
    network.init_weights()
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), trained.state_dict().values(), strict=True)
    )


def test_kept_blocks_start_as_the_baselines_under_one_seed():
    torch.manual_seed(3)
    plain = ReplResNet(34).state_dict()
    torch.manual_seed(3)
    replaced = ReplResNet(34, repl=EVERY_4TH).state_dict()
    assert all(torch.equal(value, plain[key]) for key, value in replaced.items() if key in plain)


def test_feature_maps_at_several_depths_and_rectangular_sizes():
    network = ReplViT(TINY, img_size=64, patch_size=8, out_type='featmap', out_indices=(0, 3, 5), repl=EVERY_4TH)
    assert [tuple(f.shape) for f in network(torch.randn(2, 3, 40, 72))] == [(2, 24, 5, 9)] * 3


@pytest.mark.skipif(not can_compile(), reason='this torch cannot compile computing layers')
@pytest.mark.parametrize('repl', [None, EVERY_4TH])
@pytest.mark.parametrize(
    ('network', 'options'),
    [(ReplResNetCIFAR, dict(depth=32)), (ReplViT, dict(arch=TINY, img_size=32, patch_size=8, drop_path_rate=0.1))],
)
def test_in_training_it_is_one_compiled_graph(network, options, repl):
    """And computes the same, to rounding in float64; with drop path, from the same random numbers."""
    torch.compiler.reset()
    backbone = randomise(network(**options, repl=repl)).double().train()
    x = torch.randn(2, 3, 32, 32).double()
    outputs = []
    for call in (copy.deepcopy(backbone), torch.compile(backbone, backend='eager', fullgraph=True)):
        torch.manual_seed(0)
        outputs.append(call(x)[-1])
    torch.testing.assert_close(*outputs)
