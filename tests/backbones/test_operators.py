"""Contract: a step with sites dispatches hardly more operators than end-to-end training; launches are what a GPU with small
batches waits for.

Oracles: the end-to-end network's own count; a site's, by hand. Views and allocations do not count. Sizes do not matter to
the number of operators, so images are small.
"""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import nn

from repl_mm.backbones import ReplResNet, ReplResNetCIFAR, ReplViT
from repl_mm.benchmark.operators import OperatorCounter
from repl_mm.surgery import computing_layers

NETWORKS: dict[str, tuple[Callable[..., nn.Module], int]] = {
    'R32': (lambda **options: ReplResNetCIFAR(32, **options), 32),
    'R34': (lambda **options: ReplResNet(34, out_indices=(3,), **options), 64),
    'R101': (lambda **options: ReplResNet(101, out_indices=(3,), **options), 64),
    'ViT-S': (lambda **options: ReplViT('deit-small', img_size=32, **options), 32),
}


def operators(network: nn.Module, size: int) -> Counter[str]:
    """Of a forward and a backward pass after a first one, which makes what is made once."""
    network.train()
    x = torch.rand(2, 3, size, size)

    def step() -> None:
        for parameter in network.parameters():
            parameter.grad = None
        network(x)[-1].sum().backward()

    step()
    with OperatorCounter() as counter:
        step()
    return counter.counts


@pytest.mark.parametrize('name', NETWORKS)
def test_a_step_dispatches_hardly_more_operators(name):
    build, size = NETWORKS[name]
    e2e = operators(build(), size).total()
    for policy in ('interval', 'budget'):
        repl = dict(policy=policy, every=4) | (dict(mlp_fusion=True) if name == 'ViT-S' else {})
        network = build(repl=repl)
        assert computing_layers(network)
        ratio = operators(network, size).total() / e2e
        print(name, policy, ratio, e2e)
        assert 0.5 < ratio <= 1.06
