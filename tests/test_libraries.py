"""Contract: ``replace`` and ``deploy`` work on networks as their libraries build them.

Oracles: :mod:`oracles`, fed with weights that are looked up here by the libraries' own names; the dynamic network for
the deployed one. Networks are the libraries' own, built narrow and for small images.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import oracles
import pytest
import timm
import torch
import torchvision
from helpers import randomise
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck
from torchvision.models.swin_transformer import SwinTransformer

import repl_mm
from repl_mm.deployment import relative_difference
from repl_mm.layers import (
    ComputingLayer,
    ScalarTransformerLayer,
    StaticLayer,
    TransformerParts,
    reads,
)
from repl_mm.surgery import computing_layers

# --- Networks ---


class Attention(nn.Module):
    """nanoGPT's."""

    def __init__(self, width: int, heads: int, *, bias: bool = True) -> None:
        super().__init__()
        self.n_head = heads
        self.c_attn = nn.Linear(width, 3 * width, bias=bias)
        self.c_proj = nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for t in self.c_attn(x).chunk(3, dim=-1))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A GPT block."""

    def __init__(self, width: int = 24, heads: int = 3, *, bias: bool = True) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = (nn.LayerNorm(width, bias=bias) for _ in range(2))
        self.attn = Attention(width, heads, bias=bias)
        self.c_fc, self.c_proj = nn.Linear(width, 4 * width, bias=bias), nn.Linear(4 * width, width, bias=bias)
        self.gelu = nn.GELU(approximate='tanh')

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.c_proj(self.gelu(self.c_fc(self.ln_2(x))))


@reads(Block)
def _(block: Block) -> TransformerParts:
    mlp, heads = (block.c_fc, block.c_proj), block.attn.n_head
    return TransformerParts(block.attn.c_proj, block.ln_1, block.ln_2, mlp, block.gelu, heads)


class GPT(nn.Module):
    """Tokens to logits."""

    def __init__(self, blocks: int = 6, block: Callable[[], nn.Module] = Block, width: int = 24) -> None:
        super().__init__()
        self.wte = nn.Embedding(50, width)
        self.h = nn.ModuleList(block() for _ in range(blocks))
        self.head = nn.Linear(width, 50)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens)
        for block in self.h:
            x = block(x)
        return self.head(x)


class Encoder(nn.Module):
    """torch's encoder with a mask, as a user calls it."""

    def __init__(self, *, causal: bool, **options: Any) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(24, 3, 48, **dict(batch_first=True, norm_first=True, dropout=0) | options)
        self.encoder = nn.TransformerEncoder(layer, 8, enable_nested_tensor=False)
        self.causal = causal
        for parameter in self.parameters():  # its layers are copies of one
            nn.init.normal_(parameter, std=0.2)

    def forward(self, x: Tensor) -> Tensor:
        if self.causal:
            mask = nn.Transformer.generate_square_subsequent_mask(x.size(1), dtype=x.dtype)
            return self.encoder(x, mask=mask, is_causal=True)
        padding = torch.arange(x.size(1)).expand(x.shape[:2]) >= x.size(1) - 2
        return self.encoder(x, src_key_padding_mask=padding)


@dataclass
class Case:
    """A network, where its sites are, and how its library calls what a computing layer reads.

    Attributes:
        build: Makes the network.
        inputs: A batch.
        sites: Paths of the replaced blocks under ``options``.
        names: Of a transformer block the paths of projection, both norms and both linear layers of the MLP.
        heads: Its heads.
        activation: Of its MLP.
        groups: Of a Bottleneck's middle convolution.
    """

    build: Callable[[], nn.Module]
    sites: list[str]
    inputs: Callable[[], Tensor] = lambda: torch.rand(2, 3, 32, 32)
    options: dict[str, Any] = field(default_factory=lambda: dict(policy='interval', every=4))
    names: str = ''
    heads: int = 3
    activation: Callable[[Tensor], Tensor] = nn.functional.gelu
    groups: int = 1


TORCHVISION_VIT = 'self_attention.out_proj ln_1 ln_2 mlp.0 mlp.3'
SWIN = dict(embed_dim=24, depths=[2, 2, 6, 2], num_heads=[1, 2, 4, 8], num_classes=10)
TORCH = dict(names='self_attn.out_proj norm1 norm2 linear1 linear2', inputs=lambda: torch.randn(2, 7, 24))
TORCH |= dict(sites=['encoder.layers.3'], activation=torch.relu)
TIMM = 'attn.proj norm1 norm2 mlp.fc1 mlp.fc2'
TIMM_VIT = dict(depth=6, embed_dim=24, num_heads=3, img_size=32, patch_size=8, num_classes=10)


