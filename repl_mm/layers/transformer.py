"""Computing layers of transformers: plain, windowed and causal ones alike, as they see each token by itself.

Shapes:
    X      (..., D)  tokens
    H, d   attention heads, and channels of one head: D = H d
    F      hidden width of the MLP
"""

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repl_mm.layers.base import ComputingLayer, flag, shape_refusal
from repl_mm.layers.cost import Cost, layer_cost, recomputed
from repl_mm.layers.memory import recompute_between
from repl_mm.layers.parts import Activation, TransformerParts, as_module, owner_of_forward, read
from repl_mm.layers.static import Residual, StaticLayer, static_layer_norm, static_linear
from repl_mm.synthesis import average, average_normalised, mix, mix_heads

# timm's chooses between two kernels of the same.
LAYER_NORMS = ('torch.nn.modules.normalization.LayerNorm', 'timm.layers.norm.LayerNorm')


class _TransformerLayer(ComputingLayer):
    """A token-wise residual projection in place of a pre-norm transformer block (Eq. 19-27).

    Options: ``mlp_fusion`` lets an MLP follow whose weights are the mean of the neighbours' normalised ones and which
    has no parameters of its own (Eq. 25-27); ``recompute`` computes its activation's input twice instead of
    keeping it for the backward pass.
    """

    kinds = (TransformerParts,)
    options_of_form: ClassVar = {'mlp_fusion': flag(is_structural=True), 'recompute': flag()}
    # Without an MLP it is another network than the papers' headline rows have.
    variants = (dict(mlp_fusion=True), dict(mlp_fusion=True, recompute=True), {})
    norms_projection: ClassVar[bool]  # whether the projection reads the left neighbour's first norm

    def __init__(self, removed: nn.Module, **kwargs: Any) -> None:
        super().__init__(removed, **kwargs)
        parts = read(removed)
        self.activation = _out_of_place(parts.activation)
        self._make_coefficients(parts.proj.weight, self._number(parts))
        self.reset_parameters()

    @staticmethod
    def _number(parts: TransformerParts) -> int:
        """How many coefficients there are for each neighbour."""
        raise NotImplementedError

    @classmethod
    def refusal(
        cls, removed: TransformerParts, prev: TransformerParts, next: TransformerParts, **options: Any
    ) -> str | None:
        fusion = options.get('mlp_fusion', False)
        if removed.proj.in_features != removed.proj.out_features:
            return 'its attention is of another width than its tokens'
        if not all(map(cls.stands_for, (prev, next))):
            return 'its neighbours are blocks of another kind'
        if fusion and any(parts.mlp is None for parts in (removed, prev, next)):
            return 'mlp_fusion needs MLPs of two linear layers: leave it out'
        if fusion and any(True for _ in _parameters(removed.activation)):
            return 'mlp_fusion needs an activation without parameters: leave it out'
        norms = [*([prev.norm1] if cls.norms_projection else []), *([prev.norm2] if fusion else [])]
        if odd := {type(norm).__name__ for norm in norms if owner_of_forward(norm) not in LAYER_NORMS}:
            return f'its left neighbour has a norm of type {", ".join(odd)} where nn.LayerNorm is needed'
        for side, parts in (('left', prev), ('right', next)):
            pairs = [('attention projection', parts.proj, removed.proj)]
            pairs += [('MLP', *pair) for pair in zip(parts.mlp, removed.mlp, strict=True)] if fusion else []
            for what, lent, own in pairs:
                if reason := shape_refusal(f"the {side} neighbour's {what}", lent.weight, own.weight):
                    return reason
                if (lent.bias is None) != (own.bias is None):
                    return f"of the {side} neighbour's {what} and the removed block's, only one has a bias"
        return None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., D) to the same; masks and sizes that a block of its kind is called with have no meaning here."""
        # Not in place: under autocast the branches are in half precision and the tokens are not.
        x = x + self._projection(x)
        return x + self._mlp(x) if self.options['mlp_fusion'] else x

    def _projection(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _mlp(self, x: Tensor) -> Tensor:
        normalise = _frozen_norm(self.parts[0].norm2)
        (weight1, bias1), (weight2, bias2) = self.mlp_weights()

        def hidden(x: Tensor) -> Tensor:
            return F.linear(normalise(x), weight1, bias1)  # (..., F)

        if self.options['recompute']:
            activated = recompute_between(hidden, self.activation, x)
        else:
            activated = self.activation(hidden(x))
        return F.linear(activated, weight2, bias2)

    def weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        """The synthesised projection (D, D) and its bias (D,)."""
        raise NotImplementedError

    def mlp_weights(self) -> list[tuple[Tensor, Tensor | None]]:
        """Weight and bias of both linear layers of the MLP, shapes (F, D), (F,), (D, F), (D,)."""
        prev, next = self.parts
        return [
            (average_normalised(p.weight, n.weight), _average_bias(p, n))
            for p, n in zip(prev.mlp, next.mlp, strict=True)
        ]

    @torch.no_grad()
    def fuse(self) -> StaticLayer:
        static = StaticLayer(self._static_projection())
        if self.options['mlp_fusion']:
            fc1, fc2 = (static_linear(*pair) for pair in self.mlp_weights())
            norm, activation = static_layer_norm(self.parts[0].norm2), copy.deepcopy(self.activation)
            static.append(Residual(nn.Sequential(norm, fc1, activation, fc2)))
        return static

    def _static_projection(self) -> nn.Module:
        raise NotImplementedError

    def _sizes(self, shape: torch.Size) -> tuple[int, int, int, int]:
        """Tokens of an image, their width, the MLP's hidden width, and parameters of one layer norm."""
        width, prev = shape[-1], self.parts[0]
        hidden = prev.mlp[0].out_features if self.options['mlp_fusion'] else 0
        return shape[1:-1].numel(), width, hidden, sum(p.numel() for p in prev.norm1.parameters())

    def cost(self, shape: torch.Size) -> Cost:
        tokens, width, hidden, _ = self._sizes(shape)
        # A projection after a norm keeps the norm's output as well, and its statistics.
        normed = self.norms_projection * tokens * (width + 2)
        own = sum(p.numel() for p in self.parameters())
        cost = layer_cost(own, 2 * tokens * width**2, kept=tokens * width + normed)
        if self.options['mlp_fusion']:
            mlp = 4 * tokens * width * hidden
            # All weights are borrowed: no gradients, and no inputs kept but those of the norm and of the activation.
            cost += layer_cost(0, mlp, frozen=mlp, kept=tokens * (width + hidden + 2))
            if self.options['recompute']:
                cost += recomputed(mlp // 2, tokens * hidden)
        return cost

    def static_cost(self, shape: torch.Size) -> Cost:
        tokens, width, hidden, norm = self._sizes(shape)
        prev = self.parts[0]
        normed = self.norms_projection * tokens * (width + 2)
        own = _numbers(prev.proj) + self.norms_projection * norm
        cost = layer_cost(own, 2 * tokens * width**2, kept=tokens * width + normed)
        if self.options['mlp_fusion']:
            own = sum(map(_numbers, prev.mlp)) + norm
            cost += layer_cost(own, 4 * tokens * width * hidden, kept=tokens * (2 * width + 2 * hidden + 2))
        return cost


class ScalarTransformerLayer(_TransformerLayer):
    """``X + X W^T + b``, both mixed from the neighbours' projections by two scalars (Eq. 19-21, Eq. 50)."""

    form = 'scalar'
    # The sources are not normalised: the mix starts as their mean.
    coefficients: ClassVar = {'alpha': 0.5, 'beta': 0.5}
    norms_projection = False

    @staticmethod
    def _number(parts: TransformerParts) -> int:
        return 1

    def weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        prev, next = (
            (parts.proj.weight, *([] if parts.proj.bias is None else [parts.proj.bias])) for parts in self.parts
        )
        weight, *bias = mix(self.alpha, prev, self.beta, next)
        return weight, bias[0] if bias else None

    def _projection(self, x: Tensor) -> Tensor:
        return F.linear(x, *self.weight_and_bias())

    def _static_projection(self) -> nn.Module:
        # Nothing stands between the tokens and the projection, so it takes in the residual too: (W + I) X.
        weight, bias = self.weight_and_bias()
        return static_linear(weight + torch.eye(weight.size(0)).to(weight), bias)


class HeadwiseTransformerLayer(_TransformerLayer):
    """``X + D^(-1/2) LN(X) W^T + b``, W mixed from normalised projections head by head (Eq. 22-24, Eq. 51).

    The LN is the left neighbour's first one, read through a stop-gradient; the bias is the neighbours' mean and is
    not scaled.
    """

    form = 'headwise'
    # The sources are normalised.
    coefficients: ClassVar = {'alpha': 1.0, 'beta': 1.0}
    norms_projection = True

    @classmethod
    def refusal(
        cls, removed: TransformerParts, prev: TransformerParts, next: TransformerParts, **options: Any
    ) -> str | None:
        heads, width = removed.num_heads, removed.proj.in_features
        if not isinstance(heads, int) or heads < 1 or width % heads:
            return f'{heads!r} heads do not divide its width {width}'
        return super().refusal(removed, prev, next, **options)

    @staticmethod
    def _number(parts: TransformerParts) -> int:
        return parts.num_heads

    def weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        prev, next = (parts.proj for parts in self.parts)
        # The factor goes into the coefficients: they are few, the tokens are many.
        scale = prev.in_features**-0.5
        weight = mix_heads(self.alpha * scale, prev.weight, self.beta * scale, next.weight)
        return weight, _average_bias(prev, next)

    def _projection(self, x: Tensor) -> Tensor:
        return F.linear(_frozen_norm(self.parts[0].norm1)(x), *self.weight_and_bias())

    def _static_projection(self) -> nn.Module:
        norm = static_layer_norm(self.parts[0].norm1)
        return Residual(nn.Sequential(norm, static_linear(*self.weight_and_bias())))


def _parameters(activation: Activation) -> list[nn.Parameter]:
    return list(activation.parameters()) if isinstance(activation, nn.Module) else []


def _out_of_place(activation: Activation) -> nn.Module:
    """The same activation that leaves its input as it is, which may have to be computed again."""
    activation = copy.deepcopy(as_module(activation))
    if hasattr(activation, 'inplace'):
        activation.inplace = False
    return activation


def _average_bias(prev: nn.Linear, next: nn.Linear) -> Tensor | None:
    return None if prev.bias is None else average(prev.bias, next.bias)


def _numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _frozen_norm(norm: nn.LayerNorm) -> Callable[[Tensor], Tensor]:
    """A borrowed layer norm as it is now, its parameters read through a stop-gradient."""
    weight, bias = (None if p is None else p.detach() for p in (norm.weight, norm.bias))
    return lambda x: F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)
