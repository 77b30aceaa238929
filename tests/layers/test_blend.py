"""Contract: a blended block is the removed block, run with alpha times its left neighbour's weights plus beta times
its right one's.

Oracles: the neighbour itself for alpha = 1, beta = 0; plain torch in float64 on mixed tensors; gradcheck; parameters
and keys by hand; the plain block's own class in the deployed network; the network counted as a whole.
"""

import copy
import pickle

import pytest
import timm.models
import torch
import torch.nn.functional as F
import torchvision
from helpers import randomise
from mmengine.config import Config
from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer
from mmseg.models.backbones.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

import repl_mm
from repl_mm.analysis.cost import count_cost, predict_cost, variants
from repl_mm.backbones import ReplResNet, ReplResNetCIFAR, ReplSwin, ReplViT
from repl_mm.layers import BlendedBlock
from repl_mm.surgery import computing_layers

BLEND = dict(policy='interval', every=4, form='blend')
VIT = dict(arch=dict(embed_dims=48, num_layers=6, num_heads=3, feedforward_channels=96), img_size=32, patch_size=8)
KINDS = {
    'basic': (lambda: BasicBlock(4, 4), (3, 4, 5, 4)),
    'bottleneck': (lambda: Bottleneck(8, 2, with_cp=True), (3, 8, 4, 3)),
    'vit': (lambda: TransformerEncoderLayer(6, 3, 8), (2, 4, 6)),
}


def layer_and_input(kind: str) -> tuple[BlendedBlock, nn.Module, Tensor]:
    """In float64 and train mode, with random norms and coefficients, and the removed block."""
    block, shape = KINDS[kind]
    torch.manual_seed(0)
    removed, prev, next = (randomise(block()).double() for _ in range(3))
    layer = randomise(BlendedBlock(removed, prev=prev, next=next)).double()
    return layer, removed, torch.randn(shape).double()


@pytest.mark.parametrize('kind', ['basic', 'bottleneck'])
def test_the_left_neighbour_alone_is_its_block(kind):
    layer, _, x = layer_and_input(kind)
    with torch.no_grad():
        layer.alpha.fill_(1)
        layer.beta.zero_()
    assert layer(x).equal(layer.prev(x))  # norms of a batch
    layer.eval()
    prev = layer.prev.eval()
    assert not layer(x).equal(prev(x))  # statistics are its own
    prev.load_state_dict(layer.state_dict(), strict=False)
    assert layer(x).equal(prev(x))


def affine_norm(x: Tensor, norms: list[nn.Module], a: Tensor, b: Tensor) -> Tensor:
    weight, bias = (a * getattr(norms[0], n) + b * getattr(norms[1], n) for n in ('weight', 'bias'))
    return F.batch_norm(x, None, None, weight, bias, training=True)


@pytest.mark.parametrize(('kind', 'number', 'own'), [('basic', 2, 2), ('bottleneck', 3, 2)])
def test_a_residual_block_in_plain_torch(kind, number, own):
    layer, _, x = layer_and_input(kind)
    a, b = layer.alpha, layer.beta
    z = x
    for place in range(1, number + 1):
        convs, norms = ([getattr(block, f'{n}{place}') for block in layer.neighbours] for n in ('conv', 'norm'))
        z = F.conv2d(z, a * convs[0].weight + b * convs[1].weight, padding=convs[0].padding)
        z = affine_norm(z, norms, a, b)
        z = torch.relu(z if place < number else z + x)
    torch.testing.assert_close(layer(x), z, rtol=1e-12, atol=1e-12)
    assert sum(p.numel() for p in layer.parameters()) == own
    assert layer.norms == [getattr(layer, f'bn{place}') for place in range(1, number + 1)]


