"""Contract: the variants that the papers compare are the plain formulas with terms left out, shared or not cut off.

Oracles: the formulas in plain torch, in float64; the layer of both neighbours; gradcheck; parameter counts by hand.
"""

import copy

import oracles
import pytest
import torch
from helpers import randomise
from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer
from mmseg.models.backbones.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from repl_mm.layers import (
    ComputingBasicBlock,
    ComputingBottleneck,
    ComputingLayer,
    HeadwiseTransformerLayer,
    ScalarTransformerLayer,
)

KINDS = {
    'basic': (ComputingBasicBlock, lambda: BasicBlock(4, 4), (3, 4, 5, 4)),
    'bottleneck': (ComputingBottleneck, lambda: Bottleneck(8, 2), (3, 8, 4, 3)),
    'scalar': (ScalarTransformerLayer, lambda: TransformerEncoderLayer(6, 3, 8), (2, 4, 6)),
    'headwise': (HeadwiseTransformerLayer, lambda: TransformerEncoderLayer(6, 3, 8), (2, 4, 6)),
}


def layer_and_input(kind: str, **options) -> tuple[ComputingLayer, Tensor]:
    """In float64 and train mode, with random norms and coefficients; the same blocks at each call."""
    form, block, shape = KINDS[kind]
    torch.manual_seed(0)
    removed, prev, next = (randomise(block()).double() for _ in range(3))
    return randomise(form(removed, prev=prev, next=next, **options)).double(), torch.randn(shape).double()


def mixed(layer: ComputingLayer) -> Tensor:
    return layer.weight() if hasattr(layer, 'weight') else layer.weight_and_bias()[0]


def by_formula(kind: str, layer: ComputingLayer, alpha: Tensor, beta: Tensor) -> Tensor:
    prev, next = layer.neighbours
    match kind:
        case 'basic':
            return oracles.channels(alpha, prev.conv2.weight, beta, next.conv1.weight)
        case 'bottleneck':
            return oracles.channels(alpha, prev.conv2.weight, beta, next.conv2.weight)
        case 'scalar':
            return oracles.scalars(alpha, prev.attn.proj.weight, beta, next.attn.proj.weight)
        case 'headwise':
            return oracles.heads(alpha, prev.attn.proj.weight, beta, next.attn.proj.weight) * 6**-0.5


@pytest.mark.parametrize('kind', KINDS)
def test_weights_are_the_formula_with_terms_left_out_or_shared(kind):
    left, _ = layer_and_input(kind, neighbours='prev')
    right, _ = layer_and_input(kind, neighbours='next')
    one, _ = layer_and_input(kind, coefficients='one')
    zero = torch.zeros_like(left.alpha)
    exact = dict(rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mixed(left), by_formula(kind, left, left.alpha, zero), **exact)
    torch.testing.assert_close(mixed(right), by_formula(kind, right, zero, right.beta), **exact)
    torch.testing.assert_close(mixed(one), by_formula(kind, one, one.alpha, one.alpha), **exact)
    grad = torch.randn_like(mixed(one))
    ours, theirs = (
        torch.autograd.grad(weight, one.alpha, grad)[0]
        for weight in (mixed(one), by_formula(kind, one, one.alpha, one.alpha))
    )
    torch.testing.assert_close(ours, theirs, **exact)
    both, _ = layer_and_input(kind)
    with torch.no_grad():
        both.alpha.copy_(left.alpha)
        both.beta.copy_(right.beta)
    torch.testing.assert_close(mixed(both), mixed(left) + mixed(right), **exact)


@pytest.mark.parametrize(
    ('options', 'names'),
    [
        ({}, {'alpha', 'beta'}),
        (dict(neighbours='prev'), {'alpha'}),
        (dict(neighbours='next'), {'beta'}),
        (dict(coefficients='one'), {'alpha'}),
    ],
)
@pytest.mark.parametrize(('kind', 'each', 'norm'), [('basic', 4, 8), ('bottleneck', 2, 16), ('scalar', 1, 0)])
def test_keys_and_parameters_by_hand(kind, each, norm, options, names):
    layer, _ = layer_and_input(kind, **options)
    assert {name for name, _ in layer.named_parameters() if not name.startswith('norm.')} == names
    assert sum(p.numel() for p in layer.parameters()) == len(names) * each + norm


