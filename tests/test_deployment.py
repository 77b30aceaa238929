"""Contract: the deployed network is the same function, made of ordinary operators with weights of their own.

Oracles: the dynamic network in eval mode, with every statistic, affine term and coefficient randomised; for one layer
of each kind Eq. 32-33 written out with NumPy; parameter counts by hand; timm's and mmpretrain's own tools.
"""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import mmpretrain
import numpy as np
import pytest
import timm.utils
import torch
from helpers import randomise
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from repl_mm.backbones import ReplResNet, ReplResNetCIFAR, ReplResNetV1c, ReplResNeXt, ReplViT
from repl_mm.deployment import deploy, relative_difference
from repl_mm.layers import StaticLayer
from repl_mm.surgery import computing_layers

EVERY = dict(policy='interval', every=4)
VIT = dict(arch=dict(embed_dims=48, num_layers=6, num_heads=3, feedforward_channels=96), img_size=32, patch_size=8)
VIT |= dict(out_type='featmap', out_indices=(2, 5))
BACKBONES = {
    'BasicBlock': lambda **kw: ReplResNet(34, repl=EVERY, **kw),
    'Bottleneck': lambda **kw: ReplResNet(50, repl=dict(policy='interval', every=3), **kw),
    'grouped': lambda **kw: ReplResNeXt(depth=50, groups=32, base_width=4, repl=dict(policy='interval', every=3), **kw),
    'dilated': lambda **kw: ReplResNetV1c(
        depth=50, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), contract_dilation=True, repl=EVERY, **kw
    ),
    'group norm': lambda **kw: ReplResNet(34, norm_cfg=dict(type='GN', num_groups=8), repl=EVERY, **kw),
    'CIFAR': lambda **kw: ReplResNetCIFAR(32, repl=EVERY, **kw),
    'scalar': lambda **kw: ReplViT(**VIT, repl=dict(policy='interval', every=2), **kw),
    'scalar, MLP': lambda **kw: ReplViT(**VIT, repl=dict(policy='interval', every=2, mlp_fusion=True), **kw),
    'headwise': lambda **kw: ReplViT(**VIT, repl=dict(policy='interval', every=2, form='headwise'), **kw),
    'headwise, MLP': lambda **kw: ReplViT(
        **VIT, repl=dict(policy='interval', every=2, form='headwise', mlp_fusion=True), **kw
    ),
    'BasicBlock, left': lambda **kw: ReplResNetCIFAR(32, repl=EVERY | dict(neighbours='prev'), **kw),
    'BasicBlock, one': lambda **kw: ReplResNetCIFAR(32, repl=EVERY | dict(coefficients='one'), **kw),
    'scalar, right, MLP': lambda **kw: ReplViT(
        **VIT, repl=dict(policy='interval', every=2, neighbours='next', sources='both'), **kw
    ),
    'scalar, MLP alone': lambda **kw: ReplViT(**VIT, repl=dict(policy='interval', every=2, sources='mlp'), **kw),
    'scalar, no weights': lambda **kw: ReplViT(**VIT, repl=dict(policy='interval', every=2, sources='none'), **kw),
    'headwise, left, MLP': lambda **kw: ReplViT(
        **VIT, repl=dict(policy='interval', every=2, form='headwise', neighbours='prev', sources='both'), **kw
    ),
}
WITH_FOLDABLE_NORMS = [name for name in BACKBONES if name not in ('group norm',) and 'scalar' not in name]
WITH_FOLDABLE_NORMS = [name for name in WITH_FOLDABLE_NORMS if 'headwise' not in name]


def image(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, 3, 32, 48, dtype=dtype)


def dynamic(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    return randomise(BACKBONES[name]()).to(dtype).eval()


@torch.no_grad()
def assert_same(static: nn.Module, reference: nn.Module, *, dtype: torch.dtype, tolerance: float) -> None:
    x = image(dtype)
    outputs = reference(x)
    # Outputs that do not depend on the image would hide every error.
    assert all(output.std() > 1e-3 for output in outputs)
    assert relative_difference(static(x), outputs) <= tolerance


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize('name', BACKBONES)
def test_deployed_equals_dynamic(name, dtype, tolerance):
    model = dynamic(name, dtype)
    assert_same(deploy(model), model, dtype=dtype, tolerance=tolerance)


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize('name', WITH_FOLDABLE_NORMS)
def test_with_all_norms_folded_it_still_equals_dynamic(name, dtype, tolerance):
    model = dynamic(name, dtype)
    static = deploy(model, fuse_all=True)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in static.modules())
    assert_same(static, model, dtype=dtype, tolerance=tolerance)


