"""Contract: Adaptive-RepL trains the network whose sites are its mask, and chooses the mask of the highest score.

Oracles: brute force over all masks; the network with these sites and weights, fixed, bit for bit; cosines by NumPy; the
plain network's keys and initial weights; one process on the joint batch.
"""

import copy
import pickle
from itertools import combinations, pairwise

import numpy as np
import pytest
import timm.models
import torch
import torchvision.models
from helpers import randomise
from mmengine.config import Config
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

import repl_mm
from repl_mm.adaptation import adaptive_blocks, mean_scores, share_scores
from repl_mm.analysis.cost import count_cost, predict_cost, variants
from repl_mm.backbones import ReplResNet, ReplResNetCIFAR, ReplSwin, ReplViT
from repl_mm.engine.strategies import shard_groups
from repl_mm.layers import AdaptiveBlock
from repl_mm.sites import Site
from repl_mm.surgery import computing_layers, sites_of

ADAPTIVE = dict(policy='adaptive', start='interval', every=4)


def cifar(repl: dict | None, **options) -> nn.Module:
    return ReplResNetCIFAR(32, base_channels=4, stem_channels=4, repl=repl, **options)


def bottlenecks(repl: dict | None) -> nn.Module:
    return ReplResNet(50, base_channels=4, stem_channels=4, repl=repl and repl | dict(every=3))


def vit(repl: dict | None) -> nn.Module:
    arch = dict(embed_dims=24, num_layers=8, num_heads=3, feedforward_channels=48)
    return ReplViT(arch=arch, img_size=32, patch_size=8, repl=repl)


def swin(repl: dict | None) -> nn.Module:
    arch = dict(embed_dims=12, depths=[2, 6], num_heads=[2, 4])
    return ReplSwin(
        arch=arch, img_size=32, window_size=4, pad_small_map=True, out_indices=(1,), drop_path_rate=0.0, repl=repl
    )


NETWORKS = {
    'BasicBlock': (cifar, {}),
    'Bottleneck': (bottlenecks, {}),
    'ViT': (vit, dict(mlp_fusion=True)),
    'head-wise ViT': (vit, dict(form='headwise', stop_gradient=False)),
    'Swin': (swin, {}),
    'blended ViT': (vit, dict(form='blend')),
    'dropped': (cifar, dict(form='drop')),
}


def adaptive(name: str) -> nn.Module:
    make, form = NETWORKS[name]
    return randomise(make(ADAPTIVE | form)).train()


def possible(network: nn.Module) -> list[Site]:
    """Positions that may be replaced, read off the network."""
    return [
        Site(stage, index)
        for stage, blocks in enumerate(network.repl_stages().values())
        for index, block in enumerate(blocks)
        if isinstance(block, AdaptiveBlock)
    ]


def masks(network: nn.Module, number: int) -> list[tuple[Site, ...]]:
    """All sets of so many positions without neighbours among them."""
    return [
        sites
        for sites in combinations(possible(network), number)
        if all(a.stage != b.stage or b.index - a.index > 1 for a, b in pairwise(sites))
    ]


def block_at(network: nn.Module, site: Site) -> AdaptiveBlock:
    return list(network.repl_stages().values())[site.stage][site.index]


def set_mask(network: nn.Module, sites: tuple[Site, ...]) -> None:
    for site in possible(network):
        block_at(network, site).is_replaced = site in sites


def fixed_twin(name: str, network: nn.Module) -> nn.Module:
    """The network with the sites of the mask and the same weights, whose sites never change."""
    make, form = NETWORKS[name]
    sites = sites_of(network.repl_stages().values())
    twin = make(form | dict(policy='explicit', sites=sites)) if name != 'Bottleneck' else explicit_bottlenecks(sites)
    names = [f'{stage}.{site.index}.' for site in sites for stage in [list(network.repl_stages())[site.stage]]]
    weights = {}
    for key, value in network.state_dict().items():
        if key.startswith(tuple(names)):
            if '.computing.' not in key:
                continue
            key = key.replace('computing.', '')
        weights[key] = value
    own = twin.state_dict()
    twin.load_state_dict({key: weights[key] for key in own})
    return twin.train()


def explicit_bottlenecks(sites: tuple[Site, ...]) -> nn.Module:
    return ReplResNet(50, base_channels=4, stem_channels=4, repl=dict(policy='explicit', sites=sites))


