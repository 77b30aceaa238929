"""Contract: a computing layer is an ordinary block, convolution or linear layer with the synthesised weight.

Oracles: the host libraries' own blocks and torch's layers, loaded with weights that the plain formulas give; parameter
counts from Eq. 44, 47, 50 and 51.
"""

import oracles
import pytest
import torch
from helpers import randomise
from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer
from mmseg.models.backbones.resnet import BasicBlock, Bottleneck
from mmseg.models.backbones.resnext import Bottleneck as GroupedBottleneck
from torch import nn

from repl_mm.layers import (
    ComputingBasicBlock,
    ComputingBottleneck,
    HeadwiseTransformerLayer,
    ScalarTransformerLayer,
    fold,
)

NORMS = dict(
    IN=dict(type='IN', affine=True),
    GN=dict(type='GN', num_groups=2),
    BN=dict(type='BN'),
    plain=dict(type='BN', affine=False),
)


def basic(dilation: int = 1, **options) -> tuple[BasicBlock, ...]:
    return tuple(BasicBlock(8, 8, dilation=d, **options) for d in (dilation, 1, 1))


def bottleneck(dilation: int = 1, **kwargs) -> tuple[Bottleneck, ...]:
    block = GroupedBottleneck if kwargs else Bottleneck
    return tuple(block(32, 8, dilation=d, **kwargs) for d in (dilation, 1, 2))


def encoder(**kwargs) -> tuple[TransformerEncoderLayer, ...]:
    blocks = tuple(TransformerEncoderLayer(12, 3, 24, **kwargs) for _ in range(3))
    for block in blocks:
        block.init_weights()
        randomise(block)
    return blocks


def site(kind: type, blocks: tuple[nn.Module, ...], **options) -> nn.Module:
    removed, prev, next = blocks
    return kind(removed, prev=prev, next=next, **options)


def twin_norm(layer: nn.Module) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(layer.norm.num_features)
    norm.load_state_dict(layer.norm.state_dict())
    return norm


def assert_same_step(ours: nn.Module, theirs: nn.Module, x: torch.Tensor) -> None:
    """The same output, input gradient and running statistics in train mode, then the same output in eval mode."""
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    outputs = [ours.train()(inputs[0]), theirs.train()(inputs[1])]
    torch.testing.assert_close(*outputs)
    grad = torch.randn_like(x)
    torch.testing.assert_close(*(torch.autograd.grad(o, i, grad)[0] for o, i in zip(outputs, inputs, strict=True)))
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


class PlainBasic(nn.Module):
    """Eq. 11 with an ordinary convolution."""

    def __init__(self, layer: ComputingBasicBlock, *, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=dilation, dilation=dilation, bias=False)
        self.conv.weight.data = oracles.channels(
            layer.alpha, layer.prev.conv2.weight, layer.beta, layer.next.conv1.weight
        ).detach()
        self.norm = twin_norm(layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.norm(self.conv(x)))


@pytest.mark.parametrize('dilation', [1, 2])
def test_basic_block_is_a_plain_convolution_with_the_geometry_of_the_removed_block(dilation):
    layer = randomise(site(ComputingBasicBlock, basic(dilation)))
    assert_same_step(layer, PlainBasic(layer, dilation=dilation), torch.randn(4, 8, 9, 7))


@pytest.mark.parametrize(
    ('dilation', 'options'), [(1, {}), (4, {}), (1, dict(groups=4, base_width=16)), (2, dict(groups=2, base_width=32))]
)
def test_bottleneck_is_the_hosts_block_without_its_inner_norms(dilation, options):
    layer = randomise(site(ComputingBottleneck, bottleneck(dilation, **options)))
    host = bottleneck(dilation, **options)[0]
    host.conv1.weight.data = layer.prev.conv1.weight.data
    host.conv2.weight.data = oracles.channels(
        layer.alpha, layer.prev.conv2.weight, layer.beta, layer.next.conv2.weight
    ).detach()
    host.conv3.weight.data = layer.next.conv3.weight.data
    host.bn1, host.bn2, host.bn3 = nn.Identity(), nn.Identity(), twin_norm(layer)
    assert_same_step(layer, host, torch.randn(4, 32, 9, 7))


