"""Contract: what ``replace`` cannot do is said in a line with what to do; what it does lasts through all that a network
goes through.

Oracles: the network as it was, for state dicts and parameters; the same network, run otherwise; :mod:`oracles`.
"""

import ast
import copy
import io
import pickle
from functools import partial
from typing import Any

import oracles
import pytest
import timm
import torch
import torchvision
from helpers import randomise
from mmengine.model import ExponentialMovingAverage
from mmpretrain.models.backbones import SEResNet, VisionTransformer
from mmseg.models.backbones import ResNet
from test_libraries import GPT, TIMM_VIT, Block, Encoder
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

import repl_mm
from repl_mm.compat import can_compile
from repl_mm.layers import ComputingLayer, ResidualParts, TransformerParts, reads
from repl_mm.surgery import computing_layers, find_stages

EVERY = dict(policy='interval', every=4)
CONTEXT = dict(cfg=dict(type='ContextBlock', ratio=0.25), stages=(False, False, True, False), position='after_conv2')


class Unread(Block):
    """A block whose class no reader knows, as its forward pass is its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Conv1D(nn.Module):
    """Hugging Face's linear layer: its weight is the transposed one."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class GPT2Block(Block):
    """As Hugging Face writes it, with a reader that does not look at what it reads."""

    def __init__(self, place: str = 'attn') -> None:
        super().__init__()
        if place == 'attn':
            self.attn.c_proj = Conv1D(24, 24)
        else:
            self.c_fc, self.c_proj = Conv1D(96, 24), Conv1D(24, 96)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Unregistered(GPT2Block):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


@reads(GPT2Block)
def _(block: GPT2Block) -> TransformerParts:
    mlp, heads = (block.c_fc, block.c_proj), block.attn.n_head
    return TransformerParts(block.attn.c_proj, block.ln_1, block.ln_2, mlp, block.gelu, heads)


def shared() -> nn.Module:
    network = GPT()
    network.h[4] = network.h[1]
    return network


def twice() -> nn.Module:
    network = GPT()
    repl_mm.replace(network, **EVERY)
    return network


def compiled_in_place() -> nn.Module:
    network = GPT()
    network.compile()
    return network


def distributed() -> nn.Module:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
    try:
        return nn.parallel.DistributedDataParallel(GPT())
    finally:
        torch.distributed.destroy_process_group()


def both_kinds() -> nn.Module:
    return nn.ModuleDict({'image': torchvision.models.resnet50(width_per_group=16), 'text': GPT()})


def timm_resnet(**options: Any) -> nn.Module:
    return timm.create_model('resnet50', base_width=16, num_classes=10, **options)


def timm_vit(**options: Any) -> nn.Module:
    return timm.create_model('vit_small_patch16_224', **TIMM_VIT, **options)


def swin_v2() -> nn.Module:
    sizes = dict(patch_size=[4, 4], embed_dim=24, depths=[2, 2, 6, 2], num_heads=[1, 2, 4, 8], window_size=[4, 4])
    return SwinTransformer(block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2, **sizes)


