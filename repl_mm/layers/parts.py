"""What a block lends to computing layers, whoever wrote the block.

Readers stand in a table by the full name of a block's class, so that no library is imported for them. Users add their
own::

    @reads(MyBlock)
    def _(block: MyBlock) -> TransformerParts:
        return TransformerParts(block.attn.proj, block.norm1, block.norm2, (block.fc1, block.fc2), block.act, heads)

Parts are read anew at each use and never stored: ``.to()``, sharding and averaged models exchange tensors and modules.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ResidualParts:
    """A residual block ``activation(x + norm(conv(...)))``.

    Attributes:
        convs: Its convolutions in order: two of a BasicBlock, three of a Bottleneck.
        norms: The norm behind each of them.
        activation: What follows the sum, and each norm but the last.
    """

    convs: tuple[nn.Conv2d, ...]
    norms: tuple[nn.Module, ...]
    activation: Activation


@dataclass(frozen=True)
class TransformerParts:
    """A pre-norm block ``x + attention(norm1(x))``, then ``x + mlp(norm2(x))``.

    Attributes:
        proj: The output projection of the attention, (D, D).
        norm1: The norm in front of the attention.
        norm2: The norm in front of the MLP.
        mlp: Its two linear layers, or None where it is made otherwise.
        activation: What stands between them.
        num_heads: Heads of the attention.
        attention: The whole attention, between the norm and the sum; None where that is no module of its own.
    """

    proj: nn.Linear
    norm1: nn.Module
    norm2: nn.Module
    mlp: tuple[nn.Linear, nn.Linear] | None
    activation: Activation
    num_heads: int
    attention: nn.Module | None = None


class FunctionalActivation(nn.Module):
    """An activation that a block keeps as a function."""

    def __init__(self, function: Activation) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def as_module(activation: Activation) -> nn.Module:
    """An activation as a module, which copies and prints as the others do."""
    return activation if isinstance(activation, nn.Module) else FunctionalActivation(activation)


Parts = ResidualParts | TransformerParts
Reader = Callable[[nn.Module], Parts]
READERS: dict[str, Reader] = {}


def full_name(cls: type) -> str:
    """Module and name of a class."""
    return f'{cls.__module__}.{cls.__qualname__}'


def reads(*classes: type | str) -> Callable[[Reader], Reader]:
    """Register a reader for classes of blocks, given themselves or by their full names.

    It returns the parts, or raises ValueError with the reason why a block cannot be read.
    """

    def register(reader: Reader) -> Reader:
        READERS.update({cls if isinstance(cls, str) else full_name(cls): reader for cls in classes})
        return reader

    return register


def owner_of_forward(module: nn.Module) -> str:
    """Full name of the class whose ``forward`` runs."""
    return full_name(next(cls for cls in type(module).__mro__ if 'forward' in vars(cls)))


def find_reader(block: nn.Module) -> Reader | None:
    """The reader of the class whose ``forward`` runs; a subclass that changes it needs one of its own."""
    return READERS.get(owner_of_forward(block))


def read(block: nn.Module) -> Parts:
    """The parts of a block.

    Raises:
        ValueError: No reader knows its class, or it has something that a computing layer cannot honour.
    """
    reader = find_reader(block)
    if reader is None:
        raise ValueError(f'no reader knows {full_name(type(block))}: register one by repl_mm.layers.reads')
    if 'forward' in vars(block):
        _refuse(block, 'has a forward that was set on it alone')
    parts = reader(block)
    if not isinstance(parts, Parts):
        raise ValueError(f'the reader of {full_name(type(block))} gives {parts!r}: ResidualParts or TransformerParts')
    if isinstance(parts, ResidualParts):
        _check_convolutions(block, parts)
    else:
        _check_linears(block, parts)
    return parts


# Those of mmcv only add what older versions of torch lacked.
PLAIN_LINEARS = ('torch.nn.modules.linear.Linear', 'mmcv.cnn.bricks.wrappers.Linear')


def _check_convolutions(block: nn.Module, parts: ResidualParts) -> None:
    """Refuse what is more than plain convolutions with a norm behind each, whoever wrote the reader."""
    if len(parts.convs) != len(parts.norms) or len(parts.convs) not in (2, 3):
        _refuse(block, f'has {len(parts.convs)} convolutions and {len(parts.norms)} norms, not two or three of both')
    if odd := {type(conv).__name__ for conv in parts.convs if type(conv) is not nn.Conv2d}:
        _refuse(block, f'has convolutions of type {", ".join(sorted(odd))}')
    if any(conv.bias is not None for conv in parts.convs):
        _refuse(block, 'has convolutions with a bias')
    if any(conv.padding_mode != 'zeros' for conv in parts.convs):
        _refuse(block, 'has convolutions that pad by something else than zeros')
    _check_weights(block, parts.convs)


def _check_linears(block: nn.Module, parts: TransformerParts) -> None:
    """Refuse linear layers that compute something else than torch's own, whoever wrote the reader."""
    linears = (parts.proj, *(parts.mlp or ()))
    if odd := {type(linear).__name__ for linear in linears if owner_of_forward(linear) not in PLAIN_LINEARS}:
        _refuse(block, f'has linear layers of type {", ".join(sorted(odd))} instead of nn.Linear')
    _check_weights(block, linears)


