"""Contract: a warm start gives computing layers the least-squares fit to the blocks whose place they take.

Oracles: ``numpy.linalg.lstsq`` and scikit-learn's LinearRegression on stacked features in float64; blocks built inside
the span of their neighbours, which come back exactly; means and variances of activations by NumPy.
"""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from helpers import randomise, same
from mmpretrain.models import VisionTransformer
from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer
from sklearn.linear_model import LinearRegression
from torch import nn

import repl_mm
from repl_mm.backbones import ReplResNet, ReplViT
from repl_mm.fitting import WarmStart, adopt_weights, check_pair, estimate_norms, fit_features, fit_weights
from repl_mm.layers.least_squares import LeastSquares
from repl_mm.layers.parts import find_reader, reads
from repl_mm.surgery import computing_layers
from repl_mm.synthesis import row_norm

EVERY = dict(policy='interval', every=2)


def resnet(**repl):
    """A ResNet of 32 x 32 images with four BasicBlocks a stage, and its twin with sites."""
    torch.manual_seed(0)
    reference = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [4, 3, 3, 3], num_classes=5)
    randomise(reference.double().eval())
    network = copy.deepcopy(reference)
    repl_mm.replace(network, **(EVERY | repl))
    return network, reference


def hold_norms(network):
    """As ``norm_eval`` does: all norms but the sites' stay in eval mode."""
    own = {norm for layer in computing_layers(network) for norm in layer.modules()}
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm not in own:
            norm.train = lambda mode=True, norm=norm: norm


def settled(reference, data):
    """As a trained network's, its norms' statistics are those of the data."""
    norms = [module for module in reference.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for batch in data:
            reference(batch)
    for norm in norms:
        norm.momentum = 0.1
    return reference.eval()


VIT = dict(arch=dict(embed_dims=16, num_layers=5, num_heads=4, feedforward_channels=32), img_size=16, patch_size=4)


def vit(**repl):
    torch.manual_seed(0)
    reference = randomise(VisionTransformer(**VIT).double())
    reference.eval()  # which gives nothing back
    network = ReplViT(**VIT, repl={k: v for k, v in (EVERY | repl).items() if v is not None}).double()
    network.eval()
    return network, reference


def batches(number=3, size=32):
    torch.manual_seed(1)
    return [torch.randn(4, 3, size, size, dtype=torch.float64) for _ in range(number)]


def inputs_of(module, network, data):
    found = []
    handle = module.register_forward_pre_hook(lambda _, args: found.append(args[0].detach().clone()))
    with torch.no_grad():
        for batch in data:
            network(batch)
    handle.remove()
    return torch.cat(found)


def outputs_of(module, network, data):
    found = []
    handle = module.register_forward_hook(lambda _, args, out: found.append(out.detach().clone()))
    with torch.no_grad():
        for batch in data:
            network(batch)
    handle.remove()
    return torch.cat(found)


# --- Least squares ---


@pytest.mark.parametrize('intercept', [True, False])
def test_sums_give_what_the_rows_give(intercept):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2, 4, 50)) + 5
    squares = LeastSquares()
    for batch in np.split(rows, [20, 21], axis=-1):
        squares.add(torch.from_numpy(batch).split(7, dim=-1))
    found = squares.solve(intercept=intercept)
    for group in range(2):
        x, y = rows[group, :-1].T, rows[group, -1]
        oracle = LinearRegression(fit_intercept=intercept).fit(x, y)
        np.testing.assert_allclose(found.slopes[group], oracle.coef_, rtol=1e-9)
        np.testing.assert_allclose(found.intercept[group], oracle.intercept_, rtol=1e-9, atol=1e-12)


def test_of_constant_regressors_the_slopes_are_the_shortest():
    rows = np.stack([np.full(9, 2.0), np.full(9, 4.0), np.full(9, 10.0)])
    squares = LeastSquares()
    squares.add([torch.from_numpy(rows[None])])
    oracle = np.linalg.lstsq(rows[:2].T, rows[2], rcond=None)[0]
    np.testing.assert_allclose(squares.solve(intercept=False).slopes[0], oracle, rtol=1e-12)
    constant = squares.solve(intercept=True)
    assert constant.slopes.tolist() == [[0, 0]]
    assert constant.intercept.tolist() == [10]