SCALED = dict(embed_dims=24, num_layers=6, num_heads=3, feedforward_channels=48)
REFUSALS = {
    'unknown class': (lambda: GPT(block=Unread), {}, r'no blocks that a reader knows.* of class test_surgery\.Unread'),
    'Hugging Face': (lambda: GPT(block=Unregistered), {}, r'of class test_surgery\.Unregistered; say once what one'),
    'swin v2': (swin_v2, {}, r'of class torchvision\.models\.swin_transformer\.SwinTransformerBlockV2; say once'),
    'SE-ResNet': (lambda: SEResNet(50), {}, r'of class mmpretrain\.models\.backbones\.seresnet\.SEBottleneck; say'),
    'unknown class, named': (lambda: GPT(block=Unread), dict(stages=['h']), r"no block in 'h' can be read.*Unread"),
    'transposed projection': (
        lambda: GPT(block=GPT2Block),
        {},
        r'no blocks that can be replaced: GPT2Block has linear layers of type Conv1D instead of nn\.Linear',
    ),
    'transposed MLP': (lambda: GPT(block=partial(GPT2Block, 'mlp')), {}, r'linear layers of type Conv1D instead of'),
    'short stages': (
        lambda: nn.Sequential(nn.Sequential(Block()), nn.Sequential(Block())),
        {},
        'Sequential has no stage of three blocks or more, .*: choose a deeper network',
    ),
    'no stage': (lambda: nn.Linear(2, 2), {}, r'Linear has no stage: an nn\.Sequential or nn\.ModuleList that holds'),
    'no such stage': (GPT, dict(stages=['layer3']), "GPT has no module 'layer3': modules that hold .* are h$"),
    'no stage of that name': (GPT, dict(stages=['head']), r"'head' is no stage: give names of nn\.Sequential or"),
    'both kinds': (
        both_kinds,
        {},
        r"residual and of transformer blocks, .*text\.h: name .*=\['image\.layer1'\]",
    ),
    'both kinds, named': (
        both_kinds,
        dict(stages=['image.layer3', 'text.h']),
        "form 'channelwise' does not stand for blocks of this kind: choose one of 'scalar', 'headwise', 'blend'",
    ),
    'shared block': (shared, {}, r'h\.4 is the same block as h\.1: give each place a block of its own'),
    'twice': (twice, {}, 'GPT has computing layers already: build it anew, and choose all sites in one call'),
    'compiled': (lambda: torch.compile(GPT()), {}, 'OptimizedModule is compiled: replace blocks first, then compile'),
    'compiled in place': (compiled_in_place, {}, 'GPT is compiled: replace blocks first, then compile it'),
    'distributed': (distributed, {}, r'DistributedDataParallel holds .*: replace in network\.module, then wrap it'),
    'data parallel': (lambda: nn.DataParallel(GPT()), {}, r'DataParallel holds .*: replace in network\.module'),
    'layer scale, timm': (
        lambda: timm_vit(init_values=1e-5),
        {},
        'Block has layer scale, which',
    ),
    'layer scale, mmpretrain': (
        lambda: VisionTransformer(SCALED, img_size=32, patch_size=8, layer_scale_init_value=1e-5),
        {},
        'TransformerEncoderLayer has layer scale, which a computing layer cannot honour',
    ),
    'post-norm': (
        lambda: Encoder(causal=True, norm_first=False),
        {},
        r'TransformerEncoderLayer norms behind its sums \(build it with norm_first=True\)',
    ),
    'gated MLP': (
        lambda: timm_vit(mlp_layer=timm.layers.SwiGLU),
        dict(mlp_fusion=True),
        'leaves no site in .*: mlp_fusion needs MLPs of two linear layers: leave it out',
    ),
    'scale norm': (lambda: timm_vit(scale_attn_norm=True), {}, 'Block norms or gates what its attention projects'),
    'channel attention': (
        lambda: timm_resnet(block_args=dict(attn_layer='se')),
        {},
        'has channel attention',
    ),
    'anti-aliasing': (
        lambda: timm.create_model('resnet34', aa_layer=timm.layers.BlurPool2d),  # in the first block of a stage
        dict(policy='explicit', every=None, sites=[(1, 1)]),
        r'\(1, 1\): BasicBlock has anti-aliasing, which a computing layer cannot honour',
    ),
    'DropBlock': (lambda: timm_resnet(drop_block_rate=0.1), dict(stages=['layer3']), 'Bottleneck has DropBlock'),
    'plugins': (lambda: ResNet(50, plugins=[CONTEXT]), dict(stages=['layer3']), 'Bottleneck has plugins, which'),
    'unknown option': (GPT, dict(K=4), "have no option 'K': they take 'every', 'mlp_fusion', 'recompute'"),
    'unknown policy': (GPT, dict(policy='all'), "unknown policy 'all': choose one of 'interval', 'budget', 'explicit'"),
    'unknown form': (GPT, dict(form='linear'), "unknown form 'linear': choose one of 'scalar', 'headwise', 'blend'"),
    'form of other blocks': (GPT, dict(form='channelwise'), "unknown form 'channelwise': choose one of 'scalar'"),
    'option of another form': (GPT, dict(grad_fraction=0.5), "'scalar' have no option 'grad_fraction': they take"),
    'no site': (GPT, dict(every=6), r'every=6 leaves no site in GPT: .* can be replaced are \(0, 1\), \(0, 2\)'),
}


@pytest.mark.parametrize('name', REFUSALS)
def test_what_cannot_be_replaced_is_said_in_a_line(name):
    build, options, message = REFUSALS[name]
    network = build()
    before = [type(module) for module in network.modules()]
    with pytest.raises(ValueError, match=message) as caught:
        repl_mm.replace(network, **{key: value for key, value in (EVERY | options).items() if value is not None})
    first, *code = str(caught.value).splitlines()
    assert not code or first.endswith('for a pre-norm transformer:')
    assert [type(module) for module in network.modules()] == before