def _check_weights(block: nn.Module, modules: Iterable[nn.Module]) -> None:
    for module in modules:
        if 'weight' not in module._parameters and not is_parametrized(module, 'weight'):
            _refuse(block, 'has weights that a hook makes before each pass (weight norm, pruning)')


def norm_pairs(block: nn.Module) -> Iterator[tuple[nn.Conv2d, nn.Module]]:
    """Convolutions of a residual block, its shortcut's among them, each with the norm that follows it at once."""
    try:
        parts = read(block)
    except ValueError:  # what stands between its convolutions and norms is not known, or they are folded already
        return
    if not isinstance(parts, ResidualParts):
        return
    yield from zip(parts.convs, parts.norms, strict=True)
    shortcut = getattr(block, 'downsample', None)
    if isinstance(shortcut, nn.Sequential):
        yield from _pairs_in(shortcut)


def _refuse(block: nn.Module, reason: str) -> None:
    raise ValueError(f'{type(block).__name__} {reason}, which a computing layer cannot honour')


def _residual(block: nn.Module, norms: tuple[nn.Module, ...], activation: Activation) -> ResidualParts:
    convs = tuple(getattr(block, f'conv{number}') for number in range(1, len(norms) + 1))
    return ResidualParts(convs, norms, activation)


_MM_RESNETS = ('mmpretrain.models.backbones.resnet', 'mmseg.models.backbones.resnet', 'mmdet.models.backbones.resnet')


@reads(
    *(f'{module}.{name}' for module in _MM_RESNETS for name in ('BasicBlock', 'Bottleneck')),
    'repl_mm.backbones.stochastic_depth.SkippableBlock',
)
def _openmmlab_residual(block: nn.Module) -> ResidualParts:
    if getattr(block, 'with_plugins', False):
        _refuse(block, 'has plugins')
    norms = (block.norm1, block.norm2, *([block.norm3] if hasattr(block, 'conv3') else []))
    return _residual(block, norms, block.relu)


@reads('torchvision.models.resnet.BasicBlock', 'torchvision.models.resnet.Bottleneck')
def _torchvision_residual(block: nn.Module) -> ResidualParts:
    norms = (block.bn1, block.bn2, *([block.bn3] if hasattr(block, 'conv3') else []))
    return _residual(block, norms, block.relu)


@reads('timm.models.resnet.BasicBlock', 'timm.models.resnet.Bottleneck')
def _timm_residual(block: nn.Module) -> ResidualParts:
    if block.se is not None:
        _refuse(block, 'has channel attention')
    if not isinstance(block.aa, nn.Identity):
        _refuse(block, 'has anti-aliasing')
    if not isinstance(block.drop_block, nn.Identity):
        _refuse(block, 'has DropBlock')
    norms = (block.bn1, block.bn2, *([block.bn3] if hasattr(block, 'conv3') else []))
    return _residual(block, norms, getattr(block, f'act{len(norms)}'))


def _ffn(block: nn.Module) -> tuple[tuple[nn.Linear, nn.Linear] | None, Activation]:
    """The MLP of mmcv."""
    ffn = block.ffn
    if type(ffn).__name__ != 'FFN' or ffn.num_fcs != 2:
        return None, nn.Identity()
    if not isinstance(ffn.gamma2, nn.Identity):
        _refuse(block, 'has layer scale')
    return (ffn.layers[0][0], ffn.layers[1]), ffn.layers[0][1]


@reads('mmpretrain.models.backbones.vision_transformer.TransformerEncoderLayer')
def _mmpretrain_vit(block: nn.Module) -> TransformerParts:
    if not isinstance(block.attn.gamma1, nn.Identity):
        _refuse(block, 'has layer scale')
    if block.attn.v_shortcut:
        _refuse(block, 'adds its values to its attention')
    return TransformerParts(block.attn.proj, block.ln1, block.ln2, *_ffn(block), block.attn.num_heads, block.attn)