@pytest.mark.parametrize('name', BACKBONES)
def test_nothing_of_the_dynamic_form_is_left(name):
    model = dynamic(name)
    sites = computing_layers(model)
    static = deploy(model)
    assert sites
    assert computing_layers(static) == []
    layers = [module for module in static.modules() if isinstance(module, StaticLayer)]
    assert len(layers) == len(sites)
    owned = {p.data_ptr() for layer in layers for p in layer.parameters()}
    others = {p.data_ptr() for block in static.modules() if not isinstance(block, StaticLayer)
              for p in block.parameters(recurse=False)} - owned  # fmt: skip
    assert owned.isdisjoint({p.data_ptr() for p in model.parameters()})
    assert others.isdisjoint(owned)
    # A neighbour may change now without the site following it.
    before = {key: value.clone() for key, value in layers[0].state_dict().items()}
    for block in static.modules():
        if not isinstance(block, StaticLayer) and hasattr(block, 'conv1'):
            nn.init.zeros_(block.conv1.weight)
    assert all(torch.equal(before[key], value) for key, value in layers[0].state_dict().items())


@pytest.mark.parametrize('name', ['Bottleneck', 'headwise, MLP'])
def test_the_original_stays_as_it_was(name):
    model = dynamic(name)
    before = copy.deepcopy(model.state_dict())
    model.train()
    static = deploy(model, fuse_all=True)
    assert model.training
    assert not static.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert len(computing_layers(model)) > 0