def test_the_lines_that_register_a_class_do_as_they_are_printed():
    class Ordinary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.Module()
            self.attn.proj, self.attn.num_heads = nn.Linear(8, 8), 2
            self.norm1, self.norm2, self.mlp = nn.LayerNorm(8), nn.LayerNorm(8), nn.Module()
            self.mlp.fc1, self.mlp.fc2, self.mlp.act = nn.Linear(8, 16), nn.Linear(16, 8), nn.GELU()

        def forward(self, x: Tensor) -> Tensor:
            return x

    network = nn.Sequential(*(Ordinary() for _ in range(5)), nn.Sequential(*(nn.Sequential(nn.ReLU()) for _ in '123')))
    with pytest.raises(ValueError, match=r'Most of its blocks are of class .*Ordinary') as caught:
        repl_mm.replace(network, **EVERY)
    code = str(caught.value).partition('\n')[2]
    assert ast.parse(code)
    exec(code, dict(Ordinary=Ordinary, repl_mm=repl_mm))
    assert repl_mm.replace(network, **EVERY, mlp_fusion=True).sites == ((0, 3),)


def test_stages_are_found_or_named():
    network = both_kinds()
    assert repl_mm.replace(network, stages='text.h', **EVERY).sites == ((0, 3),)
    assert [name for name, m in network.named_modules() if isinstance(m, ComputingLayer)] == ['text.h.3']
    network = torchvision.models.resnet50(width_per_group=16)
    assert list(find_stages(network)) == ['layer1', 'layer2', 'layer3', 'layer4']
    selection = repl_mm.replace(network, stages=['layer3', 'layer4'], policy='explicit', sites=[(0, 2), (0, 4)])
    assert [name for name, m in network.named_modules() if isinstance(m, ComputingLayer)] == ['layer3.2', 'layer3.4']
    assert selection.layout.blocks == (6, 3)


def test_a_budget_that_does_not_fit_warns():
    with pytest.warns(UserWarning, match='9 sites were asked for, but no more than 2 fit into GPT'):
        assert len(repl_mm.replace(GPT(), policy='budget', count=9).sites) == 2


# --- What is honoured ---


def test_norms_of_queries_and_keys_do_not_matter():
    network = timm_vit(qk_norm=True)
    repl_mm.replace(network, **EVERY)
    assert isinstance(network.blocks[3], ComputingLayer)
    assert network(torch.rand(2, 3, 32, 32)).isfinite().all()


def test_a_gated_mlp_is_no_matter_without_fusion():
    network = timm_vit(mlp_layer=timm.layers.SwiGLU)
    repl_mm.replace(network, **EVERY)
    assert network(torch.rand(2, 3, 32, 32)).isfinite().all()


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


def mlp_of(block: nn.Module) -> tuple:
    return (block.mlp.fc1.weight, block.mlp.fc1.bias), (block.mlp.fc2.weight, block.mlp.fc2.bias)


def test_a_site_has_the_activation_of_its_block():
    network = timm_vit(act_layer=QuickGELU)
    repl_mm.replace(network, **EVERY, mlp_fusion=True)
    prev, layer, next = randomise(network).double().blocks[2:5]
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    out = oracles.scalar(
        x, alpha=layer.alpha, beta=layer.beta,
        prev=(prev.attn.proj.weight, prev.attn.proj.bias), next=(next.attn.proj.weight, next.attn.proj.bias),
    )  # fmt: skip
    norm = partial(oracles.layer_norm, weight=prev.norm2.weight, bias=prev.norm2.bias, eps=prev.norm2.eps)
    quick = lambda x: x / (1 + (-1.702 * x).exp())  # noqa: E731
    expected = oracles.fused_mlp(out, prev=mlp_of(prev), next=mlp_of(next), norm=norm, activation=quick)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('form', ['scalar', 'headwise'])