def gradients(network: nn.Module, x: Tensor) -> dict[str, Tensor | None]:
    network.zero_grad()
    network(x)[-1].square().sum().backward()
    return {name: p.grad for name, p in network.named_parameters()}


@pytest.mark.parametrize('name', NETWORKS)
def test_a_mask_is_the_network_with_these_sites(name):
    network = adaptive(name)
    for sites in masks(network, len(sites_of(network.repl_stages().values())))[::-5]:
        set_mask(network, sites)
        twin, x = fixed_twin(name, network), torch.randn(3, 3, 32, 32)
        assert network(x)[-1].equal(twin(x)[-1])
        ours, theirs = gradients(network, x), gradients(twin, x)
        replaced = [f'{list(network.repl_stages())[site.stage]}.{site.index}.' for site in sites]
        for key, grad in theirs.items():
            own = next((key.replace(at, f'{at}computing.', 1) for at in replaced if key.startswith(at)), key)
            assert same_or_none(ours.pop(own), grad), key
        # What does not run gets none: the originals of the sites, and the layers beside all others.
        assert [key for key, grad in ours.items() if grad is not None] == []
        assert len(ours) >= len(sites)
        network.eval(), twin.eval()  # with the statistics that these passes left
        assert network(x)[-1].equal(twin(x)[-1])
        network.train()


def same_or_none(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other if one is None or other is None else one.equal(other)


@pytest.mark.parametrize(('name', 'number'), [('BasicBlock', 3), ('ViT', 1), ('Swin', 1)])
def test_the_choice_is_the_best_of_all_masks(name, number):
    """Oracle: brute force, for ten random tables of scores."""
    network = adaptive(name)
    sites = possible(network)
    assert len(sites_of(network.repl_stages().values())) == number
    rng, seen = np.random.default_rng(0), set()
    for _ in range(10):
        table = dict(zip(sites, rng.uniform(-1, 1, len(sites)), strict=True))
        for site, score in table.items():
            block_at(network, site).computing.scores.copy_(torch.tensor([7 * score, 7]))
        names = repl_mm.adapt(network)
        best = max(masks(network, number), key=lambda mask: sum(map(table.get, mask)))
        assert sites_of(network.repl_stages().values()) == best
        assert len(names) == number
        assert list(names) == [n for n, block in adaptive_blocks(network).items() if block.computing.mask]
        assert not any(mean_scores(network).values())
        seen.add(best)
    assert len(seen) > 1


def test_many_sites_are_chosen_exactly_too():
    network = randomise(cifar(dict(policy='adaptive', start='budget', count=5)))
    rng = np.random.default_rng(1)
    for _ in range(10):
        table = dict(zip(possible(network), rng.uniform(-1, 1, 9), strict=True))
        for site, score in table.items():
            block_at(network, site).computing.scores.copy_(torch.tensor([score, 1]))
        repl_mm.adapt(network)
        best = max(masks(network, 5), key=lambda mask: sum(map(table.get, mask)))
        assert sites_of(network.repl_stages().values()) == best


@pytest.mark.parametrize('name', ['BasicBlock', 'ViT'])
def test_scores_are_the_mean_cosines_of_an_epoch(name):
    """Of batches of two sizes, in training alone; a replaced position by its computing layer."""
    network, seen = adaptive(name).double(), {}
    for key, block in adaptive_blocks(network).items():
        block.register_forward_hook(lambda _, args, out, key=key: seen.setdefault(key, []).append((args[0], out)))
    for images in (3, 2):
        network(torch.randn(images, 3, 32, 32).double())
        if images == 3:
            share_scores(network)
    expected = {}
    for key, pairs in seen.items():
        x, y = (np.concatenate([p[i].detach().numpy().reshape(len(p[i]), -1) for p in pairs]) for i in (0, 1))
        expected[key] = ((x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)).mean()
    network.eval()(torch.randn(2, 3, 32, 32).double())
    network.train()(torch.full((2, 3, 32, 32), torch.nan).double())
    share_scores(network)
    assert mean_scores(network) == pytest.approx(expected, rel=1e-12)


def test_without_a_score_the_sites_stay():
    network = adaptive('BasicBlock')
    sites = masks(network, 3)[5]
    set_mask(network, sites)
    repl_mm.adapt(network)
    assert sites_of(network.repl_stages().values()) == sites


def test_a_frozen_stage_is_left_alone():
    network = randomise(cifar(ADAPTIVE, frozen_stages=1)).train()
    network(torch.randn(2, 3, 32, 32))
    assert {name.partition('.')[0] for name in repl_mm.adapt(network)} == {'layer2', 'layer3'}


def test_what_is_replaced_is_not_trained():
    """Not by momentum, not by weight decay, and not by what was accumulated before the sites changed."""
    network, x = adaptive('BasicBlock'), torch.randn(4, 3, 32, 32)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, weight_decay=0.1)
    for sites in masks(network, 3)[::4]:
        network(x)[-1].square().mean().backward()  # what is left of the last sites
        set_mask(network, sites)
        network(x)[-1].square().mean().backward()
        before = copy.deepcopy(network.state_dict())
        optimizer.step()
        optimizer.zero_grad()
        for site in possible(network):
            block, prefix = block_at(network, site), f'layer{site.stage + 1}.{site.index}.'
            for name, parameter in block.named_parameters():
                runs = name.startswith('computing.') == (site in sites)
                assert parameter.equal(before[prefix + name]) != runs, prefix + name