@reads('mmseg.models.backbones.vit.TransformerEncoderLayer')
def _mmseg_vit(block: nn.Module) -> TransformerParts:
    attention = block.attn.attn
    return TransformerParts(attention.out_proj, block.norm1, block.norm2, *_ffn(block), attention.num_heads, block.attn)


@reads(
    'mmpretrain.models.backbones.swin_transformer.SwinBlock',
    'mmdet.models.backbones.swin.SwinBlock',
    'mmseg.models.backbones.swin.SwinBlock',
)
def _openmmlab_swin(block: nn.Module) -> TransformerParts:
    attention = block.attn.w_msa
    return TransformerParts(attention.proj, block.norm1, block.norm2, *_ffn(block), attention.num_heads, block.attn)


@reads('torchvision.models.vision_transformer.EncoderBlock')
def _torchvision_vit(block: nn.Module) -> TransformerParts:
    attention, mlp = block.self_attention, block.mlp
    norms = (block.ln_1, block.ln_2)
    return TransformerParts(attention.out_proj, *norms, (mlp[0], mlp[3]), mlp[1], attention.num_heads, attention)


@reads('torchvision.models.swin_transformer.SwinTransformerBlock')
def _torchvision_swin(block: nn.Module) -> TransformerParts:
    mlp, norms = block.mlp, (block.norm1, block.norm2)
    return TransformerParts(block.attn.proj, *norms, (mlp[0], mlp[3]), mlp[1], block.attn.num_heads, block.attn)


def _timm_mlp(block: nn.Module) -> tuple[tuple[nn.Linear, nn.Linear] | None, Activation]:
    mlp = block.mlp
    plain = type(mlp).__name__ == 'Mlp' and isinstance(mlp.norm, nn.Identity) and isinstance(mlp.fc1, nn.Linear)
    return ((mlp.fc1, mlp.fc2), mlp.act) if plain else (None, nn.Identity())


@reads('timm.models.vision_transformer.Block')
def _timm_vit(block: nn.Module) -> TransformerParts:
    if not isinstance(block.ls1, nn.Identity):
        _refuse(block, 'has layer scale')
    attention = block.attn
    if owner_of_forward(attention) != 'timm.layers.attention.Attention':
        _refuse(block, f'has attention of type {type(attention).__name__}')
    if not isinstance(attention.norm, nn.Identity) or attention.gate is not None:
        _refuse(block, 'norms or gates what its attention projects')
    # A norm of queries and keys is no matter: a computing layer has neither.
    return TransformerParts(attention.proj, block.norm1, block.norm2, *_timm_mlp(block), attention.num_heads, attention)


@reads('timm.models.swin_transformer.SwinTransformerBlock')
def _timm_swin(block: nn.Module) -> TransformerParts:
    return TransformerParts(
        block.attn.proj, block.norm1, block.norm2, *_timm_mlp(block), block.attn.num_heads, block.attn
    )


@reads(
    'torch.nn.modules.transformer.TransformerEncoderLayer',
    'repl_mm.backbones.language_model.CausalLayer',
)
def _torch_encoder(block: nn.TransformerEncoderLayer) -> TransformerParts:
    if not block.norm_first:
        _refuse(block, 'norms behind its sums (build it with norm_first=True)')
    attention, norms, mlp = block.self_attn, (block.norm1, block.norm2), (block.linear1, block.linear2)
    return TransformerParts(attention.out_proj, *norms, mlp, block.activation, attention.num_heads, attention)


# Backbones whose stem is a sequence, or one convolution with a norm.
_STEMS = {f'{module}.ResNet': 'norm1' for module in _MM_RESNETS} | dict.fromkeys(
    ('torchvision.models.resnet.ResNet', 'timm.models.resnet.ResNet'), 'bn1'
)


def stem_pairs(network: nn.Module) -> Iterator[tuple[nn.Conv2d, nn.Module]]:
    """Convolutions of a known ResNet's stem, each with the norm that follows it at once; none of another network."""
    norm = next((_STEMS[name] for cls in type(network).__mro__ if (name := full_name(cls)) in _STEMS), None)
    if norm is None:
        return
    if getattr(network, 'deep_stem', False):
        yield from _pairs_in(network.stem)
    elif isinstance(network.conv1, nn.Sequential):  # timm's deep stems
        yield from _pairs_in([*network.conv1, network.bn1])
    else:
        yield network.conv1, getattr(network, norm)


def _pairs_in(modules: Iterable[nn.Module]) -> Iterator[tuple[nn.Conv2d, nn.Module]]:
    """Convolutions of a sequence, each with what follows it."""
    yield from (pair for pair in pairwise(modules) if isinstance(pair[0], nn.Conv2d))