def test_linears_and_norms_without_bias(form):
    """nanoGPT without biases; oracle: the mix by hand."""
    network = GPT(block=partial(Block, bias=False))
    repl_mm.replace(network, **EVERY, form=form, mlp_fusion=True)
    prev, layer, next = randomise(network).double().h[2:5]
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    weights = dict(prev=(prev.attn.c_proj.weight, None), next=(next.attn.c_proj.weight, None))
    weights |= dict(alpha=layer.alpha, beta=layer.beta)
    norm1, norm2 = (
        partial(oracles.layer_norm, weight=norm.weight, bias=None, eps=norm.eps) for norm in (prev.ln_1, prev.ln_2)
    )
    out = oracles.scalar(x, **weights) if form == 'scalar' else oracles.headwise(x, **weights, norm=norm1)
    mlps = [((block.c_fc.weight, None), (block.c_proj.weight, None)) for block in (prev, next)]
    gelu = partial(nn.functional.gelu, approximate='tanh')
    expected = oracles.fused_mlp(out, prev=mlps[0], next=mlps[1], norm=norm2, activation=gelu)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    tokens = torch.randint(50, (2, 7))
    torch.testing.assert_close(repl_mm.deploy(network)(tokens), network.eval()(tokens), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('form', ['scalar', 'headwise'])
def test_layer_norms_without_affine_terms(form):
    network = timm_vit(norm_layer=partial(nn.LayerNorm, elementwise_affine=False, eps=1e-6))
    repl_mm.replace(network, **EVERY, form=form, mlp_fusion=True)
    x = torch.rand(2, 3, 32, 32)
    network = randomise(network).train()
    network(x).square().sum().backward()
    assert network.blocks[3].alpha.grad.abs().sum() > 0
    assert sum(p.numel() for p in network.blocks[3].parameters()) == (2 if form == 'scalar' else 6)
    torch.testing.assert_close(repl_mm.deploy(network)(x), network.eval()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('norm', ['plain', 'GN'])
def test_batch_norms_without_affine_terms_and_group_norms(norm):
    groups = dict(norm_layer=partial(nn.GroupNorm, 4)) if norm == 'GN' else {}
    network = torchvision.models.resnet50(width_per_group=16, num_classes=10, **groups)
    for child in network.modules():
        if isinstance(child, nn.BatchNorm2d):  # torchvision's constructor knows none without
            child.affine, child.weight, child.bias = False, None, None
    repl_mm.replace(network, **EVERY)
    network, x = randomise(network).double(), torch.rand(2, 3, 64, 64, dtype=torch.float64)
    layer = network.layer3[3]
    assert type(layer.norm) is type(network.layer3[2].bn3)
    network.train()(x).square().sum().backward()
    assert layer.alpha.grad.abs().sum() > 0
    for fuse_all in (False, True):
        static = repl_mm.deploy(network, fuse_all=fuse_all)
        torch.testing.assert_close(static(x), network.eval()(x), rtol=1e-10, atol=1e-10)


class OwnResidual(nn.Module):
    """A user's block, without a shortcut to project."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(2))
        self.bn1, self.bn2, self.act = nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.bn2(self.conv2(self.act(self.bn1(self.conv1(x))))))


@reads(OwnResidual)
def _(block: OwnResidual) -> ResidualParts:
    if not isinstance(block.act, nn.SiLU):
        raise ValueError('OwnResidual has an odd activation')
    return ResidualParts((block.conv1, block.conv2), (block.bn1, block.bn2), block.act)


def test_residual_blocks_of_ones_own_are_replaced_and_folded():
    network = nn.Sequential(*(OwnResidual() for _ in range(6)))
    repl_mm.replace(network, policy='explicit', sites=[(0, 1)])
    # What a reader refuses is no site, and stays as it is when norms are folded.
    network[5].act = nn.Sequential(nn.Tanh())
    network, x = randomise(network).double().eval(), torch.randn(2, 8, 5, 5, dtype=torch.float64)
    static = repl_mm.deploy(network, fuse_all=True)
    torch.testing.assert_close(static(x), network(x), rtol=1e-10, atol=1e-10)
    assert [name for name, m in static.named_modules() if isinstance(m, nn.BatchNorm2d)] == ['5.bn1', '5.bn2']


# --- What a network goes through ---


def gpt(**options: Any) -> nn.Module:
    network = GPT()
    repl_mm.replace(network, **EVERY, **options)
    return randomise(network)


def residual() -> nn.Module:
    network = torchvision.models.resnet50(width_per_group=16, num_classes=10)
    repl_mm.replace(network, **EVERY)
    return randomise(network)


def tokens() -> Tensor:
    return torch.randint(50, (2, 7))


def pixels() -> Tensor:
    return torch.rand(2, 3, 64, 64)


NETWORKS = {'GPT': (gpt, tokens, 'h.3'), 'ResNet': (residual, pixels, 'layer3.3')}


def saved(network: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize('how', [copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n)), saved,
                                 lambda n: ExponentialMovingAverage(n).module])  # fmt: skip
@pytest.mark.parametrize('name', NETWORKS)
def test_copies_have_links_and_checks_of_their_own(name, how):
    build, inputs, path = NETWORKS[name]
    network, x = build().eval(), inputs()
    twin = how(network).eval()
    expected = network(x)
    assert torch.equal(twin(x), expected)
    with torch.no_grad():
        for neighbour in twin.get_submodule(path).neighbours:
            for parameter in neighbour.parameters():
                parameter.copy_(torch.randn_like(parameter))
    assert torch.equal(network(x), expected)
    assert not torch.equal(twin(x), expected)
    assert set(twin.get_submodule(path).neighbours) <= set(twin.modules())
    with pytest.raises(ValueError, match='another depth'):
        twin.load_state_dict({key: value for key, value in network.state_dict().items() if f'{path[:-1]}5' not in key})


def test_an_average_follows():
    """Oracle: the mean of the weights, by hand, in a network of its own."""
    network, x = gpt().eval(), tokens()
    average = ExponentialMovingAverage(network, momentum=0.25)
    average.update_parameters(network)
    first = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    average.update_parameters(network)
    expected = gpt().eval()
    expected.load_state_dict({key: 0.75 * first[key] + 0.25 * value for key, value in network.state_dict().items()})
    torch.testing.assert_close(average.module.eval()(x), expected(x))


@pytest.mark.parametrize('name', NETWORKS)
def test_kept_blocks_keep_their_keys_and_an_end_to_end_checkpoint_loads(name):
    build, _, path = NETWORKS[name]
    network = build()
    whole = GPT() if name == 'GPT' else torchvision.models.resnet50(width_per_group=16, num_classes=10)
    checkpoint = whole.state_dict()
    before, site = copy.deepcopy(network.state_dict()), f'{path}.'
    kept = {key for key in network.state_dict() if not key.startswith(site)}
    assert kept == {key for key in checkpoint if not key.startswith(site)}
    result = network.load_state_dict(checkpoint, strict=False)
    assert set(result.missing_keys) == {key for key in before if key.startswith(site) and 'num_batches' not in key}
    assert set(result.unexpected_keys) == {key for key in checkpoint if key.startswith(site)}
    for key, value in network.state_dict().items():
        assert torch.equal(value, checkpoint[key] if key in kept else before[key])
    own = build()
    own.load_state_dict(network.state_dict(), strict=True)
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in own.state_dict().items())


@pytest.mark.parametrize('prefix', ['', 'model.'])
@pytest.mark.parametrize(
    ('other', 'message'),
    [
        (lambda: GPT(blocks=5), r'belongs to another depth: it has \[5\] blocks per stage, this network has \[6\]'),
        (lambda: GPT(blocks=8), r'belongs to another depth: it has \[8\] blocks'),
        (lambda: gpt(form='headwise'), r'h\.3\.alpha has shape \(3,\) there and \(1,\) here'),
        (
            lambda: repl_mm.replace(other := GPT(), policy='explicit', sites=[(0, 2)]) and other,
            r'has a computing layer at h\.2, where this network has a Block: .* is missing\. Give the same sites',
        ),
        (lambda: repl_mm.deploy(gpt()), r'has a deployed layer at h\.3, where .* a ScalarTransformerLayer'),
        (lambda: GPT(width=48, block=lambda: Block(48)), r'belongs to another network: h\.0\.\S+ has shape'),
    ],
    ids=['shallower', 'deeper', 'form', 'sites', 'deployed', 'width'],
)
def test_a_checkpoint_of_another_network_is_refused(other, message, prefix):
    network = nn.ModuleDict({'model': gpt()}) if prefix else gpt()
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(ValueError, match=message):
        network.load_state_dict({prefix + key: value for key, value in other().state_dict().items()}, strict=False)
    blocks = {key: value for key, value in network.state_dict().items() if '.h.' in f'.{key}'}
    assert all(torch.equal(before[key], value) for key, value in blocks.items())


def test_parameters_by_hand():
    """A Block of width D has 12 D^2 + 13 D parameters, a site 2 or 2 H; a Bottleneck site has 2 B + 2 C."""
    block = 12 * 24**2 + 13 * 24
    sizes = lambda network: sum(p.numel() for p in network.parameters())  # noqa: E731
    assert sizes(GPT()) - sizes(gpt()) == block - 2
    assert sizes(GPT()) - sizes(gpt(form='headwise', mlp_fusion=True)) == block - 6
    assert sizes(GPT()) - sizes(gpt(form='drop')) == block
    whole = torchvision.models.resnet50(width_per_group=16, num_classes=10)
    bottleneck = 2 * 1024 * 64 + 9 * 64**2 + 4 * 64 + 2 * 1024
    assert sizes(whole) - sizes(residual()) == bottleneck - (2 * 64 + 2 * 1024)
    network = gpt()
    assert len(list(network.parameters())) == len(list(network.named_parameters(remove_duplicate=False)))


def step(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output and gradients of one step in train mode."""
    network.zero_grad()
    out = network.train()(x)
    out.float().square().mean().backward()
    return {'output': out.detach()} | {key: p.grad.clone() for key, p in network.named_parameters()}


@pytest.mark.parametrize('name', NETWORKS)
def test_autocast_is_near_float32(name):
    """Oracle: bfloat16 has 8 bits, so some per cent of the largest value."""
    build, inputs, path = NETWORKS[name]
    network = build()
    with torch.autocast('cpu', torch.bfloat16):
        whole = step(network, inputs())
    assert whole['output'].dtype == torch.bfloat16
    assert all(value.isfinite().all() for value in whole.values())
    assert all(value.dtype == torch.float32 for key, value in whole.items() if key != 'output')
    layer, x = network.get_submodule(path), torch.randn((2, 7, 24) if name == 'GPT' else (8, 1024, 8, 8))
    expected = step(copy.deepcopy(layer), x)
    with torch.autocast('cpu', torch.bfloat16):
        found = step(layer, x)
    for key in expected:
        assert (found[key] - expected[key]).abs().max() < 0.1 * expected[key].abs().max()


@pytest.mark.parametrize('name', NETWORKS)
def test_activation_checkpointing_changes_no_gradient(name):
    build, inputs, path = NETWORKS[name]
    network, x = build(), inputs()
    expected = step(copy.deepcopy(network), x)
    layer = network.get_submodule(path)
    runs, forward = [], layer.forward
    layer.forward = lambda x: runs.append(x) or checkpoint(forward, x, use_reentrant=False)
    found = step(network, x)
    assert runs
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.skipif(not can_compile(), reason='this torch cannot compile computing layers')
@pytest.mark.parametrize('name', NETWORKS)
def test_a_compiled_network_has_the_same_step(name):
    build, inputs, _ = NETWORKS[name]
    torch.compiler.reset()
    network, x = build(), inputs()
    if name == 'ResNet':  # a stage of it is enough
        network, x = network.layer3, torch.rand(2, 512, 8, 8)
    expected = step(copy.deepcopy(network), x)
    compiled = torch.compile(network, backend='aot_eager', fullgraph=True)
    found = step(compiled, x)
    for key, value in expected.items():
        torch.testing.assert_close(found[key if key == 'output' else f'_orig_mod.{key}'], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', NETWORKS)
def test_another_precision_reaches_sites_and_neighbours_alike(name):
    build, inputs, _ = NETWORKS[name]
    network, x = build().eval(), inputs()
    expected = network(x)
    doubled = network.to(torch.float64)(x.double() if x.is_floating_point() else x)
    assert doubled.dtype == torch.float64
    torch.testing.assert_close(doubled.float(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', NETWORKS)
def test_evaluation_follows_a_write_through_data(name):
    """A neighbour's weight that a site alone reads twice: the site's output must move with it, at once."""
    build, inputs, path = NETWORKS[name]
    network = build().eval()
    layer, seen = network.get_submodule(path), []
    layer.register_forward_hook(lambda _, args, out: seen.append(args[0]))
    with torch.no_grad():
        network(inputs())
        before = layer(seen[0])
        prev = layer.prev.attn.c_proj if name == 'GPT' else layer.prev.conv2
        prev.weight.data[:, 0] = 5.0
        after = layer(seen[0])
    assert not torch.equal(before, after)
    assert torch.equal(after, copy.deepcopy(network).get_submodule(path)(seen[0]))


def test_an_exchanged_neighbour_is_refused_when_it_is_deployed():
    network = gpt()
    network.h[2] = copy.deepcopy(network.h[2])
    with pytest.raises(ValueError, match=r'layer at h\.3 reads a left neighbour that is no longer part of the network'):
        repl_mm.deploy(network)
    with pytest.raises(ValueError, match=r'nothing to deploy in GPT: .* no computing layers; repl_mm\.replace puts'):
        repl_mm.deploy(GPT())
    assert computing_layers(network)
