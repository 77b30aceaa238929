"""Contract: a step with sites dispatches hardly more operators than end-to-end training.

Launching them is what a GPU waits for where batches are small. Oracles: the end-to-end network's own count; a site's,
by hand. Views and allocations do not count. Sizes do not matter to the number of operators, so images are small.
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
        assert 0.5 < ratio <= 1.06


def test_a_site_of_basic_blocks_by_hand():
    synthesis = ['cat', 'linalg_vector_norm', 'stack', 'div', 'mul', 'addcmul_']
    # The norm counts its batches, and the input is added.
    layer = ['convolution', 'add_', 'native_batch_norm', 'add_', 'relu_']
    # Two gradients of the input are added.
    back = ['threshold_backward', 'native_batch_norm_backward', 'convolution_backward', 'add']
    site = ReplResNetCIFAR(32, repl=dict(policy='interval', every=4)).layer1[3].train()
    x = torch.rand(2, 16, 8, 8, requires_grad=True)
    site(x)
    with OperatorCounter() as counter:
        out = site(x)
    assert counter.counts == Counter(synthesis + layer)
    with OperatorCounter() as counter:
        torch.autograd.grad(out, (x, *site.parameters()), torch.ones_like(out))
    assert counter.counts == Counter([*back, 'stack', 'mul_', 'sum', 'div', 'ones_like'])


def test_the_averaged_mlp_by_hand():
    """For each of two linear layers: norms of both sources, times 2; two divisions, one with a sum; a mean bias."""
    site = ReplViT('deit-small', img_size=32, repl=dict(policy='interval', every=4, mlp_fusion=True)).layers[3]
    site.mlp_weights()
    with OperatorCounter() as counter:
        site.mlp_weights()
    of_a_layer = ['cat', 'linalg_vector_norm', 'mul_', 'div', 'addcdiv_', 'lerp']
    assert counter.counts == Counter(2 * of_a_layer)