def test_a_transformer_block_blends_its_attention_alone():
    layer, removed, x = layer_and_input('vit')
    (prev, next), a, b = layer.neighbours, layer.alpha, layer.beta
    removed.load_state_dict(layer.state_dict(), strict=False)  # its own norms and MLP, whose biases were drawn anew
    q, k, v = F.linear(
        removed.ln1(x),
        a * prev.attn.qkv.weight + b * next.attn.qkv.weight,
        a * prev.attn.qkv.bias + b * next.attn.qkv.bias,
    ).chunk(3, dim=-1)
    q, k, v = (t.unflatten(-1, (3, 2)).transpose(1, 2) for t in (q, k, v))
    attended = ((q @ k.transpose(-2, -1) * 2**-0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
    proj = [a * getattr(prev.attn.proj, n) + b * getattr(next.attn.proj, n) for n in ('weight', 'bias')]
    z = x + F.linear(attended, *proj)
    fc1, fc2 = removed.ffn.layers[0][0], removed.ffn.layers[1]
    expected = z + fc2(F.gelu(fc1(removed.ln2(z))))
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    names = {name.partition('.')[0] for name, _ in layer.named_parameters()}
    assert names == {'alpha', 'beta', 'ln1', 'ln2', 'ffn'}
    assert sum(p.numel() for p in layer.parameters()) == 2 + 4 * 6 + (6 * 8 + 8) + (8 * 6 + 6)


@pytest.mark.parametrize(('kind', 'number'), [('basic', 12), ('bottleneck', 18), ('vit', 8)])
def test_gradients_reach_the_neighbours(kind, number):
    layer, _, x = layer_and_input(kind)
    parameters = [p for block in layer.neighbours for p in block.parameters()]
    found = torch.autograd.grad(layer(x).square().sum(), parameters, allow_unused=True)
    asked = [p for p, grad in zip(parameters, found, strict=True) if grad is not None]
    assert len(asked) == number
    assert torch.autograd.gradcheck(lambda *_: layer(x), (*asked, *layer.parameters()), fast_mode=True)


def test_the_removed_block_is_left_as_it_was():
    layer, removed, x = layer_and_input('bottleneck')
    assert removed.with_cp
    assert all(p is not None for p in removed.conv1.parameters())
    assert len(list(removed.parameters())) == 9
    ours, theirs = ({t.data_ptr() for t in module.state_dict().values()} for module in (layer, removed))
    assert not ours & theirs
    assert layer(x.requires_grad_()).requires_grad


NETWORKS = {
    'CIFAR': lambda repl: ReplResNetCIFAR(32, repl=repl),
    'Bottleneck': lambda repl: ReplResNet(50, repl=repl and repl | dict(every=3)),
    'ViT': lambda repl: ReplViT(**VIT, repl=repl),
    'Swin': lambda repl: ReplSwin(arch='tiny', img_size=56, pad_small_map=True, repl=repl),
}


@pytest.mark.parametrize('name', NETWORKS)
def test_it_trains_copies_and_deploys_to_plain_blocks(name):
    network, x = randomise(NETWORKS[name](BLEND)).double(), torch.randn(2, 3, 56, 56, dtype=torch.float64)
    x = x if name == 'Swin' else x[..., :32, :32]
    network.train()(x)[-1].square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None and 'fc' not in name] == []
    network.eval()
    with torch.no_grad():
        expected = network(x)[-1]
        for folded in (False, True):
            static = repl_mm.deploy(network, fuse_all=folded)
            torch.testing.assert_close(static(x)[-1], expected, rtol=1e-10, atol=1e-10)
            assert computing_layers(static) == []
        assert pickle.loads(pickle.dumps(copy.deepcopy(network)))(x)[-1].equal(expected)
    plain = NETWORKS[name](None).double()
    plain.load_state_dict(repl_mm.deploy(network).state_dict())  # all keys are those of the plain network
    torch.testing.assert_close(plain.eval()(x)[-1], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('name', ['CIFAR', 'ViT'])
def test_checkpoints(name):
    network, plain = randomise(NETWORKS[name](BLEND)), randomise(NETWORKS[name](None))
    again = NETWORKS[name](BLEND)
    again.load_state_dict(network.state_dict())
    assert all(again.state_dict()[key].equal(value) for key, value in network.state_dict().items())
    sites = {n: m for n, m in again.named_modules() if isinstance(m, BlendedBlock)}
    site, layer = next(iter(sites.items()))
    statistics = {key: value.clone() for key, value in layer.state_dict().items() if 'running' in key}
    missing, left_over = again.load_state_dict(plain.state_dict(), strict=False)
    fresh = ('.alpha', '.beta', '.running_mean', '.running_var', '.num_batches_tracked')
    assert all(key.startswith(tuple(sites)) for key in (*missing, *left_over))
    assert all(key.endswith(fresh) for key in missing)
    # Statistics are those of its own weights, what it trains by itself is the removed block's.
    assert all(layer.state_dict()[key].equal(value) for key, value in statistics.items())
    own = [name for name, _ in layer.named_parameters() if name not in ('alpha', 'beta')]
    assert bool(own) == (name == 'ViT')
    assert all(layer.state_dict()[key].equal(plain.state_dict()[f'{site}.{key}']) for key in own)


def test_a_checkpoint_of_another_form_is_refused():
    blend, channelwise = (NETWORKS['CIFAR'](BLEND | dict(form=form)) for form in ('blend', 'channelwise'))
    with pytest.raises(ValueError, match=r'a computing layer at layer1\.3, where this network has a BlendedBlock'):
        blend.load_state_dict(channelwise.state_dict(), strict=False)
    with pytest.raises(ValueError, match=r'a computing layer at layer1\.3, where this network has a ComputingBasicB'):
        channelwise.load_state_dict(blend.state_dict(), strict=False)


def test_its_norms_warm_up_where_the_host_fixes_norms():
    network = ReplResNet(34, norm_eval=True, repl=BLEND)
    network.train()
    [layer] = computing_layers(network)
    assert all(norm.training for norm in (layer.bn1, layer.bn2))
    assert not layer.prev.bn1.training
    for norm in layer.norms:
        norm.num_batches_tracked.fill_(100)
    network.train()
    assert not any(norm.training for norm in (layer.bn1, layer.bn2))


def test_the_hosts_initialisation_is_that_of_its_own_part():
    torch.manual_seed(0)
    network = ReplViT(**VIT, repl=BLEND)
    before = network.layers[3].ffn.layers[1].weight.clone()
    network.init_weights()
    layer = network.layers[3]
    weight, bound = layer.ffn.layers[1].weight, (6 / (48 + 96)) ** 0.5  # Xavier's uniform
    assert not weight.equal(before)
    assert 0.95 * bound < weight.abs().max() <= bound
    assert layer.attn.qkv.weight is None
    assert layer.alpha.item() == layer.beta.item() == 0.5


def config(**backbone) -> Config:
    head = dict(type='LinearClsHead', num_classes=10, in_channels=512)
    model = dict(type='ImageClassifier', backbone=backbone, neck=dict(type='GlobalAveragePooling'), head=head)
    if 'ViT' in backbone['type']:
        model |= dict(neck=None, head=dict(type='VisionTransformerClsHead', num_classes=10, in_channels=48))
    return Config(dict(default_scope='mmpretrain', model=model))


@pytest.mark.parametrize(
    ('backbone', 'saved'),
    [
        # layer3.3 of ResNet-34 has 2 x 256^2 x 9 weights and 4 x 256 affine terms.
        (dict(type='repl_mm.ReplResNet', depth=34), 2 * 256**2 * 9 + 4 * 256 - 2),
        # The attention of a block of width 48: four projections with biases.
        (dict(type='repl_mm.ReplViT', **VIT), 4 * (48**2 + 48) - 2),
    ],
    ids=['ResNet', 'ViT'],
)
def test_cost_is_the_removed_blocks_with_other_parameters(backbone, saved):
    configs = variants(config(**backbone, repl=BLEND))
    counted = {name: count_cost(c, (3, 32, 32)) for name, c in configs.items()}
    assert predict_cost(configs['RepL'], counted['E2E'], (3, 32, 32)) == counted
    assert counted['E2E'].parameters - counted['RepL'].parameters == saved
    assert counted['deployed'] == counted['E2E']
    assert (counted['RepL'].backward, counted['RepL'].activations) == (
        counted['E2E'].backward,
        counted['E2E'].activations,
    )


def test_positions_need_neighbours_of_the_same_shapes():
    with pytest.raises(ValueError, match=r"\(1, 1\).*the left neighbour's convolution 1 \(weight\) has shape"):
        ReplResNet(34, repl=dict(policy='explicit', sites=[(1, 1)], form='blend'))
    assert ReplResNet(34, repl=dict(policy='explicit', sites=[(0, 1)], form='blend')).selection.sites == ((0, 1),)
    with pytest.raises(ValueError, match="have no option 'neighbours'"):
        ReplResNet(34, repl=BLEND | dict(neighbours='prev'))


LIBRARIES = {
    'torch': (
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(12, 3, 24, norm_first=True, batch_first=True, dropout=0.0), 8
        ),
        (2, 5, 12),
    ),
    'torchvision': (lambda: torchvision.models.VisionTransformer(32, 8, 8, 3, 12, 24), (2, 3, 32, 32)),
    'timm': (
        lambda: timm.models.VisionTransformer(32, 8, embed_dim=12, depth=8, num_heads=3, num_classes=5),
        (2, 3, 32, 32),
    ),
    'timm Swin': (
        lambda: timm.models.SwinTransformer(
            32, 2, embed_dim=12, depths=(2, 6), num_heads=(3, 3), window_size=4, num_classes=5
        ),
        (2, 3, 32, 32),
    ),
}


@pytest.mark.parametrize('name', LIBRARIES)
def test_blocks_of_other_libraries(name):
    build, shape = LIBRARIES[name]
    network = build().double()
    attention = {'torch': 'self_attn', 'torchvision': 'self_attention'}.get(name, 'attn')
    repl_mm.replace(network, **BLEND)
    randomise(network)
    for layer in computing_layers(network):
        names = {key for key, _ in layer.named_parameters()}
        assert not any(key.startswith(attention) for key in names)
        assert len(layer.blended) == len(list(getattr(layer.prev, attention).parameters())) >= 4
    x = torch.randn(shape, dtype=torch.float64)
    network.train()(x).square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    with torch.no_grad():
        torch.testing.assert_close(repl_mm.deploy(network)(x), network.eval()(x), rtol=1e-10, atol=1e-10)