def torchvision_vit() -> nn.Module:
    """The class of vit_b_16; its head is zero at first, and would hide everything."""
    sizes = dict(image_size=32, patch_size=8, num_layers=6, num_heads=3, hidden_dim=24, mlp_dim=48, num_classes=10)
    network = torchvision.models.VisionTransformer(**sizes)
    nn.init.normal_(network.heads.head.weight)
    return network


def torchvision_resnext() -> nn.Module:
    """resnext50_32x4d, at a quarter of its width."""
    return torchvision.models.ResNet(Bottleneck, [3, 4, 6, 3], groups=32, width_per_group=1, num_classes=10)


CASES = {
    'torchvision resnet50': Case(lambda: torchvision.models.resnet50(width_per_group=16), ['layer3.3']),
    'torchvision resnext50': Case(torchvision_resnext, ['layer3.3'], groups=32),
    'torchvision resnet34': Case(torchvision.models.resnet34, ['layer3.3']),
    'torchvision vit': Case(torchvision_vit, ['encoder.layers.encoder_layer_3'], names=TORCHVISION_VIT),
    'torchvision swin': Case(
        lambda: SwinTransformer(patch_size=[4, 4], window_size=[4, 4], **SWIN),
        ['features.5.3'],
        inputs=lambda: torch.rand(2, 3, 64, 64),
        names='attn.proj norm1 norm2 mlp.0 mlp.3',
        heads=4,
    ),
    'timm resnet50': Case(lambda: timm.create_model('resnet50', base_width=16, num_classes=10), ['layer3.3']),
    'timm vit': Case(lambda: timm.create_model('vit_small_patch16_224', **TIMM_VIT), ['blocks.3'], names=TIMM),
    'timm swin': Case(
        lambda: timm.create_model('swin_tiny_patch4_window7_224', img_size=64, window_size=4, **SWIN),
        ['layers.2.blocks.3'],
        inputs=lambda: torch.rand(2, 3, 64, 64),
        names=TIMM,
        heads=4,
    ),
    'torch encoder, causal': Case(lambda: Encoder(causal=True), **TORCH),
    'torch encoder, padded': Case(lambda: Encoder(causal=False), **TORCH),
    'GPT': Case(
        GPT,
        ['h.3'],
        inputs=lambda: torch.randint(50, (2, 7)),
        names='attn.c_proj ln_1 ln_2 c_fc c_proj',
        activation=partial(nn.functional.gelu, approximate='tanh'),
    ),
}
# The forms of each case; an MLP follows in one of them.
FORMS = [
    (name, form)
    for name, case in CASES.items()
    for form in ([dict(form='scalar', mlp_fusion=True), dict(form='headwise')] if case.names else [{}])
]
FORMS += [('GPT', dict(form='headwise', mlp_fusion=True)), ('torchvision vit', dict(form='scalar'))]


