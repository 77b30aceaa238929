"""Swin Transformers.

One Swin serves classification, detection and segmentation: mmpretrain's equals mmdet's and mmseg's bit for bit once
their arguments are translated. What is left are the stages that they freeze, and how they load checkpoints.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from mmengine.runner.checkpoint import load_state_dict
from mmpretrain.models.backbones import SwinTransformer
from mmpretrain.models.backbones.swin_transformer import SwinBlock
from mmpretrain.models.utils import ShiftWindowMSA
from mmseg.models.backbones import SwinTransformer as DenseSwinTransformer
from torch import Tensor, nn

from repl_mm.backbones.mixin import ReplMixin
from repl_mm.engine.weights import read_checkpoint
from repl_mm.layers import TransformerParts
from repl_mm.registry import MODELS

_CLASSIFICATION, _DENSE = (set(inspect.signature(cls).parameters) for cls in (SwinTransformer, DenseSwinTransformer))
ONLY_CLASSIFICATION = _CLASSIFICATION - _DENSE
ONLY_DENSE = _DENSE - _CLASSIFICATION | {'convert_weights'}  # that one is mmdet's alone
LAYER_NORM, GELU = dict(type='LN'), dict(type='GELU')


@MODELS.register_module()
class ReplSwin(ReplMixin, SwinTransformer):
    """Swin Transformer, by mmpretrain's arguments (``arch='tiny'``, ...) or by mmdet's and mmseg's (``depths``, ...).

    An argument that only mmdet's and mmseg's Swin has makes it theirs: their defaults, small maps padded to a
    window, official checkpoints read under ``convert_weights=True``, and ``frozen_stages`` counted as they do: ``1`` is
    the patch embedding and the first stage, where mmpretrain freezes two stages.

    ``repl=dict(policy='interval', every=4, mlp_fusion=True)`` replaces every fourth block of each stage, as in
    :class:`repl_mm.backbones.ReplViT`: one in Swin-T, four in the larger ones.

    Raises:
        ValueError: Arguments of both kinds, or some that contradict each other.
    """

    kind = TransformerParts
    depth_option = 'drop_path_rate'
    # Padding and shifted windows of unknown size keep torch's exporter busy for minutes.
    has_free_size = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        dense = sorted(ONLY_DENSE & set(kwargs))
        others = [*map(repr, args), *sorted(ONLY_CLASSIFICATION & set(kwargs))]
        if dense and others:
            raise ValueError(
                f'{", ".join(dense)}: arguments of mmdet and mmseg; {", ".join(others)}: of mmpretrain. Give those of '
                'one library'
            )
        self.is_dense = bool(dense)
        self.convert_weights = kwargs.pop('convert_weights', False)
        super().__init__(*args, **(_translate(**kwargs) if dense else kwargs))

    def repl_stages(self) -> dict[str, nn.Module]:
        return {f'stages.{index}.blocks': stage.blocks for index, stage in enumerate(self.stages)}

    @property
    def img_size(self) -> tuple[int, int]:
        """Height and width of the images that it is made for."""
        return self.patch_embed.init_input_size

    @property
    def least_side(self) -> int:
        """Height and width that images need at least: without padding, one window in the last stage."""
        attention = self.stages[-1].blocks[0].attn
        strides = [stage.downsample.sampler.stride[0] for stage in self.stages if stage.downsample is not None]
        least = attention.window_size * self.patch_embed.projection.stride[0] * math.prod(strides)
        return 0 if attention.pad_small_map else least

    def init_weights(self) -> None:
        if self.is_dense and isinstance(self.init_cfg, Mapping) and self.init_cfg['type'] == 'Pretrained':
            self._load_pretrained(self.init_cfg['checkpoint'])
        else:
            super().init_weights()

    def _load_pretrained(self, path: str) -> None:
        """Load weights as mmdet and mmseg do: of a backbone alone or inside of a model, or official ones to convert."""
        checkpoint = read_checkpoint(path)
        state_dict = checkpoint.get('state_dict', checkpoint.get('model', checkpoint))
        if self.convert_weights:
            from mmdet.models.backbones.swin import swin_converter

            state_dict = swin_converter(state_dict)
        state_dict = {key.removeprefix('module.').removeprefix('backbone.'): v for key, v in state_dict.items()}
        # A classifier's last norm is none of the features' norms.
        state_dict = {key: value for key, value in state_dict.items() if not key.startswith('norm.')}
        if not any(key.startswith('stages.') for key in state_dict):
            raise ValueError(
                f'{path} holds no stages of a Swin: give convert_weights=True for a checkpoint of the official '
                'repository, False for one of mmdet, mmseg or mmpretrain'
            )
        load_state_dict(self, state_dict, strict=False, logger='current')

    def switch_to_deploy(self, *, fuse_all: bool = False) -> None:
        super().switch_to_deploy(fuse_all=fuse_all)
        for block in self.modules():
            if isinstance(block, SwinBlock):
                block.attn = StaticWindowAttention(block.attn)

    def _freeze(self) -> None:
        self._freeze_stages()

    def _freeze_stages(self) -> None:
        if not self.is_dense:
            super()._freeze_stages()
        elif self.frozen_stages >= 0:
            norms = [getattr(self, f'norm{index}') for index in self.out_indices if index < self.frozen_stages]
            for module in (self.patch_embed, self.drop_after_pos, *self.stages[: self.frozen_stages], *norms):
                module.eval().requires_grad_(False)
            if self.use_abs_pos_embed:
                self.absolute_pos_embed.requires_grad = False

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        _update(state_dict, prefix, own=self.state_dict(), last=len(self.stages) - 1)
        super()._load_from_state_dict(state_dict, prefix, *args)


class StaticWindowAttention(ShiftWindowMSA):
    """The host's attention in shifted windows, for graphs of any number of images.

    The host computes that number by a division of floats, which an exported graph holds as a constant.

    Args:
        attention: The attention whose parameters it takes.
    """

    def __init__(self, attention: ShiftWindowMSA) -> None:
        super().__init__(
            embed_dims=attention.w_msa.embed_dims,
            num_heads=attention.w_msa.num_heads,
            window_size=attention.window_size,
            shift_size=attention.shift_size,
            pad_small_map=attention.pad_small_map,
            window_msa=lambda **_: attention.w_msa,
        )
        self.drop = attention.drop

    @staticmethod
    def window_reverse(windows: Tensor, H: int, W: int, window_size: int) -> Tensor:  # noqa: N803
        """(N * windows of an image, window_size, window_size, C) to (N, H, W, C)."""
        channels = windows.size(-1)
        x = windows.view(-1, H // window_size, W // window_size, window_size, window_size, channels)
        return x.transpose(2, 3).reshape(-1, H, W, channels)


def _update(state_dict: dict[str, Tensor], prefix: str, *, own: Mapping[str, Tensor], last: int) -> None:
    """Bring a checkpoint up to date, in place: older names, and position biases of another window size.

    mmpretrain's Swin knows older names for itself only, not for subclasses, and needs an older SciPy for the biases,
    which are interpolated here as mmdet and mmseg do.
    """
    for key in [key for key in state_dict if key.startswith(prefix)]:
        name = key.removeprefix(prefix)
        if name.startswith('norm.'):
            state_dict[f'{prefix}norm{last}.{name.removeprefix("norm.")}'] = state_dict.pop(key)
        elif name.endswith('.attn_mask'):
            del state_dict[key]
        elif name.endswith('.relative_position_bias_table') and name in own:
            (length, heads), theirs = own[name].shape, state_dict[key]
            if length != len(theirs) and heads == theirs.size(1):
                sides = [round(number**0.5) for number in (len(theirs), length)]
                table = F.interpolate(theirs.T.reshape(1, heads, sides[0], sides[0]), (sides[1],) * 2, mode='bicubic')
                state_dict[key] = table.view(heads, length).T.contiguous()
                # Which offset each pair of positions has is fixed by the window.
                index = name.replace('bias_table', 'index')
                state_dict[prefix + index] = own[index]


def _translate(
    *,
    pretrain_img_size: int | Sequence[int] = 224,
    embed_dims: int = 96,
    depths: Sequence[int] = (2, 2, 6, 2),
    num_heads: Sequence[int] = (3, 6, 12, 24),
    patch_size: int = 4,
    strides: Sequence[int] = (4, 2, 2, 2),
    mlp_ratio: float = 4,
    out_indices: Sequence[int] = (0, 1, 2, 3),
    qkv_bias: bool = True,
    qk_scale: float | None = None,
    patch_norm: bool = True,
    drop_rate: float = 0.0,
    attn_drop_rate: float = 0.0,
    act_cfg: Mapping[str, Any] = GELU,
    norm_cfg: Mapping[str, Any] = LAYER_NORM,
    pretrained: str | None = None,
    init_cfg: Any = None,
    **same: Any,
) -> dict[str, Any]:
    """mmpretrain's arguments for those of mmdet and mmseg, which have their defaults here."""
    if len(strides) < len(depths) or strides[0] != patch_size:
        raise ValueError(
            f"'strides' is one number for each of {len(depths)} stages, the first being the patch size {patch_size!r}, "
            f'got {tuple(strides)}'
        )
    if pretrained and init_cfg:
        raise ValueError(f"'pretrained' {pretrained!r} and 'init_cfg' are given: give 'init_cfg' alone")
    if pretrained:
        init_cfg = dict(type='Pretrained', checkpoint=pretrained)
    elif init_cfg is None:
        init_cfg = [
            dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
            dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.0),
        ]
    sides = (pretrain_img_size,) * 2 if isinstance(pretrain_img_size, int) else (*pretrain_img_size,)
    patch_norm_cfg = norm_cfg if patch_norm else None
    block_cfgs = dict(
        ffn_ratio=mlp_ratio,
        norm_cfg=norm_cfg,
        attn_cfgs=dict(qkv_bias=qkv_bias, qk_scale=qk_scale, attn_drop=attn_drop_rate, proj_drop=drop_rate),
        ffn_cfgs=dict(ffn_drop=drop_rate, act_cfg=act_cfg),
    )
    return same | dict(
        arch=dict(embed_dims=embed_dims, depths=depths, num_heads=num_heads),
        # They leave out what is no whole patch, mmpretrain would pad it.
        img_size=tuple(side // patch_size * patch_size for side in sides),
        patch_size=patch_size,
        out_indices=out_indices,
        drop_rate=drop_rate,
        pad_small_map=True,
        norm_cfg=norm_cfg,
        patch_cfg=dict(norm_cfg=patch_norm_cfg),
        stage_cfgs=[
            dict(downsample_cfg=dict(stride=stride, norm_cfg=patch_norm_cfg), block_cfgs=block_cfgs)
            for stride in (*strides[1 : len(depths)], None)  # nothing follows the last stage
        ],
        init_cfg=init_cfg,
    )
