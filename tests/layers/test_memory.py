"""Contract: recomputation, sampled gradients and the compiler change what a step costs, not what it computes.

Oracles: the same layer without them; the mean over all draws for the sampled gradient; sizes of saved tensors by hand.
"""

import copy
import math

import pytest
import torch
from helpers import randomise
from mmengine.model import ExponentialMovingAverage
from test_layers import NORMS, basic, bottleneck, encoder, site
from torch import nn
from torch.utils.checkpoint import checkpoint

from repl_mm.compat import can_compile
from repl_mm.layers import ComputingBasicBlock, ComputingBottleneck, HeadwiseTransformerLayer, ScalarTransformerLayer
from repl_mm.layers.memory import sampled_conv2d

LAYERS = {
    'basic': lambda **options: site(ComputingBasicBlock, basic(), **options),
    'bottleneck': lambda **options: site(ComputingBottleneck, bottleneck(), **options),
    'grouped': lambda **options: site(ComputingBottleneck, bottleneck(groups=4, base_width=16), **options),
    'scalar': lambda **options: site(ScalarTransformerLayer, encoder(), mlp_fusion=True, **options),
    'headwise': lambda **options: site(HeadwiseTransformerLayer, encoder(), mlp_fusion=True, **options),
}
SHAPES = {
    'basic': (4, 8, 9, 7),
    'bottleneck': (4, 32, 9, 7),
    'grouped': (4, 32, 9, 7),
    'scalar': (4, 5, 12),
    'headwise': (4, 5, 12),
}


def step(layer: nn.Module, x: torch.Tensor, autocast: bool = False) -> list[torch.Tensor]:
    """Output, gradients of input and parameters, and buffers after one step in train mode."""
    x = x.clone().requires_grad_()
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        out = layer.train()(x)
    torch.manual_seed(1)
    grads = torch.autograd.grad(out, (x, *layer.parameters()), torch.randn_like(out))
    return [out.detach(), *grads, *(buffer.clone() for buffer in layer.buffers())]


@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('kind', LAYERS)
def test_recomputation_changes_no_bit(kind, autocast):
    torch.manual_seed(0)
    plain = randomise(LAYERS[kind]())
    torch.manual_seed(0)
    lean = randomise(LAYERS[kind](recompute=True))
    x = torch.randn(SHAPES[kind])
    for ours, theirs in zip(step(lean, x, autocast), step(plain, x, autocast), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize(
    ('kind', 'maps', 'spared'),
    # Kept for one image, in maps of the input's size: the input, the norm's input and ReLU's output; and two thin maps
    # of a quarter each; the inputs of the projection, of the norm and of GELU, which is twice as wide, and statistics.
    [('basic', 3, 1), ('bottleneck', 3.5, 1), ('scalar', 4 + 2 / 12, 2)],
)
def test_recomputation_spares_what_it_says(kind, maps, spared):
    def saved(layer: nn.Module, images: int) -> int:
        kept = {}
        keep = lambda t: kept.update({t.untyped_storage().data_ptr(): t}) or t  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            out = layer.train()(torch.randn(images, *SHAPES[kind][1:], requires_grad=True))
        assert out.requires_grad
        return sum(t.numel() for t in kept.values())

    image = math.prod(SHAPES[kind][1:])
    plain, lean = LAYERS[kind](), LAYERS[kind](recompute=True)
    assert saved(plain, 5) - saved(plain, 4) == round(maps * image)
    # Where recomputation is on, its own hooks stand before these, so an encoder's statistics are still among them.
    assert saved(lean, 5) - saved(lean, 4) == round((maps - spared) * image)


@pytest.mark.parametrize('geometry', [dict(), dict(dilation=(2, 2), padding=(2, 2)), dict(groups=4)])
def test_sampled_gradient_is_unbiased_and_the_rest_exact(monkeypatch, geometry):
    geometry = dict(stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1) | geometry
    x = torch.randn(3, 8, 6, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, 8 // geometry['groups'], 3, 3, dtype=torch.float64, requires_grad=True)
    theirs = torch.conv2d(x, weight, **geometry)
    grad = torch.randn_like(theirs)
    expected_x, expected_weight = torch.autograd.grad(theirs, (x, weight), grad)
    draws = []
    for image in range(3):
        monkeypatch.setattr(torch, 'randperm', lambda n, device, image=image: torch.arange(n).roll(image))
        ours = sampled_conv2d(x, weight, fraction=0.3, **geometry)
        grad_x, grad_weight = torch.autograd.grad(ours, (x, weight), grad)
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(grad_x, expected_x)
        draws.append(grad_weight)
    assert not draws[0].allclose(expected_weight)
    torch.testing.assert_close(sum(draws) / 3, expected_weight)


@pytest.mark.parametrize(('images', 'fraction'), [(0, 0.25), (1, 0.25), (3, 1), (3, 0.9)])
def test_a_convolution_that_draws_all_images_is_the_ordinary_one(images, fraction):
    x, weight = torch.randn(images, 8, 6, 5), torch.randn(8, 8, 3, 3, requires_grad=True)
    geometry = dict(stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1)
    out = sampled_conv2d(x, weight, fraction=fraction, **geometry)
    assert out.equal(torch.conv2d(x, weight, padding=1))
    assert out.grad_fn.name() == 'ConvolutionBackward0'


@pytest.mark.parametrize('kind', ['basic', 'bottleneck', 'grouped'])
def test_only_coefficients_feel_the_sampling(kind):
    torch.manual_seed(0)
    plain = randomise(LAYERS[kind]())
    torch.manual_seed(0)
    sampled = randomise(LAYERS[kind](grad_fraction=0.5))
    x = torch.randn(SHAPES[kind])
    same = [
        torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)
        for ours, theirs in zip(step(sampled, x), step(plain, x), strict=True)
    ]
    names = ['output', 'input', *dict(plain.named_parameters()), *dict(plain.named_buffers())]
    assert {name for name, is_same in zip(names, same, strict=True) if not is_same} == {'alpha', 'beta'}


def test_sampling_runs_in_half_precision_under_autocast():
    # Images that are all alike, so any of them tells the gradient of all.
    x, weight = torch.randn(1, 8, 5, 5).repeat(4, 1, 1, 1), torch.randn(8, 8, 3, 3, requires_grad=True)
    geometry = dict(stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1)
    with torch.autocast('cpu', torch.bfloat16):
        out = sampled_conv2d(x, weight, fraction=0.25, **geometry)
        expected = torch.conv2d(x, weight, padding=1)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected)
    grads = [torch.autograd.grad(y.float().square().sum(), weight)[0] for y in (out, expected)]
    torch.testing.assert_close(*grads, rtol=2e-2, atol=1e-2)


