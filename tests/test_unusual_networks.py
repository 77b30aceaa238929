"""Contract: what a network has beside plain blocks is honoured or refused, never lost silently.

Oracles: the network before and after deployment; the keys of a checkpoint by hand.
"""

import pytest
import torch
import torch.nn.functional as F
from helpers import randomise
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

import repl_mm
from repl_mm.deployment import relative_difference
from repl_mm.layers import ResidualParts, TransformerParts, reads


def resnet(blocks: int = 5, **options) -> ResNet:
    return ResNet(BasicBlock, [blocks, 1, 1, 1], num_classes=3, **options)


def replaced(network: nn.Module, index: int = 2, **options) -> nn.Module:
    repl_mm.replace(network, policy='explicit', sites=[(0, index)], **options)
    return network


class Attention(nn.Module):
    """A pre-norm block whose attention is left out: what it lends is what matters."""

    def __init__(self, width: int = 12, inner: int = 12, heads: object = 4, linear: type = nn.Linear) -> None:
        super().__init__()
        self.proj, self.fc1, self.fc2 = linear(inner, width), linear(width, 24), linear(24, width)
        self.norm1, self.norm2, self.heads = nn.LayerNorm(width), nn.LayerNorm(width), heads

    def forward(self, x):
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


@reads(Attention)
def _(block: Attention) -> TransformerParts:
    return TransformerParts(block.proj, block.norm1, block.norm2, (block.fc1, block.fc2), F.gelu, block.heads)


class Functional(BasicBlock):
    def forward(self, x):
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


@reads(Functional)
def _(block: Functional) -> ResidualParts:
    return ResidualParts((block.conv1, block.conv2), (block.bn1, block.bn2), F.relu)


class LowRankLinear(nn.Linear):
    def forward(self, x):
        return super().forward(x) + x.mean(-1, keepdim=True)


class DoubledNorm(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


def with_hooked_weight():
    network = resnet()
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(network.layer1[3].conv1)
    return network


def with_padding():
    network = resnet()
    network.layer1[2].conv1.padding_mode = 'circular'
    return network


def with_own_forward():
    network = resnet()
    network.layer1[2].forward = lambda x: x
    return network


@pytest.mark.parametrize(
    ('make', 'options', 'words'),
    [
        (with_hooked_weight, {}, 'weight norm, pruning'),
        (with_padding, {}, 'pad by something else than zeros'),
        (with_own_forward, {}, 'a forward that was set on it alone'),
        (lambda: nn.Sequential(*[Attention(linear=LowRankLinear) for _ in range(5)]), {}, 'LowRankLinear'),
        (lambda: nn.Sequential(*[Attention(inner=24) for _ in range(5)]), {}, 'another width than its tokens'),
        (
            lambda: nn.Sequential(*[Attention(heads=5) for _ in range(5)]),
            dict(form='headwise'),
            '5 heads do not divide',
        ),
        (lambda: nn.Sequential(*[Attention(heads=None) for _ in range(5)]), dict(form='headwise'), 'None heads'),
        (lambda: None, {}, 'takes a network'),
        (resnet, dict(stages=[]), "'stages' are names of modules"),
        (resnet, dict(stages=5), "'stages' are names of modules"),
    ],
)
def test_refused_with_a_one_line_message(make, options, words):
    with pytest.raises(ValueError, match=words) as caught:
        replaced(make(), **options)
    assert '\n' not in str(caught.value)


def test_a_network_that_is_itself_a_stage_checks_its_checkpoints():
    def stage(blocks: int, index: int) -> nn.Module:
        return replaced(nn.Sequential(*resnet(blocks).layer1), index)

    network = stage(5, 2)
    network.load_state_dict(stage(5, 2).state_dict())
    for other, words in ((stage(8, 2), 'another depth'), (stage(5, 1), 'missing')):
        with pytest.raises(ValueError, match=words):
            network.load_state_dict(other.state_dict(), strict=False)


def test_a_site_that_lost_its_neighbour_is_not_deployed():
    network = replaced(resnet())
    network.layer1 = network.layer1[:3]
    with pytest.raises(ValueError, match='has lost a neighbour'):
        repl_mm.deploy(network)


@pytest.mark.parametrize('norm_layer', [nn.BatchNorm2d, DoubledNorm])
def test_only_norms_of_torch_are_folded(norm_layer):
    network = randomise(replaced(resnet(norm_layer=norm_layer)).double()).eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    static = repl_mm.deploy(network, fuse_all=True)
    assert relative_difference(static(x), network(x)) < 1e-10
    assert any(isinstance(m, nn.BatchNorm2d) for m in static.modules()) == (norm_layer is DoubledNorm)


def test_a_norm_of_two_blocks_stays_as_it_is():
    network = resnet()
    network.layer1[4].bn2 = network.layer1[0].bn2
    randomise(replaced(network).double()).eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert relative_difference(repl_mm.deploy(network, fuse_all=True)(x), network(x)) < 1e-10


def test_hooks_of_a_removed_norm_are_not_the_sites():
    network = resnet()
    network.layer1[2].bn2.register_forward_hook(lambda module, args, out: 2 * out)
    sites = [randomise(replaced(n).double()).eval().layer1[2] for n in (network, resnet())]
    sites[1].load_state_dict(sites[0].state_dict())
    x = torch.randn(2, 64, 8, 8, dtype=torch.float64)
    assert sites[0].norm(x).equal(sites[1].norm(x))


def test_an_activation_that_is_a_function():
    network = nn.Sequential(*[Functional(8, 8) for _ in range(5)])
    randomise(replaced(network).double()).eval()
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    assert relative_difference(repl_mm.deploy(network, fuse_all=True)(x), network(x)) < 1e-10
