"""Contract: checkpointed training takes less memory, and ends with the weights and statistics of any other.

Oracle: the same network, or the same run, without it.
"""

import copy
from pathlib import Path

import pytest
import torch
from cli_helpers import CLASSIFIER, run
from helpers import randomise
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from repl_mm.compat import can_compile
from repl_mm.engine.hooks.activation_checkpointing import checkpoint_activations
from repl_mm.layers import ComputingLayer

DEMO = Path(__file__).parents[2] / 'configs/demo'
NETWORK = CLASSIFIER.replace(
    "type='ResNet_CIFAR', depth=18, base_channels=8",
    "type='repl_mm.ReplResNetCIFAR', depth=32, repl=dict(policy='interval', every=4)",
)


def small_resnet() -> nn.Module:
    return MODELS.build(dict(type='repl_mm.ReplResNetCIFAR', depth=32, repl=dict(policy='interval', every=4)))


def step(backbone: nn.Module) -> tuple[list[torch.Tensor], int]:
    """Gradients, and how many numbers were kept for the backward pass."""
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        out = backbone((torch.ones(2, 3, 32, 32) + torch.arange(32) / 32).to(next(backbone.parameters())))[-1]
    out.square().sum().backward()
    return [p.grad for p in backbone.parameters() if p.grad is not None], sum(saved)


@pytest.mark.parametrize('name', ['resnet32-repl', 'vit-tiny-repl'])
def test_a_step_keeps_less_and_changes_nothing(name):
    config = Config.fromfile(DEMO / f'{name}_digits.py')
    init_default_scope('mmpretrain')
    plain = randomise(MODELS.build(config.model.backbone)).train()
    checkpointed = copy.deepcopy(plain)
    blocks = checkpoint_activations(checkpointed)
    assert len(blocks) == sum(
        not isinstance(block, ComputingLayer) for stage in plain.repl_stages().values() for block in stage
    )
    (expected, whole), (found, kept) = step(plain), step(checkpointed)
    assert kept < 0.5 * whole
    assert len(found) == len(expected) > 50
    assert all(map(torch.equal, found, expected))
    [ours, theirs] = [dict(network.named_buffers()) for network in (checkpointed, plain)]
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())


@pytest.mark.skipif(not can_compile(), reason='this torch cannot compile computing layers')
def test_a_compiled_step_keeps_less_and_changes_nothing():
    """To rounding, in float64: the compiler sums in another order."""
    torch.compiler.reset()
    plain = randomise(small_resnet()).double().train()
    checkpointed = copy.deepcopy(plain)
    checkpoint_activations(checkpointed)
    compiled = torch.compile(checkpointed, backend='aot_eager', fullgraph=True)
    compiled(torch.ones(2, 3, 32, 32).double())  # under hooks of saved tensors, nothing is compiled
    checkpointed.load_state_dict(plain.state_dict())
    (expected, whole), (found, kept) = step(plain), step(compiled)
    assert kept < 0.5 * whole
    assert len(found) == len(expected) > 50
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(dict(checkpointed.named_buffers()), dict(plain.named_buffers()))


def test_the_hosts_own_counts_each_batch_twice():
    """Why there is a hook."""
    backbone = dict(type='repl_mm.ReplResNetCIFAR', depth=32, with_cp=True)
    network = MODELS.build(backbone).train()
    network(torch.ones(2, 3, 32, 32, requires_grad=True))[-1].sum().backward()
    assert network.layer1[0].norm1.num_batches_tracked == 2


def test_a_run_ends_as_without_it(tmp_path):
    states = []
    for name, hooks in (('plain', []), ('checkpointed', ["dict(type='repl_mm.ActivationCheckpointingHook')"])):
        (tmp_path / f'{name}.py').write_text(f'{NETWORK}custom_hooks = [{", ".join(hooks)}]\n')
        done = run('train', tmp_path / f'{name}.py', '--work-dir', tmp_path / name)
        assert done.code == 0, done.err
        states.append(torch.load(tmp_path / name / 'epoch_2.pth', weights_only=False)['state_dict'])
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][key], value) for key, value in states[1].items())


def test_another_backbone(tmp_path):
    (tmp_path / 'net.py').write_text(f"{CLASSIFIER}custom_hooks = [dict(type='repl_mm.ActivationCheckpointingHook')]\n")
    done = run('train', tmp_path / 'net.py', '--work-dir', tmp_path / 'out')
    assert done.code == 2
    assert 'ActivationCheckpointingHook needs a backbone of repl_mm, got ResNet_CIFAR' in done.err