def test_a_site_of_basic_blocks_by_hand():
    """Eq. 32: one convolution, whose weight and bias take in the norm."""
    site = computing_layers(dynamic('BasicBlock', torch.float64))[0]
    prev, next = site.prev.conv2.weight.detach().numpy(), site.next.conv1.weight.detach().numpy()

    def rows(w: np.ndarray) -> np.ndarray:
        return w / np.sqrt((w**2).sum((1, 2, 3), keepdims=True) + 1e-8)

    mixed = site.alpha.detach().numpy()[:, None, None, None] * rows(prev)
    mixed += site.beta.detach().numpy()[:, None, None, None] * rows(next)
    norm = {key: value.numpy() for key, value in site.norm.state_dict().items()}
    scale = norm['weight'] / np.sqrt(norm['running_var'] + site.norm.eps)
    state = {key: value.numpy() for key, value in site.fuse().state_dict().items()}
    assert set(state) == {'0.branch.weight', '0.branch.bias'}
    np.testing.assert_allclose(state['0.branch.weight'], scale[:, None, None, None] * mixed, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(state['0.branch.bias'], norm['bias'] - scale * norm['running_mean'], rtol=1e-12)


def test_a_scalar_site_by_hand():
    """The residual goes into the weight where no layer norm stands before it."""
    site = computing_layers(dynamic('scalar', torch.float64))[0]
    prev, next = site.prev.attn.proj, site.next.attn.proj
    state = site.fuse().state_dict()
    assert set(state) == {'0.weight', '0.bias'}
    weight = site.alpha.item() * prev.weight + site.beta.item() * next.weight
    torch.testing.assert_close(state['0.weight'], (weight + torch.eye(48)).detach())
    torch.testing.assert_close(state['0.bias'], (site.alpha * prev.bias + site.beta * next.bias).detach())


def test_a_headwise_site_by_hand():
    """Eq. 33 with the factor D^(-1/2); the bias is a plain mean (Eq. 23-24)."""
    site = computing_layers(dynamic('headwise', torch.float64))[0]
    prev, next = site.prev.attn.proj, site.next.attn.proj
    expected = torch.zeros(48, 48, dtype=torch.float64)
    for head in range(3):
        block = slice(16 * head, 16 * head + 16)
        for coefficient, weight in ((site.alpha, prev.weight), (site.beta, next.weight)):
            rows = weight / (weight.square().sum(1, keepdim=True) + 1e-8).sqrt()
            expected[:, block] += coefficient[head] * rows[:, block]
    state = site.fuse().state_dict()
    torch.testing.assert_close(state['0.branch.1.weight'], expected.detach() / 48**0.5)
    torch.testing.assert_close(state['0.branch.1.bias'], ((prev.bias + next.bias) / 2).detach())


def test_sizes_by_hand():
    """ResNet-34: one site in layer3, 256 channels. Coefficients and norm go, one 3x3 convolution with a bias comes."""
    model = dynamic('BasicBlock')
    count = sum(p.numel() for p in deploy(model).parameters()) - sum(p.numel() for p in model.parameters())
    assert count == 256 * 256 * 9 + 256 - 4 * 256


@pytest.mark.parametrize('name', BACKBONES)
@pytest.mark.parametrize('fuse_all', [False, True])
def test_the_flag_builds_what_the_door_gives(name, fuse_all):
    model = dynamic(name)
    static = deploy(model, fuse_all=fuse_all)
    built = BACKBONES[name](deploy=dict(fuse_all=True) if fuse_all else True).eval()
    built.load_state_dict(static.state_dict())
    x = image()
    with torch.no_grad():
        assert relative_difference(built(x), static(x)) == 0
    built.init_weights()
    built.train()
    assert all(output.isfinite().all() for output in built(x))


def test_whole_models_copy_pickle_and_deploy_again():
    model = nn.Sequential(dynamic('CIFAR'))
    static = deploy(model, fuse_all=True)
    again = pickle.loads(pickle.dumps(deploy(static, fuse_all=True)))
    x = image()
    with torch.no_grad():
        torch.testing.assert_close(again(x), static(x), rtol=0, atol=0)


def test_dropped_blocks_are_left_out():
    model = randomise(ReplResNet(34, repl=dict(EVERY, form='drop'))).eval()
    assert_same(deploy(model), model, dtype=torch.float32, tolerance=0)


@pytest.mark.parametrize('name', ['Bottleneck', 'headwise, MLP'])
def test_timm_reparameterises_backbones_and_models_around_them(name):
    model = nn.ModuleDict({'backbone': dynamic(name)})
    for static in (timm.utils.reparameterize_model(model).backbone, timm.utils.reparameterize_model(model.backbone)):
        assert computing_layers(static) == []
        assert_same(static, model.backbone, dtype=torch.float32, tolerance=1e-5)


def test_mmpretrain_tool_reparameterises(tmp_path):
    config = Config.fromfile(Path(__file__).parent.parent / 'configs/demo/resnet32-repl_digits.py')
    config.dump(tmp_path / 'config.py')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = randomise(MODELS.build(config.model)).eval()
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, tmp_path / 'in.pth')
    tool = Path(mmpretrain.__file__).parent / '.mim/tools/model_converters/reparameterize_model.py'
    # The tool knows nothing of repl_mm; an installed scope is found by its name.
    subprocess.run(
        [sys.executable, tool, tmp_path / 'config.py', tmp_path / 'in.pth', tmp_path / 'out.pth'],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    written = torch.load(tmp_path / 'out.pth', weights_only=True)['state_dict']
    ours = deploy(model).state_dict()
    assert written.keys() == ours.keys()
    assert all(torch.equal(written[key], value) for key, value in ours.items())


@pytest.mark.parametrize('name', ['CIFAR', 'scalar, MLP'])
def test_checkpoints_of_the_other_form_are_told_apart(name):
    model = dynamic(name)
    static = deploy(model)
    with pytest.raises(ValueError, match=r'has a deployed layer at .* this network has a (ComputingBasic|Scalar)'):
        model.load_state_dict(static.state_dict(), strict=False)
    with pytest.raises(ValueError, match=r'has a computing layer at .* this network has a StaticLayer.*written beside'):
        static.load_state_dict(model.state_dict(), strict=False)


def test_what_cannot_be_deployed_is_said():
    with pytest.raises(ValueError, match='nothing to deploy in Conv2d'):
        deploy(nn.Conv2d(1, 1, 1))
    with pytest.raises(ValueError, match=r"'deploy' is True, False or dict\(fuse_all=True\), got 'yes'"):
        ReplResNet(18, deploy='yes')
    model = dynamic('CIFAR')
    blocks = model.layer1
    blocks[2] = copy.deepcopy(blocks[2])
    with pytest.raises(ValueError, match='no longer part of the network'):
        deploy(model)


@pytest.mark.parametrize('scale', [2.0**-40, 2.0**-10, 1.0, 2.0**20])
def test_relative_difference_does_not_depend_on_the_scale(scale):
    """By hand: 0.5 / 2 of the first tensor, 1.5 / 4 of the second; powers of two round nothing."""
    reference = (torch.tensor([1.0, -2.0]), torch.tensor([4.0]))
    ours = (torch.tensor([1.0, -2.5]), torch.tensor([2.5]))
    assert relative_difference([scale * t for t in ours], [scale * t for t in reference]) == 0.375
    # Each tensor by its own largest value, not by that of all.
    assert relative_difference([scale * ours[0], ours[1]], [scale * reference[0], reference[1]]) == 0.375
    assert relative_difference([scale * ours[0], reference[1]], [scale * reference[0], reference[1]]) == 0.25


def test_relative_difference_sees_shapes_nan_and_the_largest():
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5])
    assert relative_difference((a, {'x': b}), (a, {'x': b})) == 0
    assert relative_difference([b], [a]) == pytest.approx(0.25)
    assert np.isnan(relative_difference([a * torch.nan], [a]))
    with pytest.raises(ValueError, match='other shapes'):
        relative_difference([a], [a[:1]])
