"""Contract: of each block alone, how far its weights, its features and the score are from what replaces it.

Oracles: ``numpy.linalg.lstsq`` channel by channel; Eq. 41 written out on features; scipy's ``spearmanr`` and a
bootstrap by hand; tables of numbers.
"""

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from helpers import randomise
from scipy.stats import spearmanr
from torch import nn

import repl_mm
from repl_mm.analysis.recoverability import (
    Block,
    Fitted,
    LocalError,
    as_json,
    correlate,
    correlations,
    fit_block,
    identify,
    local_errors,
    lost,
    main_metric,
    read_losses,
)
from repl_mm.backbones import ReplResNetCIFAR, ReplViT
from repl_mm.layers import read
from repl_mm.sites import Site
from repl_mm.surgery import computing_layers


def residual(columns, target):
    """The distance of a vector from the span of others, over its norm."""
    design = np.stack([np.ravel(column) for column in columns], axis=1)
    solution = np.linalg.lstsq(design, np.ravel(target), rcond=None)[0]
    return np.linalg.norm(design @ solution - np.ravel(target)) / np.linalg.norm(target)


def numbers(weight):
    return weight.detach().double().numpy()


class Plain(nn.Module):
    """A network with the face of a host's model."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def data_preprocessor(self, batch, training):
        return batch

    def forward(self, inputs, mode):
        return self.backbone(inputs)


def resnet(**repl):
    torch.manual_seed(0)
    reference = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [4, 3, 3, 3], num_classes=5)
    randomise(reference.double().eval())
    network = copy.deepcopy(reference)
    repl_mm.replace(network, **(dict(policy='explicit', sites=[(0, 1)]) | repl))
    return Plain(network), Plain(reference)


def batches(seed, number=2):
    torch.manual_seed(seed)
    return [dict(inputs=torch.randn(4, 3, 32, 32, dtype=torch.float64)) for _ in range(number)]


# --- Distances ---


def test_distances_of_a_basic_block():
    network, reference = resnet()
    (layer,) = computing_layers(network)
    before = copy.deepcopy(layer.state_dict())
    stage = reference.backbone.layer1
    found = layer.fit().distances(read(stage[1]))
    assert found.keys() == {'conv1', 'conv2'}
    prev, next = numbers(stage[0].conv2.weight), numbers(stage[2].conv1.weight)
    for name, values in found.items():
        own = numbers(getattr(stage[1], name).weight)
        expected = [residual([prev[c], next[c]], own[c]) for c in range(64)]
        np.testing.assert_allclose(values, expected, rtol=1e-9)
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


def test_distances_inside_and_far_from_the_span():
    network, reference = resnet()
    (layer,) = computing_layers(network)
    stage = reference.backbone.layer1
    prev, next = stage[0].conv2.weight.detach(), stage[2].conv1.weight.detach()
    with torch.no_grad():
        stage[1].conv1.weight.copy_(3 * prev - 0.2 * next)
        stage[1].conv2.weight.zero_()
    found = layer.fit().distances(read(stage[1]))
    assert float(found['conv1'].max()) < 1e-7
    assert found['conv2'].tolist() == [0] * 64  # nothing is missing of what is zero
    with torch.no_grad():  # what is added at right angles stays: 1 beside a part of norm 1 inside the span
        for c in range(64):
            columns = [numbers(prev[c]).ravel(), numbers(next[c]).ravel(), np.eye(576)[c]]
            basis, _ = np.linalg.qr(np.stack(columns, axis=1))
            stage[1].conv1.weight[c] = torch.from_numpy(basis[:, 0] + basis[:, 2]).view(64, 3, 3)
    np.testing.assert_allclose(layer.fit().distances(read(stage[1]))['conv1'], np.full(64, 0.5**0.5), rtol=1e-9)


ARCH = dict(arch=dict(embed_dims=16, num_layers=5, num_heads=4, feedforward_channels=32), img_size=16, patch_size=4)


@pytest.mark.parametrize('form', ['scalar', 'headwise'])
def test_distances_of_a_projection(form):
    torch.manual_seed(0)
    network = ReplViT(**ARCH, repl=dict(policy='explicit', sites=[(0, 2)], form=form)).double()
    removed = randomise(ReplViT(**ARCH).double()).layers[2]
    layer, own = network.layers[2], numbers(removed.attn.proj.weight)
    prev, next = (numbers(network.layers[at].attn.proj.weight) for at in (1, 3))
    if form == 'headwise':
        prev, next = (w / np.sqrt((w**2).sum(1, keepdims=True) + 1e-8) for w in (prev, next))
    parts = [slice(4 * head, 4 * head + 4) for head in range(4)] if form == 'headwise' else [slice(None)]
    expected = [residual([prev[:, part], next[:, part]], own[:, part]) for part in parts]
    np.testing.assert_allclose(layer.fit().distances(read(removed))['proj'], expected, rtol=1e-6)


# --- Local error ---


def features(module, network, data):
    found = []
    handle = module.register_forward_hook(lambda _, args, out: found.append((args[0].clone(), out.clone())))
    with torch.no_grad():
        for batch in data:
            network.backbone(batch['inputs'])
    handle.remove()
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def test_local_error_by_hand():
    network, reference = resnet()
    data = batches(1, number=3)
    data[0]['inputs'][0] *= 0.001  # whose features are small: the error is then absolute
    for norm in (module for module in reference.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.bias.data.zero_()
        norm.running_mean.zero_()
    network.load_state_dict(reference.state_dict(), strict=False)
    randomise(computing_layers(network)[0])
    h, wanted = features(reference.backbone.layer1[1], reference, data)
    assert h[0].norm() < 1 < h[1].norm()
    given = network.eval().backbone.layer1[1](h)
    errors = [
        np.linalg.norm(numbers(given[i] - wanted[i])) / max(np.linalg.norm(numbers(h[i])), 1) for i in range(len(h))
    ]
    other, found = local_errors([copy.deepcopy(reference), network], reference, 'backbone.layer1.1', data)
    assert (found.mean, found.max) == (pytest.approx(np.mean(errors)), pytest.approx(max(errors)))
    assert (other.mean, other.max) == (0, 0)


def test_a_fitted_block():
    """Before the fit as it starts, after it as ``warm_start`` leaves it, each on data that it has not seen."""
    network, reference = resnet()
    seen, unseen = batches(1), batches(2)
    start, warm = copy.deepcopy(network), copy.deepcopy(network)
    found = fit_block(network, reference, seen, unseen)
    repl_mm.warm_start(warm.backbone, reference.backbone, [batch['inputs'] for batch in seen])
    assert all(torch.equal(value, warm.state_dict()[key]) for key, value in network.state_dict().items())
    start.load_state_dict(reference.state_dict(), strict=False)
    norms = [module for module in start.modules() if isinstance(module, nn.BatchNorm2d)]
    start.train()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    with torch.no_grad():
        for batch in seen:
            start.backbone(batch['inputs'])
    for changed, error in ((start, found.start), (warm, found.fitted)):
        h, wanted = features(reference.backbone.layer1[1], reference, unseen)
        apart = (changed.eval().backbone.layer1[1](h) - wanted).flatten(1).norm(dim=1)
        expected = apart / h.flatten(1).norm(dim=1).clamp_min(1)
        assert error.mean == pytest.approx(float(expected.mean().detach()))
        assert error.max == pytest.approx(float(expected.max().detach()))
    assert found.fitted.mean < found.start.mean
    stage = reference.backbone.layer1
    prev, next, own = (numbers(w) for w in (stage[0].conv2.weight, stage[2].conv1.weight, stage[1].conv2.weight))
    expected = np.mean([residual([prev[c], next[c]], own[c]) for c in range(64)])
    assert found.distances['conv2'] == pytest.approx(expected)


# --- Rank correlation ---


@pytest.mark.parametrize('seed', range(3))
def test_correlation_is_scipys_and_its_interval_that_of_resampled_blocks(seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=12)
    y = np.round(x + rng.normal(size=12))  # with ties
    found = correlate('it', x.tolist(), y.tolist())
    assert found.rho == pytest.approx(spearmanr(x, y).statistic)
    resampled = []
    for _ in range(3000):
        at = rng.integers(0, 12, 12)
        if len(set(y[at])) > 1:
            resampled.append(spearmanr(x[at], y[at]).statistic)
    np.testing.assert_allclose(found.interval, np.percentile(resampled, [2.5, 97.5]), atol=0.05)


def test_what_correlations_say():
    up, ties = list(range(10)), [0.0] * 9 + [1.0]
    assert correlate('it', up, up).verdict == 'yes'
    assert correlate('it', up, up[::-1]).verdict == 'no, the reverse'
    assert correlate('it', up, [0, 1] * 5).verdict == 'not shown: the interval holds 0'
    assert correlate('it', up, [2.0] * 10).verdict.startswith('unknown')
    assert correlate('it', [2.0] * 10, up).rho is None
    assert correlate('it', up, ties).interval[0] <= 0  # without the one block that differs nothing is known


def made(name, loss, *, error=1.0, **distances):
    fit = Fitted(distances, LocalError(error, error + 1), LocalError(error / 2, error))
    stage, index = name.removeprefix('layer').split('.')
    return Block(name, Site(int(stage) - 1, int(index)), fit, 90 - loss, loss)


def test_quantities_beside_the_loss():
    blocks = [
        made(f'layer1.{at}', float(at), error=3.0 - at, conv2=at**2, **{'conv1': 1} if at else {}) for at in range(3)
    ]
    found = {rank.quantity: rank.rho for rank in correlations(blocks)}
    assert found == {
        'distance of conv2': 1,
        'local error at the start, mean': -1,
        'local error after the fit, mean': -1,
        'local error at the start, max': -1,
        'local error after the fit, max': -1,
    }


def test_the_loss_is_what_gets_worse():
    assert lost('accuracy/top1', trained=90, replaced=88) == 2
    assert lost('perplexity', trained=80, replaced=90) == 10
    assert main_metric({'x': 1, 'coco/bbox_mAP_50': 1, 'coco/bbox_mAP': 1}) == 'coco/bbox_mAP'
    assert main_metric({'single-label/f1-score': 1}) == 'single-label/f1-score'


# --- The file ---

BACKBONE = dict(depth=32, stem_channels=4, base_channels=4)


@pytest.fixture
def file(tmp_path):
    backbone = ReplResNetCIFAR(**BACKBONE)
    blocks = [made(f'layer{stage}.{index}', stage + index / 10) for stage in (1, 2, 3) for index in (1, 2, 3)]
    path = tmp_path / 'recoverability.json'
    path.write_bytes(as_json(dict(network=identify(backbone), form={}, metric='accuracy/top1'), blocks, []))
    return SimpleNamespace(path=path, backbone=backbone)


def test_what_is_written_is_read(file):
    found = read_losses(file.path, file.backbone)
    assert found.of == {Site(s, i): pytest.approx(s + 1 + i / 10) for s in range(3) for i in (1, 2, 3)}
    assert (found.metric, found.form) == ('Top-1 accuracy (%)', {})


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(depth=44), r'its blocks are \[5, 5, 5\] and those of the config \[7, 7, 7\]'),
        (dict(base_channels=8), r'another network, its parameters are \d+ and those of the config \d+: run tools/reco'),
    ],
)
def test_another_networks_file_is_refused(file, change, message):
    with pytest.raises(ValueError, match=message):
        read_losses(file.path, ReplResNetCIFAR(**BACKBONE | change))


def no_loss(found):
    del found['blocks'][0]['loss']


def fewer(found):
    del found['blocks'][0]


def nan(found):
    found['blocks'][0]['loss'] = float('nan')


@pytest.mark.parametrize('spoil', [no_loss, fewer, nan])
def test_a_spoilt_file_is_refused(file, spoil):
    found = json.loads(file.path.read_text())
    spoil(found)
    file.path.write_text(json.dumps(found))
    with pytest.raises(ValueError, match=r'is no recoverability.json|is of another network'):
        read_losses(file.path, file.backbone)


@pytest.mark.parametrize('text', ['', '[]', '{}', '{"network": 1}', '[' * 100000])
def test_what_is_no_such_file_is_refused(file, text):
    file.path.write_text(text)
    with pytest.raises(ValueError, match=r'is no recoverability\.json: give the file that tools/recoverability.py has'):
        read_losses(file.path, file.backbone)