PLAIN = [name for name, (_, form) in NETWORKS.items() if name != 'dropped']


@pytest.mark.parametrize('name', PLAIN)
def test_an_end_to_end_checkpoint_loads(name):
    network, plain = adaptive(name), randomise(NETWORKS[name][0](None))
    sites = sites_of(network.repl_stages().values())
    missing, left_over = network.load_state_dict(plain.state_dict(), strict=False)
    assert left_over == []
    assert missing
    assert all('.computing.' in key for key in missing)
    assert {key for key in network.state_dict() if '.computing.' not in key} == set(plain.state_dict())
    assert sites_of(network.repl_stages().values()) == sites
    set_mask(network, ())
    x = torch.randn(2, 3, 32, 32)
    assert network.eval()(x)[-1].equal(plain.eval()(x)[-1])


def test_the_mask_is_part_of_the_checkpoint():
    network = adaptive('BasicBlock')
    sites = masks(network, 3)[7]
    set_mask(network, sites)
    network(torch.randn(2, 3, 32, 32))
    share_scores(network)
    for other in (adaptive('BasicBlock'), copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        other.load_state_dict(network.state_dict())
        assert sites_of(other.repl_stages().values()) == sites
        assert mean_scores(other) == mean_scores(network)
        x = torch.randn(2, 3, 32, 32)
        assert other.eval()(x)[-1].equal(network.eval()(x)[-1])
        network.train()
        assert repl_mm.adapt(other) != ()
        assert any(mean_scores(network).values())  # the copy's scores are its own


@pytest.mark.parametrize(
    ('ours', 'theirs', 'said'),
    [
        (ADAPTIVE, dict(policy='interval', every=4), 'a computing layer at layer1.3'),
        (dict(policy='interval', every=4), ADAPTIVE, "policy 'adaptive'"),
        (None, ADAPTIVE, "policy 'adaptive'"),
        (ADAPTIVE | dict(neighbours='prev'), ADAPTIVE, 'no coefficient computing.beta'),
        (ADAPTIVE, ADAPTIVE | dict(neighbours='prev'), 'computing.beta is missing'),
    ],
)
def test_a_checkpoint_of_another_network_is_refused(ours, theirs, said):
    with pytest.raises(ValueError, match=said):
        cifar(ours).load_state_dict(cifar(theirs).state_dict(), strict=False)


@pytest.mark.parametrize('name', NETWORKS)
def test_it_deploys_to_what_its_sites_deploy_to(name):
    network = adaptive(name)
    set_mask(network, masks(network, len(sites_of(network.repl_stages().values())))[-2])
    network(torch.randn(4, 3, 32, 32))
    network.double().eval()
    x = torch.randn(2, 3, 32, 32).double()
    static, twin = repl_mm.deploy(network), repl_mm.deploy(fixed_twin(name, network).double())
    torch.testing.assert_close(static(x)[-1], network(x)[-1], rtol=1e-10, atol=1e-10)
    assert {k: v.shape for k, v in static.state_dict().items()} == {k: v.shape for k, v in twin.state_dict().items()}
    assert computing_layers(static) == []
    assert not any(isinstance(m, AdaptiveBlock) for m in static.modules())
    assert list(map(type, static.modules())) == list(map(type, twin.modules()))
    if name == 'BasicBlock':
        folded = repl_mm.deploy(network, fuse_all=True)
        torch.testing.assert_close(folded(x)[-1], network(x)[-1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('make', [cifar, bottlenecks, vit, swin])
def test_it_begins_with_the_plain_networks_weights(make):
    states = []
    for repl in (None, ADAPTIVE):
        torch.manual_seed(3)
        network = make(repl)
        network.init_weights()
        states.append(network.state_dict())
    assert all(states[1][key].equal(value) for key, value in states[0].items())


LIBRARIES = {
    'torchvision': lambda: torchvision.models.ResNet(BasicBlock, [1, 5, 1, 1], num_classes=3),
    'timm': lambda: timm.models.create_model('vit_tiny_patch16_224', img_size=32, patch_size=8, num_classes=3),
}


@pytest.mark.parametrize('name', LIBRARIES)
def test_a_network_of_another_library(name):
    network, x = LIBRARIES[name](), torch.randn(2, 3, 32, 32)
    keys = set(network.state_dict())
    selection = repl_mm.replace(network, **ADAPTIVE)
    randomise(network).train()
    assert len(selection.candidates) == len(adaptive_blocks(network))
    assert {key for key in network.state_dict() if '.computing.' not in key} == keys
    network(x).sum().backward()
    sites = repl_mm.adapt(network)
    assert len(sites) == len(selection.sites)
    network.double().eval()
    torch.testing.assert_close(repl_mm.deploy(network)(x.double()), network(x.double()), rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match='computing layers already'):
        repl_mm.replace(network, **ADAPTIVE)


def test_a_deep_network_is_copied_and_pickled():
    network = ReplResNet(152, base_channels=4, repl=ADAPTIVE)  # 33 layers in a row, each with a link to the next
    assert len(adaptive_blocks(copy.deepcopy(network))) == len(adaptive_blocks(pickle.loads(pickle.dumps(network))))


@pytest.mark.parametrize(
    ('repl', 'said'),
    [
        (dict(every=4), "needs 'start', .*'interval', 'budget', 'explicit', got start=None"),
        (dict(start='adaptive', every=4), "got start='adaptive'"),
        (dict(start='best', every=4), "got start='best'"),
        (dict(start=['interval'], every=4), 'got start='),
        (dict(start='interval', every=40), "policy 'interval' with every=40 leaves no site"),
        (dict(start='explicit', sites=[]), 'leaves no site'),
        (dict(start='interval'), "policy 'interval' needs 'every'"),
        (dict(start='interval', every=4, count=2), "start='interval' has no option 'count': it takes 'every'"),
        (dict(start='interval', every=4, nix=2), "have no option 'nix'"),
    ],
)
def test_what_is_no_adaptive_policy(repl, said):
    with pytest.raises(ValueError, match=said) as error:
        cifar(dict(policy='adaptive') | repl)
    assert '\n' not in str(error.value)


def test_what_does_not_go_with_it():
    with pytest.raises(ValueError, match="'stochastic_depth' does not go with policy 'adaptive'"):
        cifar(ADAPTIVE, stochastic_depth=0.2)
    with pytest.raises(ValueError, match="policy 'adaptive' does not go with sharded training"):
        shard_groups(cifar(ADAPTIVE))
    with pytest.raises(ValueError, match="policy 'adaptive' change in training"):
        repl_mm.warm_start(cifar(ADAPTIVE), cifar(None), [torch.randn(2, 3, 32, 32)])
    with pytest.raises(ValueError, match='no sites to choose anew'):
        repl_mm.adapt(cifar(dict(policy='interval', every=4)))


def test_its_cost_keeps_the_originals():
    """As Table XV has it: the memory of all parameters stays, the operations are those of the sites."""

    def config(**repl) -> Config:
        backbone = dict(type='repl_mm.ReplResNetCIFAR', depth=32, repl=repl)
        head = dict(type='LinearClsHead', num_classes=10, in_channels=64)
        neck = dict(type='GlobalAveragePooling')
        model = dict(type='ImageClassifier', backbone=backbone, neck=neck, head=head)
        return Config(dict(model=model, default_scope='mmpretrain'))

    counted = {name: count_cost(c, (3, 32, 32)) for name, c in variants(config(**ADAPTIVE)).items()}
    assert predict_cost(config(**ADAPTIVE), counted['E2E'], (3, 32, 32)) == counted
    fixed = config(policy='interval', every=4)
    assert counted['RepL'].values()[2:] == count_cost(fixed, (3, 32, 32)).values()[2:]
    beside = 4 * 3 * (16 + 32 + 64)  # coefficients and norms at three positions of each stage
    assert counted['RepL'].parameters == counted['E2E'].parameters + beside
    assert counted['drop'].parameters == counted['E2E'].parameters
