"""Contract: Skip-Attention is the host's ViT but for the blocks that estimate their attention.

Oracles: the host's class; one block in plain torch, its convolutions as sums of shifted maps; parameters by hand.
"""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from helpers import randomise
from mmpretrain.models.backbones import VisionTransformer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from repl_mm.backbones import SkipAttentionViT

TINY = dict(embed_dims=24, num_layers=7, num_heads=3, feedforward_channels=48)


def small(**kwargs) -> SkipAttentionViT:
    return SkipAttentionViT(**dict(arch=TINY, img_size=32, patch_size=8, skip=[2, 3, 5]) | kwargs)


def test_without_skips_it_is_the_host():
    ours = small(skip=[], out_indices=[1, -1], out_type='featmap', drop_path_rate=0.3)
    theirs = randomise(VisionTransformer(TINY, 32, 8, out_indices=[1, -1], out_type='featmap', drop_path_rate=0.3))
    ours.load_state_dict(theirs.state_dict())
    x, features = torch.randn(3, 3, 48, 24), []
    for network in (ours, theirs):
        torch.manual_seed(0)
        features.append(network(x))
    assert [one.shape for one in features[0]] == [(3, 24, 6, 3)] * 2
    assert all(map(torch.equal, *features))


def estimate_by_hand(attended: Tensor, weights: dict[str, Tensor], height: int, width: int) -> Tensor:
    """Method description: Linear, GELU, depthwise 5 x 5, GELU, Linear on the patches; efficient channel attention."""
    extra, patches = attended[:, :-height * width], attended[:, -height * width :]  # fmt: skip
    hidden = F.gelu(patches @ weights['fc1.weight'].T + weights['fc1.bias'])
    maps = F.pad(hidden.reshape(-1, height, width, hidden.size(-1)), (0, 0, 2, 2, 2, 2))
    convolved = weights['conv.bias'] + sum(
        maps[:, y : y + height, x : x + width] * weights['conv.weight'][:, 0, y, x] for y in range(5) for x in range(5)
    )
    patches = F.gelu(convolved).reshape(hidden.shape) @ weights['fc2.weight'].T + weights['fc2.bias']
    means = F.pad(patches.sum(1) / (height * width), (1, 1))
    kernel = weights['channel_attention.weight'].ravel()
    gate = 1 / (1 + torch.exp(-sum(kernel[at] * means[:, at : at + patches.size(-1)] for at in range(3))))
    return torch.cat([extra, patches * gate[:, None]], dim=1)


def mlp_by_hand(block: nn.Module, x: Tensor) -> Tensor:
    norm, (up, down) = block.ln2, (block.ffn.layers[0][0], block.ffn.layers[1])
    hidden = F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)
    return x + F.gelu(hidden @ up.weight.T + up.bias) @ down.weight.T + down.bias


@pytest.mark.parametrize('with_cls_token', [True, False])
def test_two_blocks_by_hand(with_cls_token):
    """Blocks 2 and 3 on a grid of 3 x 5: the first estimate is made of block 1's attention, the second of the first."""
    network = randomise(small(with_cls_token=with_cls_token, out_type='featmap')).double()
    seen = {}
    for at in (0, 1, 2, 3):
        network.layers[at].register_forward_hook(lambda _, inputs, out, at=at: seen.update({at: (inputs[0], out)}))
    network(torch.randn(2, 3, 24, 40, dtype=torch.float64))
    attending = network.layers[1]
    x, (_, attended) = seen[1]
    torch.testing.assert_close(attended, attending.attn(attending.ln1(x)), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(seen[1][1][0], mlp_by_hand(attending, x + attended), rtol=1e-12, atol=1e-12)
    for at in (2, 3):
        x, (out, handed_on) = seen[at]
        weights = network.layers[at].estimate.state_dict()
        expected = estimate_by_hand(attended, weights, 3, 5)
        assert torch.equal(attended[:, :-15], handed_on[:, :-15])
        torch.testing.assert_close(handed_on, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(out, mlp_by_hand(network.layers[at], x + expected), rtol=1e-12, atol=1e-12)
        assert (handed_on - attended)[:, -15:].abs().max() > 1e-3
        attended = handed_on


@pytest.mark.parametrize(('skip', 'number'), [((), 0), (None, 6)])
def test_parameters_by_hand(skip, number):
    """ViT-Tiny/8 at 32 x 32. An attention and its norm have 4 D^2 + 6 D parameters, an estimate 4 D^2 + 55 D + 3."""
    given = {} if skip is None else dict(skip=skip)
    network, width = SkipAttentionViT(arch='deit-tiny', img_size=32, patch_size=8, **given), 192
    block = (4 * width**2 + 6 * width) + (8 * width**2 + 5 * width + 2 * width)
    estimate = (2 * width**2 + 2 * width) + (2 * width * 25 + 2 * width) + (2 * width**2 + width) + 3
    whole = (3 * 64 * width + width) + width + 17 * width + 12 * block + 2 * width
    expected = whole + number * (estimate - (4 * width**2 + 6 * width))
    assert sum(p.numel() for p in network.parameters()) == expected
    without = [
        at for at, layer in enumerate(network.layers) if not any(k.startswith('attn') for k in layer.state_dict())
    ]
    assert without == [3, 4, 5, 6, 7, 8][:number]


def test_retained_blocks_keep_the_hosts_keys():
    network = small()
    own, theirs = (set(n.state_dict()) for n in (network, VisionTransformer(TINY, 32, 8)))
    assert {key.split('.')[2] for key in own - theirs} == {'estimate'}
    assert {key.split('.')[2] for key in theirs - own} == {'attn', 'ln1'}
    assert {key.split('.')[1] for key in own ^ theirs} == {'2', '3', '5'}


@pytest.fixture
def one_process():
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize('out_type', ['cls_token', 'avg_featmap'])
def test_every_parameter_trains_under_ddp(out_type, one_process):
    """DDP ends a run at its second step if a parameter was left out in the first."""
    network = randomise(small(out_type=out_type, drop_path_rate=0.1))
    parallel = DistributedDataParallel(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        parallel(torch.randn(4, 3, 32, 48))[0].square().sum().backward()
        assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []
        optimizer.step()


def test_drop_path_leaves_what_is_handed_on_whole():
    network = small(drop_path_rate=0.6)
    attending, skipping = network.layers[1], network.layers[2]
    assert attending.drop_path.drop_prob == pytest.approx(0.1)
    assert skipping.drop_path.drop_prob == pytest.approx(0.2)
    x = torch.randn(2, 17, 24)
    for layer, inputs in ((attending, (x,)), (skipping, (x, torch.randn_like(x), (4, 4)))):
        layer.drop_path.forward = torch.zeros_like
        layer.ffn.forward = lambda x, identity: identity
        out, attended = layer(*inputs)
        assert torch.equal(out, x)
        assert attended.abs().max() > 0


def test_frozen_blocks_and_initial_values():
    network = small(frozen_stages=3)
    network.init_weights()
    assert not any(p.requires_grad for layer in network.layers[:3] for p in layer.parameters())
    assert all(p.requires_grad for layer in network.layers[3:] for p in layer.parameters())
    # The host's own for an MLP; torch's default would be about 0.1.
    assert network.layers[2].ffn.layers[1].bias.abs().max() < 1e-4


@pytest.mark.parametrize('skip', [[0], [6], [7], [-1], ['1'], 3, [True]])
def test_bad_skips_are_refused(skip):
    with pytest.raises(ValueError, match=r"'skip' is a list of blocks from 1 to 5, got"):
        small(skip=skip)
