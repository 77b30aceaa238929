"""Contract: stochastic depth skips whole blocks in training, keeps the mean of the branch, and leaves the rest alone.

Oracles: the blocks' own parts, put together by hand; the same network without it.
"""

import copy

import pytest
import torch
from helpers import randomise
from mmengine.config import Config
from test_backbones import ReplResNet, ReplResNetCIFAR

from repl_mm.backbones import ReplResNeXt
from repl_mm.backbones.stochastic_depth import disabled_stochastic_depth
from repl_mm.layers import ComputingLayer

SITES = dict(policy='budget', count=3)
NETWORKS = {
    'basic': lambda **options: ReplResNet(34, base_channels=8, stem_channels=8, repl=SITES, **options),
    'bottleneck': lambda **options: ReplResNet(50, base_channels=8, repl=SITES, **options),
    'grouped': lambda **options: ReplResNeXt(depth=50, groups=2, base_width=4, repl=SITES, **options),
    'CIFAR': lambda **options: ReplResNetCIFAR(32, repl=SITES, **options),
}


@pytest.mark.parametrize('kind', NETWORKS)
def test_a_block_is_skipped_or_its_branch_is_scaled_up(kind, monkeypatch):
    network = randomise(NETWORKS[kind](stochastic_depth=0.8)).train()
    block = network.layer2[-1]
    assert block.skip_rate == pytest.approx(0.8 * sum(network.stage_blocks[:2]) / sum(network.stage_blocks))
    last = block.norm3 if hasattr(block, 'norm3') else block.norm2
    x = torch.rand(2, block.conv1.in_channels, 6, 6)
    monkeypatch.setattr(torch, 'rand', lambda _: torch.tensor(block.skip_rate + 1e-6))
    kept = block(x)
    inner = last_input(copy.deepcopy(block), x)
    branch = torch.nn.functional.batch_norm(inner, None, None, last.weight, last.bias, training=True)
    torch.testing.assert_close(kept, torch.relu(x + branch / (1 - block.skip_rate)), rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(torch, 'rand', lambda _: torch.tensor(block.skip_rate - 1e-6))
    assert block(x) is x


def test_skipping_rests_for_a_while(monkeypatch):
    block = randomise(NETWORKS['basic'](stochastic_depth=0.8)).train().layer2[-1]
    twin = copy.deepcopy(block)
    twin.skip_rate = 0
    x = torch.rand(2, block.conv1.in_channels, 6, 6)
    monkeypatch.setattr(torch, 'rand', lambda _: torch.tensor(0.0))
    with disabled_stochastic_depth(torch.nn.Sequential(block)):
        assert block(x).equal(twin(x))
    assert block(x) is x


def last_input(block: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What the last norm of a residual block gets."""
    out = block.norm1(block.conv1(x)).relu()
    out = block.conv2(out)
    return block.conv3(block.norm2(out).relu()) if hasattr(block, 'conv3') else out


@pytest.mark.parametrize('kind', NETWORKS)
def test_evaluation_keys_and_deployment_stay_as_they_are(kind):
    plain = randomise(NETWORKS[kind]()).eval()
    network = NETWORKS[kind](stochastic_depth=0.5)
    network.load_state_dict(plain.state_dict())
    network, x = copy.deepcopy(network).eval(), torch.randn(2, 3, 64, 64)
    expected = plain(x)
    assert all(ours.equal(theirs) for ours, theirs in zip(network(x), expected, strict=True))
    network.switch_to_deploy(fuse_all=True)
    torch.testing.assert_close(network(x), expected, rtol=1e-3, atol=1e-4)


def test_transitions_and_computing_layers_are_never_skipped():
    network = NETWORKS['basic'](stochastic_depth=0.5)
    rates = [getattr(block, 'skip_rate', 0) for stage in network.repl_stages().values() for block in stage]
    never = [
        isinstance(block, ComputingLayer) or block.downsample is not None
        for stage in network.repl_stages().values()
        for block in stage
    ]
    assert [rate == 0 for rate in rates] == never
    assert rates[0] == 0.5 / 16
    assert rates[-1] == 0.5
    dropped = ReplResNet(34, base_channels=8, repl=SITES | dict(form='drop'), stochastic_depth=0.5)
    assert len(dropped(torch.randn(2, 3, 32, 32))) == 4


@pytest.mark.parametrize('rate', [1, -0.1, '0.5', True])
def test_bad_rates_are_named(rate):
    with pytest.raises(ValueError, match="'stochastic_depth' is at least 0 and below 1, got"):
        ReplResNet(**Config(dict(depth=18, stochastic_depth=rate)))


def test_a_norm_in_eval_mode_makes_up_for_skips_too():
    network = randomise(NETWORKS['basic'](stochastic_depth=0.5, norm_eval=True)).train()
    block = network.layer4[-1]
    x = torch.rand(2, block.conv1.in_channels, 4, 4)
    kept = next(out for out in (block(x) for _ in range(99)) if out is not x)
    block.eval()
    norm = block.norm2
    inner = last_input(block, x)
    branch = torch.nn.functional.batch_norm(inner, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    torch.testing.assert_close(kept, torch.relu(x + 2 * branch), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(block(x), torch.relu(x + branch), rtol=1e-4, atol=1e-4)


def test_a_deployed_network_skips_nothing_and_builds_from_the_same_config():
    network = randomise(NETWORKS['basic'](stochastic_depth=0.9)).eval()
    x = torch.randn(2, 3, 32, 32)
    expected = network(x)
    network.switch_to_deploy(fuse_all=True)
    network.train()
    for _ in range(3):
        torch.testing.assert_close(network(x), expected, rtol=1e-3, atol=1e-4)
    built = NETWORKS['basic'](stochastic_depth=0.9, deploy=dict(fuse_all=True))
    assert built.load_state_dict(network.state_dict()).missing_keys == []


@pytest.mark.parametrize('kind', NETWORKS)
def test_a_pickled_network_is_the_same(kind, tmp_path):
    network = randomise(NETWORKS[kind](stochastic_depth=0.9)).eval()
    torch.save(network, tmp_path / 'network.pth')
    copied = torch.load(tmp_path / 'network.pth', weights_only=False)
    x = torch.randn(2, 3, 32, 32)
    assert all(ours.equal(theirs) for ours, theirs in zip(copied(x), network(x), strict=True))
    assert type(copied.layer2[-1]) is type(network.layer2[-1])
    assert copied.train().layer2[-1].training