# --- One site by an oracle ---


def test_a_basic_block_is_fitted_channel_by_channel():
    network, reference = resnet(stages=['layer1'])
    data = batches()
    settled(reference, data)
    report = repl_mm.warm_start(network, reference, data)
    (site,) = computing_layers(network)
    block = reference.layer1[1]
    x = inputs_of(block, reference, data)
    prev, next = reference.layer1[0].conv2.weight.detach(), reference.layer1[2].conv1.weight.detach()
    maps = [F.conv2d(x, w / row_norm(w)[..., None, None], padding=1) for w in (prev, next)]
    branch = outputs_of(block.bn2, reference, data)
    left, total = 0.0, 0.0
    for channel in range(64):
        design = np.stack([*(m[:, channel].numpy().ravel() for m in maps), np.ones(branch[:, 0].numel())], axis=1)
        target = branch[:, channel].numpy().ravel()
        solution = np.linalg.lstsq(design, target, rcond=None)[0]
        np.testing.assert_allclose([site.alpha[channel].item(), site.beta[channel].item()], solution[:2], rtol=1e-6)
        left += ((design @ solution - target) ** 2).sum()
        total += ((target - target.mean()) ** 2).sum()
    np.testing.assert_allclose(report.unexplained['layer1.1'], left / total, rtol=1e-6)


def test_a_site_is_fitted_on_the_features_of_the_changed_network():
    """The second site's slopes, on what the network has there once the first one is fitted."""
    network, reference = resnet(stages=['layer1', 'layer2'])
    data = batches()
    hold_norms(network)
    repl_mm.warm_start(network, reference, data)
    sites = computing_layers(network)
    x, h = inputs_of(sites[1], network, data), inputs_of(reference.layer2[1], reference, data)
    assert not torch.allclose(x, h)
    goal = outputs_of(reference.layer2[1].bn2, reference, data) + h - x
    prev, next = reference.layer2[0].conv2.weight.detach(), reference.layer2[2].conv1.weight.detach()
    maps = [F.conv2d(x, w / row_norm(w)[..., None, None], padding=1) for w in (prev, next)]
    design = np.stack([*(m[:, 3].numpy().ravel() for m in maps), np.ones(goal[:, 0].numel())], axis=1)
    solution = np.linalg.lstsq(design, goal[:, 3].numpy().ravel(), rcond=None)[0]
    np.testing.assert_allclose([sites[1].alpha[3].item(), sites[1].beta[3].item()], solution[:2], rtol=1e-3)


def test_a_site_is_fitted_on_settled_features():
    """The second site's slopes, on what is there when all norms have the statistics that the first site leaves."""
    network, reference = resnet(stages=['layer1', 'layer2'])
    data = batches()
    stepwise, report = copy.deepcopy(network), WarmStart()
    repl_mm.warm_start(network, reference, data)
    sites = check_pair(stepwise, reference)
    first, second = sites
    adopt_weights(stepwise, reference)
    fit_weights(sites, reference, report)
    fit_features(stepwise, {first: sites[first]}, reference, data, lambda model, batch: model(batch), report)
    unsettled = inputs_of(sites[second], stepwise, data)
    estimate_norms(stepwise, data, lambda model, batch: model(batch), report)
    x, h = inputs_of(sites[second], stepwise, data), inputs_of(reference.layer2[1], reference, data)
    assert not torch.allclose(x, unsettled)
    goal = outputs_of(reference.layer2[1].bn2, reference, data) + h - x
    prev, next = reference.layer2[0].conv2.weight.detach(), reference.layer2[2].conv1.weight.detach()
    maps = [F.conv2d(x, w / row_norm(w)[..., None, None], padding=1) for w in (prev, next)]
    design = np.stack([*(m[:, 3].numpy().ravel() for m in maps), np.ones(goal[:, 0].numel())], axis=1)
    solution = np.linalg.lstsq(design, goal[:, 3].numpy().ravel(), rcond=None)[0]
    found = network.get_submodule(second)
    np.testing.assert_allclose([found.alpha[3].item(), found.beta[3].item()], solution[:2], rtol=1e-6)


