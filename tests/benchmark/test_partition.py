"""Contract: what a budget for activations keeps and recomputes is what torch's partitioner says.

Oracles: sizes counted by hand; what autograd keeps of the network as it is.
"""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import nn

from repl_mm.benchmark.devices import Device, find_device
from repl_mm.benchmark.partition import bytes_saved, predict_budget, split
from repl_mm.benchmark.predict import predict_step
from repl_mm.benchmark.variants import build_variants

DEMO = Path(__file__).parents[2] / 'configs/demo'
A100 = find_device('a100')


class Exp(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.exp()


def test_what_is_kept_by_hand():
    """Of 16 vectors: what each ``exp`` gives, 8 numbers of 4 bytes; images and weights are there anyway."""
    network = nn.Sequential(nn.Linear(4, 8, bias=False), Exp(), nn.Linear(8, 8, bias=False), Exp())
    x = torch.ones(16, 4)
    assert bytes_saved(network, x) == 2 * 16 * 8 * 4
    plain = split(network, x, A100)
    # The last one is kept for the backward pass, and given besides.
    assert plain.bytes_saved == 2 * 16 * 8 * 4
    # Two products forward, the gradients of two weights and of one input backward.
    forward = 2 * 16 * 8 * (4 + 8)
    assert plain.costs.flops == forward + 2 * 16 * 8 * (4 + 8) + 2 * 16 * 8 * 8
    less = split(network, x, A100, budget=0.5)
    assert 0 <= less.bytes_saved <= plain.bytes_saved / 2
    assert less.costs.operators > plain.costs.operators


def test_a_budget_of_one_is_the_step_as_it_is():
    """And half of it keeps at most half of the backbone's activations, for more operators."""
    config = Config.fromfile(DEMO / 'vit-tiny-repl_digits.py')
    arch = dict(embed_dims=32, num_layers=5, num_heads=2, feedforward_channels=64)
    config.model.backbone.update(arch=arch)
    config.model.head.in_channels = 32
    config = build_variants(config, ['RepL'])['RepL']
    options = dict(device=A100, batch=64, size=(32, 32))
    eager = predict_step(config, **options)
    whole = predict_budget(config, budget=1, **options)
    assert whole.memory['total'] == pytest.approx(eager.memory['total'], rel=5e-3)
    assert whole.flops == eager.flops
    half = predict_budget(config, budget=0.5, **options)
    assert half.memory['activations'] < 0.65 * eager.memory['activations']
    assert {key: half.memory[key] for key in ('weights', 'gradients', 'optimizer')} == {
        key: eager.memory[key] for key in ('weights', 'gradients', 'optimizer')
    }
    assert half.operators > whole.operators


def test_bad_input_is_one_sentence():
    config = Config.fromfile(DEMO / 'resnet32_digits.py')
    for budget in (0, -1, 1.5, float('nan')):
        with pytest.raises(ValueError, match='is above 0 and at most 1, got'):
            predict_budget(config, A100, batch=1, size=(32, 32), budget=budget)
    with pytest.raises(ValueError, match='trains nothing has no backward pass'):
        split(nn.Linear(2, 2).requires_grad_(False), torch.ones(1, 2), Device(fp32=1, tf32=1, bandwidth=1))