compiles = pytest.mark.skipif(not can_compile(), reason='this torch cannot compile computing layers')


@compiles
@pytest.mark.parametrize('options', [dict(), dict(recompute=True)], ids=str)
@pytest.mark.parametrize('kind', LAYERS)
def test_the_compiler_sees_one_graph_with_the_same_gradients(kind, options):
    """Torch 2.11's compiler loses the gradients of some custom functions silently."""
    torch.compiler.reset()  # it gives up on code that it has compiled for eight other layers
    layer = randomise(LAYERS[kind](**options))
    compiled = torch.compile(copy.deepcopy(layer), backend='aot_eager', fullgraph=True)
    x = torch.randn(SHAPES[kind])
    for ours, theirs in zip(step(compiled, x), step(layer, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@compiles
def test_the_compiler_gives_the_exact_gradient_instead_of_a_sampled_one():
    layer = randomise(LAYERS['basic'](grad_fraction=0.25))
    compiled = torch.compile(copy.deepcopy(layer), backend='aot_eager', fullgraph=True)
    layer.options['grad_fraction'] = 1
    x = torch.randn(SHAPES['basic'])
    for ours, theirs in zip(step(compiled, x), step(layer, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('kind', LAYERS)
def test_recomputation_reads_what_the_forward_pass_read(kind):
    """Other weights are lent for the forward pass alone."""
    grads = []
    x = torch.randn(SHAPES[kind])
    for options in ({}, dict(recompute=True)):
        torch.manual_seed(0)
        layer = randomise(LAYERS[kind](**options)).train()
        network = nn.ModuleList([layer.prev, layer, layer.next])
        network.forward = lambda x, network=network: network[1](x)
        lent = {name: 1.5 * p.detach() + 0.1 for name, p in network.named_parameters()}
        lent |= {name: p.requires_grad_() for name, p in lent.items() if name.startswith('1.')}
        out = torch.func.functional_call(network, lent, (x,))
        grads.append(torch.autograd.grad(out.square().sum(), [p for p in lent.values() if p.requires_grad]))
    assert all(a.equal(b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize('norm', NORMS)
def test_recomputation_works_with_norms_that_reshape(norm):
    grads = []
    x = torch.randn(SHAPES['basic'], requires_grad=True)
    for options in ({}, dict(recompute=True)):
        torch.manual_seed(0)
        layer = site(ComputingBasicBlock, basic(norm_cfg=NORMS[norm]), **options).train()
        grads.append(torch.autograd.grad(layer(x).square().sum(), (x, *layer.parameters())))
    assert all(a.equal(b) for a, b in zip(*grads, strict=True))


def test_the_backward_pass_may_run_under_autocast():
    grads = []
    x = torch.randn(SHAPES['bottleneck'], requires_grad=True)
    for options in ({}, dict(recompute=True)):
        torch.manual_seed(0)
        layer = randomise(LAYERS['bottleneck'](**options)).train()
        out = layer(x).square().sum()
        with torch.autocast('cpu', torch.bfloat16):
            grads.append(torch.autograd.grad(out, x)[0])
    assert grads[0].equal(grads[1])


@pytest.mark.parametrize('reentrant', [False, True])
@pytest.mark.parametrize('options', [dict(), dict(recompute=True)], ids=str)
@pytest.mark.parametrize('kind', LAYERS)
def test_a_checkpointed_layer_has_the_same_gradients(kind, options, reentrant):
    layer = randomise(LAYERS[kind](**options)).train()
    x = torch.randn(SHAPES[kind], requires_grad=True)
    wanted = (x, *layer.parameters())
    grads = []
    for run in (layer, lambda x: checkpoint(layer, x, use_reentrant=reentrant)):
        for tensor in wanted:
            tensor.grad = None
        run(x).square().sum().backward()
        grads.append([tensor.grad for tensor in wanted])
    assert all(a.equal(b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize('options', [dict(), dict(recompute=True)], ids=str)
@pytest.mark.parametrize('kind', LAYERS)
def test_gradients_accumulate(kind, options):
    layer = randomise(LAYERS[kind](**options)).eval()  # each image by itself
    x = torch.randn(SHAPES[kind])
    whole = torch.autograd.grad(layer(x).square().sum(), (layer.alpha, layer.beta))
    for half in x.split(2):
        layer(half).square().sum().backward()
    torch.testing.assert_close((layer.alpha.grad, layer.beta.grad), whole, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def set_in_place(layer: nn.Module, weight: nn.Parameter) -> None:
    weight.mul_(2)


def exchange_data(layer: nn.Module, weight: nn.Parameter) -> None:
    weight.data = 2 * weight.data


def write_through_data(layer: nn.Module, weight: nn.Parameter) -> None:
    weight.data.mul_(2)  # as fused optimizers do, which count no version


def average_and_exchange(layer: nn.Module, weight: nn.Parameter) -> None:
    """As mmengine's EMA hook does before it lets a validation loop set the mode."""
    average = ExponentialMovingAverage(nn.ParameterList([2 * weight.data]))
    weight.data.copy_(average.module[0].data)
    layer.eval()


@pytest.mark.parametrize('change', [set_in_place, exchange_data, write_through_data, average_and_exchange])
@pytest.mark.parametrize('kind', ['basic', 'scalar'])
def test_evaluation_follows_every_change(kind, change):
    """Oracle: a site that is made anew of the changed blocks."""
    layer = randomise(LAYERS[kind]()).eval()
    # A mix of kernels is normalised, so that one twice as large would give the same: a coefficient is changed instead.
    weight = layer.alpha if kind == 'basic' else layer.prev.attn.proj.weight
    x = torch.randn(SHAPES[kind])
    with torch.no_grad():
        before = layer(x)
        change(layer, weight)
        after = layer(x)
        fresh = copy.deepcopy(layer)(x)
    assert after.equal(fresh)
    assert not after.allclose(before)


def test_inference_mode_and_borrowed_weights_work():
    layer = randomise(LAYERS['basic']()).eval()
    x = torch.randn(SHAPES['basic'])
    with torch.no_grad():
        expected = layer(x)
        other = copy.deepcopy(layer)
        other.alpha.mul_(2)
        with_other = torch.func.functional_call(layer, {'alpha': other.alpha.detach()}, (x,))
        assert with_other.equal(other(x))
        assert layer(x).equal(expected)
    with torch.inference_mode():
        assert copy.deepcopy(layer)(x).equal(expected)