@pytest.mark.parametrize('repl', [{}, dict(coefficients='one'), dict(neighbours='prev'), dict(neighbours='next')])
def test_scalars_of_a_transformer(repl):
    network, reference = vit(policy='explicit', sites=[(0, 2)], **({'every': None} | repl))
    data = batches(size=16)
    repl_mm.warm_start(network, reference, data)
    (site,) = computing_layers(network)
    blocks = reference.layers
    x, out = inputs_of(blocks[2], reference, data), outputs_of(blocks[2], reference, data)
    sides = [blocks[i].attn.proj(x).detach().numpy().ravel() for i in (1, 3)]
    columns = dict(one=[sides[0] + sides[1]], prev=sides[:1], next=sides[1:]).get(next(iter(repl.values()), ''), sides)
    oracle = np.linalg.lstsq(np.stack(columns, axis=1), (out - x).numpy().ravel(), rcond=None)[0]
    found = [getattr(site, name).item() for name in site.coefficients]
    np.testing.assert_allclose(found, oracle, rtol=1e-8)


def test_heads_of_a_transformer():
    network, reference = vit(policy='explicit', sites=[(0, 2)], every=None, form='headwise')
    data = batches(size=16)
    repl_mm.warm_start(network, reference, data)
    (site,) = computing_layers(network)
    blocks = reference.layers
    x, out = inputs_of(blocks[2], reference, data), outputs_of(blocks[2], reference, data)
    normed = blocks[1].ln1(x).detach()
    columns, bias = [], 0
    for block in (blocks[1], blocks[3]):
        weight = block.attn.proj.weight.detach()
        weight = weight / row_norm(weight)
        bias = bias + block.attn.proj.bias.detach() / 2
        for head in range(4):
            part = slice(4 * head, 4 * head + 4)
            columns.append((normed[..., part] @ weight[:, part].T / 4).numpy().ravel())  # 16**-0.5
    oracle = np.linalg.lstsq(np.stack(columns, axis=1), (out - x - bias).numpy().ravel(), rcond=None)[0]
    np.testing.assert_allclose(torch.cat([site.alpha, site.beta]).detach().numpy(), oracle, rtol=1e-6)


# --- Blocks inside the span come back ---


def test_a_basic_block_that_is_one_convolution_comes_back():
    """Its branch is the mix of its neighbours' kernels: a first convolution that passes all on, above zero."""
    network, reference = resnet(stages=['layer1'])
    block, data = reference.layer1[1], batches()
    prev, after = (
        w / row_norm(w)[..., None, None] for w in (reference.layer1[0].conv2.weight, reference.layer1[2].conv1.weight)
    )
    with torch.no_grad():
        block.conv1.weight.zero_()
        block.conv1.weight[range(64), range(64), 1, 1] = 1
        block.bn1.reset_parameters()  # the identity: what comes in is above zero, as it comes out of a ReLU
        block.bn1.running_var.fill_(1 - block.bn1.eps)
        block.conv2.weight.copy_(torch.randn(64, 1, 1, 1) * prev + torch.randn(64, 1, 1, 1) * after)
    hold_norms(network)  # a norm's running variance is unbiased, what it divides by in training is not
    report = repl_mm.warm_start(network, reference, data)
    assert report.unexplained['layer1.1'] < 1e-12
    for batch in data:
        torch.testing.assert_close(network(batch), reference(batch), rtol=1e-6, atol=1e-6)


class Mix(TransformerEncoderLayer):
    """A block that adds a mix of two blocks' projections of its input."""

    def forward(self, x):
        prev, next = self.mixed
        return x + 0.7 * prev.attn.proj(x) - 0.3 * next.attn.proj(x)


reads(Mix)(find_reader(TransformerEncoderLayer(8, num_heads=2, feedforward_channels=8)))