def floating(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if x.is_floating_point() else x


def replaced(name: str, form: dict[str, Any] | None = None, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A network with sites and random statistics, affine terms and coefficients."""
    case = CASES[name]
    network = case.build()
    repl_mm.replace(network, **case.options, **form or {})
    return randomise(network).to(dtype)


def expected(case: Case, layer: ComputingLayer, network: nn.Module, path: str, x: Tensor) -> Tensor:
    """What the equations give at a site in eval mode; the blocks beside it are found by their place."""
    parent, _, child = path.rpartition('.')
    blocks = network.get_submodule(parent)
    names = [name for name, _ in blocks.named_children()]
    at = names.index(child)
    prev, next = (blocks.get_submodule(names[at + step]) for step in (-1, 1))
    given = dict(alpha=layer.alpha, beta=layer.beta)
    if not case.names:
        statistics = dict(mean=layer.norm.running_mean, var=layer.norm.running_var, eps=1e-5)
        norm = partial(oracles.batch_norm, weight=layer.norm.weight, bias=layer.norm.bias, **statistics)
        if not hasattr(prev, 'conv3'):
            return oracles.basic_block(x, prev=prev.conv2.weight, next=next.conv1.weight, norm=norm, **given)
        given |= dict(reduce=prev.conv1.weight, expand=next.conv3.weight, groups=case.groups)
        return oracles.bottleneck(x, prev=prev.conv2.weight, next=next.conv2.weight, norm=norm, **given)

    def lent(block: nn.Module) -> list[tuple[Tensor, Tensor | None]]:
        return [(m.weight, m.bias) for m in map(block.get_submodule, case.names.split())]

    (proj, *norms, fc1, fc2), (next_proj, _, _, next_fc1, next_fc2) = map(lent, (prev, next))
    eps = [prev.get_submodule(path).eps for path in case.names.split()[1:3]]
    norm1, norm2 = (partial(oracles.layer_norm, weight=w, bias=b, eps=e) for (w, b), e in zip(norms, eps, strict=True))
    if type(layer) is ScalarTransformerLayer:
        assert layer.alpha.shape == (1,)
        x = oracles.scalar(x, prev=proj, next=next_proj, **given)
    else:
        assert layer.alpha.shape == (case.heads,)
        x = oracles.headwise(x, prev=proj, next=next_proj, norm=norm1, **given)
    if not layer.options['mlp_fusion']:
        return x
    lent_mlps = dict(prev=(fc1, fc2), next=(next_fc1, next_fc2))
    return oracles.fused_mlp(x, norm=norm2, activation=case.activation, **lent_mlps)


def label(value: Any) -> str:
    return value if isinstance(value, str) else ', '.join(map(str, value.values())) or 'channelwise'


@pytest.mark.parametrize(('name', 'form'), FORMS, ids=label)
def test_a_site_is_what_the_equations_say(name, form):
    """In the whole network, called as its library calls it; and nothing else of the network has changed."""
    case, network = CASES[name], replaced(name, form, torch.float64).eval()
    sites = {path: module for path, module in network.named_modules() if isinstance(module, ComputingLayer)}
    assert list(sites) == case.sites
    seen = {}
    for path, layer in sites.items():
        layer.register_forward_hook(lambda _, args, out, path=path: seen.update({path: (args[0].clone(), out)}))
    with torch.no_grad():
        network(floating(case.inputs(), torch.float64))
        for path, (x, out) in seen.items():
            theirs = expected(case, sites[path], network, path, x)
            assert (out - x).std() > 1e-3
            torch.testing.assert_close(out, theirs, rtol=1e-12, atol=1e-12)
    assert list(seen) == case.sites


@pytest.mark.parametrize(('name', 'form'), FORMS, ids=label)
def test_a_site_gives_its_neighbours_no_gradient_and_learns(name, form):
    case, network = CASES[name], replaced(name, form).train()
    sites, inputs = computing_layers(network), {}
    for layer in sites:
        layer.register_forward_pre_hook(lambda layer, args: inputs.update({layer: args[0].detach()}))
    before = {key: p.detach().clone() for key, p in network.named_parameters()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network(case.inputs()).square().mean().backward()
    neighbours = [p for layer in sites for block in layer.neighbours for p in block.parameters()]
    assert all(p.grad is not None for p in network.parameters())  # each by the blocks themselves
    for layer in sites:
        x = inputs[layer].requires_grad_()
        lent = torch.autograd.grad(layer(x).square().sum(), neighbours, allow_unused=True)
        assert all(gradient is None for gradient in lent)
    optimizer.step()
    for layer in sites:
        for key, parameter in layer.named_parameters():
            path = next(path for path, module in network.named_modules() if module is layer)
            assert not torch.equal(parameter, before[f'{path}.{key}'])
            assert parameter.isfinite().all()


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize(('name', 'form'), FORMS, ids=label)
def test_deployed_equals_dynamic(name, form, dtype, tolerance):
    network = replaced(name, form, dtype).eval()
    x = floating(CASES[name].inputs(), dtype)
    with torch.no_grad():
        outputs = network(x)
        assert outputs.std() > 1e-3
        for fuse_all in (False, True):
            static = repl_mm.deploy(network, fuse_all=fuse_all)
            assert computing_layers(static) == []
            assert all(isinstance(static.get_submodule(path), StaticLayer) for path in CASES[name].sites)
            assert relative_difference(static(x), outputs) <= tolerance
            norms = [m for m in static.modules() if isinstance(m, nn.BatchNorm2d)]
            assert bool(norms) == ('resne' in name and not fuse_all)
    assert computing_layers(network)  # it stays as it was


@pytest.mark.parametrize('name', [name for name in CASES if name != 'torchvision resnet34'])
def test_what_its_library_exports_exports_deployed(name):
    x, network = CASES[name].inputs(), replaced(name).eval()
    static = repl_mm.deploy(network)
    exported = torch.export.export(static, (x,)).module()
    with torch.no_grad():
        assert relative_difference(exported(x), network(x)) <= 1e-5
