"""A causal Transformer, and the language model that stands on it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel, BaseModule
from torch import Tensor, nn

from repl_mm.backbones.mixin import ReplMixin
from repl_mm.layers import TransformerParts
from repl_mm.registry import MODELS

IGNORED = -1  # a target that does not count


class CausalLayer(nn.TransformerEncoderLayer):
    """torch's pre-norm layer with GELU, in which each token sees itself and those before it.

    Its attention needs no mask among the arguments, and takes the same kernel in training, evaluation and exports.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, activation=F.gelu, batch_first=True, norm_first=True, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) to the same."""
        x = x + self.dropout1(self._attend(self.norm1(x)))
        hidden = self.dropout(self.activation(self.linear1(self.norm2(x))))  # (N, T, F)
        return x + self.dropout2(self.linear2(hidden))

    def _attend(self, x: Tensor) -> Tensor:
        attention = self.self_attn
        projected = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
        split = projected.unflatten(-1, (3, attention.num_heads, attention.head_dim))
        query, key, value = split.permute(2, 0, 3, 1, 4)  # each (N, H, T, d)
        dropout = attention.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        return attention.out_proj(mixed.transpose(1, 2).flatten(2))


def sinusoids(length: int, width: int) -> Tensor:
    """Position encodings (length, width): sines in the even columns, cosines in the odd ones (Vaswani et al. 2017)."""
    position = torch.arange(length, dtype=torch.float32)[:, None]
    angles = position * torch.exp(torch.arange(0, width, 2) * (-math.log(10_000) / width))
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


@MODELS.register_module()
class CausalTransformer(BaseModule):
    """Tokens to features that depend on no later token.

    Args:
        num_tokens: Words that it knows.
        embed_dims: Width of the features, an even number.
        depth: Number of layers.
        num_heads: Attention heads.
        feedforward_channels: Hidden width of the MLPs.
        context: Tokens of the longest sequence.
        dropout: Rate of dropout behind the embedding, in the attention and in both branches of a layer.
        init_cfg: As of any module of mmengine.

    Raises:
        ValueError: A number that is not possible.
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        embed_dims: int = 512,
        depth: int = 12,
        num_heads: int = 8,
        feedforward_channels: int = 2048,
        context: int = 128,
        dropout: float = 0.1,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        numbers = dict(
            num_tokens=num_tokens, embed_dims=embed_dims, depth=depth, num_heads=num_heads,
            feedforward_channels=feedforward_channels, context=context,
        )  # fmt: skip
        for name, number in numbers.items():
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise ValueError(f'{name!r} is a whole number above 0, got {number!r}')
        if embed_dims % num_heads or embed_dims % 2:
            raise ValueError(f"'embed_dims' is even and a multiple of 'num_heads' {num_heads}, got {embed_dims}")
        if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
            raise ValueError(f"'dropout' is at least 0 and below 1, got {dropout!r}")
        self.num_tokens, self.embed_dims, self.context = num_tokens, embed_dims, context
        self.embedding = nn.Embedding(num_tokens, embed_dims)
        nn.init.normal_(self.embedding.weight, std=embed_dims**-0.5)
        self.register_buffer('positions', sinusoids(context, embed_dims), persistent=False)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            CausalLayer(embed_dims, num_heads, feedforward_channels, dropout=dropout) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dims)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (N, T) to features (N, T, D)."""
        length = tokens.size(1)
        if length > self.context:
            raise ValueError(f'a sequence has at most {self.context} tokens, got {length}: give the model a context')
        x = self.embedding(tokens) * self.embed_dims**0.5 + self.positions[:length]
        x = self.dropout(x)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)

    def example_inputs(self, number: int, shape: Sequence[int] | None = None) -> Tensor:
        """Random tokens, as many sequences as asked for.

        Args:
            number: Of sequences.
            shape: Of one of them, ``(T,)``; by default the longest.
        """
        return torch.randint(self.num_tokens, (number, *(shape or (self.context,))))


@MODELS.register_module()
class ReplTransformer(ReplMixin, CausalTransformer):
    """The causal Transformer of a language model, in which layers are replaced; options as of its base.

    ``repl=dict(policy='interval', every=4, mlp_fusion=True)`` replaces every fourth layer, as in
    :class:`repl_mm.backbones.ReplViT`. A computing layer sees each token by itself, so the whole stays causal.
    """

    kind = TransformerParts

    def repl_stages(self) -> dict[str, nn.Module]:
        return {'layers': self.layers}

    def _freeze(self) -> None:
        pass  # no layer is ever frozen


@MODELS.register_module()
class TransformerLM(BaseModel):
    """A language model: a causal Transformer, and a linear layer that scores the next token.

    Args:
        backbone: Config of the Transformer.
        data_preprocessor: As of any model of mmengine.
        init_cfg: Likewise.
    """

    def __init__(
        self,
        *,
        backbone: Mapping[str, Any],
        data_preprocessor: Mapping[str, Any] | None = None,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        self.backbone = MODELS.build(backbone)
        self.head = nn.Linear(self.backbone.embed_dims, self.backbone.num_tokens)

    def forward(
        self, inputs: Tensor, targets: Tensor | None = None, mode: Literal['tensor', 'loss', 'predict'] = 'tensor'
    ) -> Tensor | dict[str, Tensor] | list[dict[str, Tensor]]:
        """Score, train or evaluate.

        Args:
            inputs: Tokens (N, T).
            targets: The token that follows each of them, or -1 where none counts; not needed for ``'tensor'``.
            mode: What to return.

        Returns:
            ``'tensor'``: logits (N, T, V). ``'loss'``: the mean cross-entropy of the targets that count. ``'predict'``:
            for each sequence the ``log_likelihood`` of its targets that count, in order.
        """
        logits = self.head(self.backbone(inputs))
        if mode == 'tensor':
            return logits
        # (N, V, T), as torch takes classes second.
        errors = dict(input=logits.mT, target=targets, ignore_index=IGNORED)
        if mode == 'loss':
            return {'loss': F.cross_entropy(**errors)}
        losses = F.cross_entropy(**errors, reduction='none')  # (N, T)
        return [{'log_likelihood': -loss[counts]} for loss, counts in zip(losses, targets != IGNORED, strict=True)]

    def example_inputs(self, number: int, shape: Sequence[int] | None = None) -> Tensor:
        """Random tokens; see :meth:`CausalTransformer.example_inputs`."""
        return self.backbone.example_inputs(number, shape)