def test_a_transformer_block_inside_the_span_comes_back():
    network, reference = vit(policy='explicit', sites=[(0, 2)], every=None)
    blocks, data = reference.layers, batches(size=16)
    blocks[2].__class__ = Mix
    object.__setattr__(blocks[2], 'mixed', (blocks[1], blocks[3]))
    repl_mm.warm_start(network, reference, data)
    (site,) = computing_layers(network)
    np.testing.assert_allclose([site.alpha.item(), site.beta.item()], [0.7, -0.3], rtol=1e-9)
    torch.testing.assert_close(network(data[0])[-1], reference(data[0])[-1], rtol=1e-8, atol=1e-8)


def test_weight_space_finds_a_mix_of_the_neighbours():
    network, reference = resnet(stages=['layer1'])
    prev, after = (
        w / row_norm(w)[..., None, None] for w in (reference.layer1[0].conv2.weight, reference.layer1[2].conv1.weight)
    )
    mixed = torch.randn(2, 64, dtype=torch.float64)
    with torch.no_grad():
        reference.layer1[1].conv2.weight.copy_(mixed[0].view(-1, 1, 1, 1) * prev + mixed[1].view(-1, 1, 1, 1) * after)
    report = WarmStart()
    fit_weights(check_pair(network, reference), reference, report)
    (site,) = computing_layers(network)
    torch.testing.assert_close(torch.stack([site.alpha, site.beta]).detach(), mixed, rtol=1e-8, atol=1e-10)
    assert report.distances['layer1.1'] < 1e-12


# --- Statistics ---


def test_statistics_are_averages_over_the_batches():
    network, reference = resnet()
    data = batches()
    report = repl_mm.warm_start(network, reference, data)
    norm = network.bn1  # behind the first convolution, which nothing has changed
    maps = [network.conv1(batch).detach().numpy() for batch in data]
    np.testing.assert_allclose(norm.running_mean, np.mean([m.mean((0, 2, 3)) for m in maps], axis=0), rtol=1e-6)
    variances = [m.transpose(1, 0, 2, 3).reshape(64, -1).var(axis=1, ddof=1) for m in maps]
    np.testing.assert_allclose(norm.running_var, np.mean(variances, axis=0), rtol=1e-6)
    assert norm.momentum == 0.1
    assert (report.kept, report.norms) == ([], sum(isinstance(m, nn.BatchNorm2d) for m in network.modules()))


def test_norms_that_the_host_holds_stay():
    """norm_eval: the sites' norms alone get statistics."""
    options = dict(depth=34, norm_eval=True, frozen_stages=1)
    torch.manual_seed(0)
    reference = randomise(ReplResNet(**options))
    network = ReplResNet(**options, repl=dict(policy='budget', every=4))
    sites = computing_layers(network)
    for layer in sites:  # long warmed up, so that the host holds them too
        layer.norm.num_batches_tracked.fill_(1000)
    network.train()
    assert not any(layer.norm.training for layer in sites)
    data = [batch.float() for batch in batches()]
    report = repl_mm.warm_start(network, reference, data)
    assert (report.norms, len(report.kept)) == (len(sites), 36 - 2 * len(sites))
    theirs = reference.state_dict()
    kept = [key for key in network.state_dict() if 'running' in key and key in theirs]
    assert len(kept) == 2 * (36 - 2 * len(sites))
    assert all(torch.equal(network.state_dict()[key], theirs[key]) for key in kept)
    with torch.no_grad():  # the first site's, in front of which nothing has changed
        means = [sites[0].before_norm(inputs_of(sites[0], network.eval(), [batch])).mean((0, 2, 3)) for batch in data]
    torch.testing.assert_close(sites[0].norm.running_mean, torch.stack(means).mean(0))


def test_a_norm_that_does_not_run_keeps_its_statistics():
    network, reference = resnet()
    for model in (network, reference):
        model.auxiliary = randomise(nn.Sequential(nn.BatchNorm2d(3)))
    reference.auxiliary = copy.deepcopy(network.auxiliary)
    repl_mm.warm_start(network, reference, batches())
    assert torch.equal(network.auxiliary[0].running_mean, reference.auxiliary[0].running_mean)


