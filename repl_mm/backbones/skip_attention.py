"""Skip-Attention (Venkataramanan et al. 2023), a Vision Transformer that the papers compare with, by its description.

Shapes:
    x           (N, T, D)  tokens, the class token first where there is one
    attended    (N, T, D)  what the attention branch adds to them, before drop path
    grid        (H, W)     patches of the image: T = H W, and one more with a class token
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmpretrain.models.backbones import VisionTransformer
from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer
from mmpretrain.models.utils import resize_pos_embed
from torch import Tensor, nn

from repl_mm.registry import MODELS


class AttentionEstimate(nn.Module):
    """Estimates what a block's attention adds from what it adds in the block before: the paper's parametric function.

    The patches pass a linear layer to 2 D channels, GELU, a depthwise 5 x 5 convolution on their grid, GELU, a linear
    layer back to D and efficient channel attention (a sigmoid of a convolution of three channels' means, multiplied).
    The class token stays as it is.

    Args:
        channels: D.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, 2 * channels)
        self.conv = nn.Conv2d(2 * channels, 2 * channels, 5, padding=2, groups=2 * channels)
        self.fc2 = nn.Linear(2 * channels, channels)
        self.channel_attention = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, attended: Tensor, grid: tuple[int, int]) -> Tensor:
        extra, patches = attended.tensor_split([attended.size(1) - grid[0] * grid[1]], dim=1)
        maps = F.gelu(self.fc1(patches)).mT.unflatten(2, grid)
        patches = self.fc2(F.gelu(self.conv(maps)).flatten(2).mT)
        gate = self.channel_attention(patches.mean(dim=1, keepdim=True)).sigmoid()
        return torch.cat([extra, patches * gate], dim=1)


class AttendingLayer(TransformerEncoderLayer):
    """The host's block, which also returns what its attention adds; it takes the parts of the given one."""

    def __init__(self, block: TransformerEncoderLayer) -> None:
        BaseModule.__init__(self, block.init_cfg)
        self.embed_dims = block.embed_dims
        self.ln1, self.attn, self.ln2, self.ffn = block.ln1, block.attn, block.ln2, block.ffn
        # What is handed on is whole: drop path leaves images out of the sum alone.
        self.drop_path, self.attn.out_drop = self.attn.out_drop, nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        attended = self.attn(self.ln1(x))
        x = x + self.drop_path(attended)
        return self.ffn(self.ln2(x), identity=x), attended


class SkippingLayer(TransformerEncoderLayer):
    """The given block with an estimate in the place of its attention, whose weights and norm are gone."""

    def __init__(self, block: TransformerEncoderLayer) -> None:
        BaseModule.__init__(self, block.init_cfg)
        self.embed_dims = block.embed_dims
        self.estimate = AttentionEstimate(block.embed_dims)
        self.ln2, self.ffn, self.drop_path = block.ln2, block.ffn, block.attn.out_drop

    def forward(self, x: Tensor, attended: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        attended = self.estimate(attended, grid)
        x = x + self.drop_path(attended)
        return self.ffn(self.ln2(x), identity=x), attended


@MODELS.register_module()
class SkipAttentionViT(VisionTransformer):
    """Vision Transformer in which some blocks compute no attention: they estimate it from the block before.

    It takes images of any size and aspect, as the host does, and has no parameter that a step leaves out.

    Args:
        *args: Passed on to mmpretrain's ``VisionTransformer``.
        skip: The blocks without attention, counted from 0; by default the paper's, six of twelve.
        **kwargs: Passed on.

    Raises:
        ValueError: Blocks that do not exist; the first one, as it has none before it; the last one, as an estimate
            changes the patches alone, and none of them would reach the head.
    """

    def __init__(self, *args: Any, skip: Sequence[int] = (3, 4, 5, 6, 7, 8), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        last = self.num_layers - 1
        if not isinstance(skip, list | tuple) or not all(type(at) is int and 0 < at < last for at in skip):
            raise ValueError(f"'skip' is a list of blocks from 1 to {last - 1}, got {skip!r}")
        for at in skip:
            self.layers[at] = SkippingLayer(self.layers[at])
        for at in {at - 1 for at in skip} - set(skip):
            self.layers[at] = AttendingLayer(self.layers[at])
        if self.frozen_stages > 0:
            self._freeze_stages()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """As the host's, whose blocks know neither the grid nor each other's attention.

        Args:
            x: Images, (N, 3, height, width).

        Returns:
            What ``out_type`` asks for, of each of ``out_indices``.
        """
        x, grid = self.patch_embed(x)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.size(0), -1, -1), x], dim=1)
        x = x + resize_pos_embed(
            self.pos_embed, self.patch_resolution, grid, self.interpolate_mode, self.num_extra_tokens
        )
        x = self.pre_norm(self.drop_after_pos(x))
        outs, attended = [], None
        for at, layer in enumerate(self.layers):
            if isinstance(layer, SkippingLayer):
                x, attended = layer(x, attended, grid)
            elif isinstance(layer, AttendingLayer):
                x, attended = layer(x)
            else:
                x = layer(x)
            if at == self.num_layers - 1 and self.final_norm:
                x = self.ln1(x)
            if at in self.out_indices:
                outs.append(self._format_output(x, grid))
        return tuple(outs)