def mlp_of(block: nn.Module) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    fc1, fc2 = block.ffn.layers[0][0], block.ffn.layers[1]
    return (fc1.weight, fc1.bias), (fc2.weight, fc2.bias)


@pytest.mark.parametrize(('neighbours', 'lenders'), [('both', (0, 1)), ('prev', (0, 0)), ('next', (1, 1))])
def test_the_mlp_alone(neighbours, lenders):
    layer, x = layer_and_input('scalar', sources='mlp', neighbours=neighbours)
    prev, next = (mlp_of(layer.neighbours[side]) for side in lenders)
    norm, activation = copy.deepcopy(layer.prev.ln2), nn.GELU()
    expected = oracles.fused_mlp(x, prev=prev, next=next, norm=norm, activation=activation)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    assert list(layer.parameters()) == []


def test_without_neighbours_weights_it_starts_as_the_identity_and_learns_an_affine_map():
    layer, x = layer_and_input('scalar', sources='none')
    expected = x + layer.gamma * x + layer.delta
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    assert {name: p.numel() for name, p in layer.named_parameters()} == dict(gamma=6, delta=6)
    layer.reset_parameters()
    assert layer(x).equal(x)


@pytest.mark.parametrize('sources', ['attention', 'both'])
@pytest.mark.parametrize('form', ['scalar', 'headwise'])
def test_sources_are_the_older_spelling(form, sources):
    (new, x), (old, _) = layer_and_input(form, sources=sources), layer_and_input(form, mlp_fusion=sources == 'both')
    assert new.state_dict().keys() == old.state_dict().keys()
    new.load_state_dict(old.state_dict())
    assert new(x).equal(old(x))


# With the number of the neighbours' tensors that are read: kernels or weights and biases, borrowed norms' both.
GRADIENTS = [
    ('basic', {}, 2),
    ('basic', dict(neighbours='prev'), 1),
    ('bottleneck', dict(coefficients='one'), 4),
    ('scalar', dict(sources='both'), 4 + 8 + 2),
    ('scalar', dict(sources='mlp', neighbours='next'), 4 + 2),
    ('headwise', dict(sources='both'), 4 + 8 + 2 + 2),
    ('headwise', dict(neighbours='next'), 2 + 2),
]


@pytest.mark.parametrize(('kind', 'options', 'number'), GRADIENTS, ids=str)
def test_gradients_reach_the_neighbours_when_they_are_asked_for(kind, options, number):
    layer, x = layer_and_input(kind, stop_gradient=False, **options)
    cut, _ = layer_and_input(kind, **options)
    torch.testing.assert_close(layer(x), cut(x), rtol=1e-12, atol=1e-12)
    parameters = [p for block in layer.neighbours for p in block.parameters()]
    found = torch.autograd.grad(layer(x).square().sum(), parameters, allow_unused=True)
    asked = [p for p, grad in zip(parameters, found, strict=True) if grad is not None]
    assert len(asked) == number
    assert torch.autograd.gradcheck(lambda *_: layer(x), (*asked, *layer.parameters()), fast_mode=True)
    if cut(x).requires_grad:
        own = [p for block in cut.neighbours for p in block.parameters()]
        assert not any(g is not None for g in torch.autograd.grad(cut(x).sum(), own, allow_unused=True))


def test_a_checkpoint_of_another_variant_is_refused():
    from repl_mm.backbones import ReplResNetCIFAR

    every = dict(policy='interval', every=4)
    both, left = (ReplResNetCIFAR(32, repl=every | extra) for extra in ({}, dict(neighbours='prev')))
    with pytest.raises(ValueError, match=r'another computing layer at layer1\.3: this one has no coefficient beta'):
        left.load_state_dict(both.state_dict(), strict=False)
    with pytest.raises(ValueError, match=r'a computing layer at layer1\.3.*beta is missing'):
        both.load_state_dict(left.state_dict(), strict=False)
    left.load_state_dict(ReplResNetCIFAR(32).state_dict(), strict=False)