# --- The whole ---


def test_repeats_to_the_bit_and_keeps_the_mode():
    ends = []
    for _ in range(2):
        network, reference = resnet()
        network.train()
        repl_mm.warm_start(network, reference, batches())
        assert network.training
        assert not reference.training
        ends.append(network.state_dict())
    assert same(*ends)


FORMS = [
    dict(form='scalar'),
    dict(form='scalar', mlp_fusion=True),
    dict(form='headwise'),
    dict(form='scalar', sources='none'),
]


@pytest.mark.parametrize('repl', FORMS)
def test_each_transformer_form_comes_nearer_to_its_block(repl):
    """The first site, whose input nothing has changed yet."""
    network, reference = vit(**repl)
    data = batches(size=16)
    cold = copy.deepcopy(network)
    cold.load_state_dict(reference.state_dict(), strict=False)
    repl_mm.warm_start(network, reference, data)
    block = reference.layers[1]
    x, out = inputs_of(block, reference, data), outputs_of(block, reference, data)
    errors = [float((model.layers[1](x) - out).square().sum()) for model in (network, cold)]
    assert errors[0] < 0.97 * errors[1]


def test_bottlenecks_come_nearer_to_the_reference():
    torch.manual_seed(0)
    reference = randomise(torchvision.models.resnet50(num_classes=3).eval())
    network = copy.deepcopy(reference)
    repl_mm.replace(network, policy='budget', every=4)
    report = repl_mm.warm_start(network, reference, [batch.float() for batch in batches(2)])
    assert len(report.unexplained) == len(computing_layers(network)) > 1
    assert all(0 < value < 1 for value in report.unexplained.values())


def test_another_way_to_call_the_network():
    network, reference = resnet()
    data = [dict(image=batch) for batch in batches()]
    repl_mm.warm_start(network, reference, data, forward=lambda model, batch: model(batch['image']))
    other, _ = resnet()
    repl_mm.warm_start(other, reference, batches())
    assert same(network.state_dict(), other.state_dict())


# --- Bad input ---


class _Other(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)


def _nan(network, reference):
    with torch.no_grad():
        reference.conv1.weight[0, 0, 0, 0] = torch.nan
    return network, reference, batches()


BAD = {
    'a reference with sites': (lambda n, r: (n, n, batches()), 'the reference has computing layers itself'),
    'no sites': (lambda n, r: (r, r, batches()), 'the network has no computing layers to fit'),
    'another network': (lambda n, r: (n, _Other(), batches()), 'the reference is another network'),
    'another depth': (
        lambda n, r: (n, torchvision.models.resnet50(), batches()),
        'belongs to another|is another network',
    ),
    'no batch': (lambda n, r: (n, r, []), 'there is no batch'),
    'an iterator': (lambda n, r: (n, r, iter(batches())), 'give a list or a loader, not an iterator'),
    'NaN': (_nan, 'hold NaN or infinite values'),
}


@pytest.mark.parametrize('name', BAD)
def test_what_cannot_be_fitted_is_said(name):
    make, expected = BAD[name]
    with pytest.raises(ValueError, match=expected) as caught:
        repl_mm.warm_start(*(given := make(*resnet())))
    assert '\n' not in str(caught.value)
    if name == 'NaN':  # found when much was done already
        assert same(given[0].state_dict(), resnet()[0].state_dict())


def test_dropped_blocks_are_no_computing_layers():
    network, reference = resnet(form='drop')
    with pytest.raises(ValueError, match='give one with sites, not dropped or deployed'):
        repl_mm.warm_start(network, reference, batches())


def test_constant_features_give_a_finite_fit():
    network, reference = resnet()
    repl_mm.warm_start(network, reference, [torch.zeros(2, 3, 32, 32, dtype=torch.float64)] * 2)
    assert all(torch.isfinite(value).all() for value in network.state_dict().values())