class PlainEncoder(nn.Module):
    """Eq. 21, 24 and 27 with torch's layers and the host's MLP."""

    def __init__(self, norm: nn.Module, proj: nn.Linear, mlp_norm: nn.Module | None, mlp: nn.Module | None) -> None:
        super().__init__()
        self.norm, self.proj, self.mlp_norm, self.mlp = norm, proj, mlp_norm, mlp

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.proj(self.norm(x))
        return x if self.mlp is None else self.mlp(self.mlp_norm(x), identity=x)


def loaded_linear(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    linear = nn.Linear(weight.size(1), weight.size(0))
    linear.load_state_dict({'weight': weight.detach(), 'bias': bias.detach()})
    return linear


def averaged_mlp(layer: nn.Module) -> nn.Module:
    mlp = TransformerEncoderLayer(12, 3, 24).ffn
    prev, next = layer.prev.ffn.state_dict(), layer.next.ffn.state_dict()
    mean = lambda key, form: (form(prev[key]) + form(next[key])) / 2  # noqa: E731
    mlp.load_state_dict({key: mean(key, oracles.rows if 'weight' in key else torch.clone) for key in prev})
    return mlp


@pytest.mark.parametrize('mlp_fusion', [False, True])
def test_scalar_transformer_layer_is_a_plain_linear_layer(mlp_fusion):
    layer = randomise(site(ScalarTransformerLayer, encoder(), mlp_fusion=mlp_fusion))
    prev, next = layer.prev.attn.proj, layer.next.attn.proj
    proj = loaded_linear(
        layer.alpha * prev.weight + layer.beta * next.weight, layer.alpha * prev.bias + layer.beta * next.bias
    )
    mlp = averaged_mlp(layer) if mlp_fusion else None
    assert_same_step(layer, PlainEncoder(nn.Identity(), proj, layer.prev.ln2, mlp), torch.randn(2, 5, 12))


@pytest.mark.parametrize('mlp_fusion', [False, True])
def test_headwise_transformer_layer_is_a_plain_linear_layer(mlp_fusion):
    layer = randomise(site(HeadwiseTransformerLayer, encoder(), mlp_fusion=mlp_fusion))
    prev, next = layer.prev.attn.proj, layer.next.attn.proj
    weight = oracles.heads(layer.alpha, prev.weight, layer.beta, next.weight) * 12**-0.5
    proj = loaded_linear(weight, (prev.bias + next.bias) / 2)
    mlp = averaged_mlp(layer) if mlp_fusion else None
    assert_same_step(layer, PlainEncoder(layer.prev.ln1, proj, layer.prev.ln2, mlp), torch.randn(2, 5, 12))


@pytest.mark.parametrize(
    ('layer', 'learnable'),
    [
        (lambda: site(ComputingBasicBlock, basic()), 4 * 8),  # Eq. 44
        (lambda: site(ComputingBottleneck, bottleneck()), 2 * 8 + 2 * 32),  # Eq. 47
        (lambda: site(ComputingBottleneck, bottleneck(groups=4, base_width=16)), 2 * 8 + 2 * 32),
        (lambda: site(ScalarTransformerLayer, encoder()), 2),  # Eq. 50
        (lambda: site(HeadwiseTransformerLayer, encoder()), 2 * 3),  # Eq. 51
        (lambda: site(ScalarTransformerLayer, encoder(), mlp_fusion=True), 2),
        (lambda: site(HeadwiseTransformerLayer, encoder(), mlp_fusion=True), 2 * 3),
    ],
)
def test_learnable_parameters(layer, learnable):
    assert sum(p.numel() for p in layer().parameters() if p.requires_grad) == learnable


@pytest.mark.parametrize(
    ('layer', 'shape'),
    [
        (lambda: site(ComputingBasicBlock, basic()), (2, 8, 5, 5)),
        (lambda: site(ComputingBottleneck, bottleneck()), (2, 32, 5, 5)),
        (lambda: site(ScalarTransformerLayer, encoder(), mlp_fusion=True), (2, 5, 12)),
        (lambda: site(HeadwiseTransformerLayer, encoder(), mlp_fusion=True), (2, 5, 12)),
    ],
)
def test_only_the_layers_own_parameters_get_gradients(layer, shape):
    layer = randomise(layer())
    layer(torch.randn(shape, requires_grad=True)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in layer.parameters())
    assert all(p.grad is None for block in layer.neighbours for p in block.parameters())


@pytest.mark.parametrize('kind', ['basic', 'bottleneck'])
def test_zero_init_starts_as_the_identity_of_a_rectified_input(kind):
    layer = {
        'basic': lambda: site(ComputingBasicBlock, basic(), zero_init_residual=True),
        'bottleneck': lambda: site(ComputingBottleneck, bottleneck(), zero_init_residual=True),
    }[kind]()
    x = torch.randn(2, 8 if kind == 'basic' else 32, 5, 5).relu()
    torch.testing.assert_close(layer(x), x)


def test_initial_coefficients():
    assert site(ComputingBasicBlock, basic()).alpha.eq(1).all()
    assert site(ComputingBottleneck, bottleneck()).beta.eq(1).all()
    assert site(ScalarTransformerLayer, encoder()).alpha.eq(0.5).all()
    assert site(HeadwiseTransformerLayer, encoder()).beta.eq(1).all()


def test_a_neighbour_of_another_shape_is_refused():
    removed, _, next = bottleneck()
    with pytest.raises(ValueError, match=r'left .* convolution 1 has shape \(8, 16, 1, 1\) where \(8, 32, 1, 1\)'):
        site(ComputingBottleneck, (removed, Bottleneck(16, 8, downsample=nn.Conv2d(16, 32, 1)), next))


def test_an_mlp_of_another_kind_is_refused():
    with pytest.raises(ValueError, match='mlp_fusion needs MLPs of two linear layers: leave it out'):
        site(ScalarTransformerLayer, encoder(ffn_type='swiglu_fused'), mlp_fusion=True)
    assert site(ScalarTransformerLayer, encoder(ffn_type='swiglu_fused'))(torch.ones(1, 2, 12)).shape == (1, 2, 12)


@pytest.mark.parametrize('place', ['removed', 'prev', 'next'])
def test_a_convolution_of_another_kind_is_refused_wherever_it_stands(place):
    blocks = dict(zip(('removed', 'prev', 'next'), basic(), strict=True))
    blocks[place] = BasicBlock(8, 8, conv_cfg=dict(type='ConvWS'))
    with pytest.raises(ValueError, match='ConvWS2d'):
        site(ComputingBasicBlock, tuple(blocks.values()))


@pytest.mark.parametrize('place', ['removed', 'prev', 'next'])
def test_a_block_with_plugins_is_refused_wherever_it_stands(place):
    blocks = dict(zip(('removed', 'prev', 'next'), bottleneck(), strict=True))
    blocks[place] = Bottleneck(32, 8, plugins=[dict(cfg=dict(type='ContextBlock', ratio=0.25), position='after_conv2')])
    with pytest.raises(ValueError, match='plugins'):
        site(ComputingBottleneck, tuple(blocks.values()))


@pytest.mark.parametrize('eps', [1e-5, 1e-3, 0.5])
@pytest.mark.parametrize(
    'options',
    [
        dict(bias=False),
        dict(bias=True),
        dict(bias=False, stride=2, padding=2, dilation=2, groups=2, padding_mode='reflect'),
    ],
    ids=['plain', 'bias', 'geometry'],
)
def test_a_folded_convolution_has_the_eps_of_its_norm(eps, options):
    """Oracle: torch's convolution and batch norm one after the other; variances of the size of eps show its place."""
    conv = nn.Conv2d(4, 6, 3, **options).double()
    norm = randomise(nn.BatchNorm2d(6, eps=eps)).double().eval()
    norm.running_var.mul_(eps)
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    folded = fold(conv, norm)
    assert type(folded) is nn.Conv2d
    torch.testing.assert_close(folded(x), norm(conv(x)), rtol=1e-10, atol=1e-10)
