"""Computing layers of Vision Transformers, for mmpretrain's encoder layer.

Shapes:
    X      (N, T, D)  tokens
    H, d   attention heads, and channels of one head: D = H d
    F      hidden width of the MLP
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repl_mm.layers.base import ComputingLayer, require_shape
from repl_mm.layers.memory import recompute_between
from repl_mm.layers.static import Residual, StaticLayer, static_layer_norm, static_linear
from repl_mm.synthesis import average, average_normalised, mix, mix_heads


class ComputingEncoderLayer(ComputingLayer):
    """A token-wise residual projection in place of a pre-norm transformer block (Eq. 19-27).

    Args:
        removed: The block whose place is taken; it gives the shapes and nothing else.
        prev: The retained block on the left.
        next: The retained block on the right.
        mlp_fusion: Let an MLP follow whose weights are the mean of the neighbours' normalised ones (Eq. 25-27).
            It has no parameters of its own.
        recompute: Compute GELU's input twice instead of keeping it for the backward pass.
    """

    def __init__(
        self, removed: nn.Module, *, prev: nn.Module, next: nn.Module, mlp_fusion: bool, recompute: bool = False
    ) -> None:
        super().__init__(prev, next)
        self.mlp_fusion = mlp_fusion
        self.recompute = recompute
        for side, block in (('left', prev), ('right', next)):
            require_shape(f"the {side} neighbour's attention projection", block.attn.proj.weight,
                          removed.attn.proj.weight.shape)  # fmt: skip
            if mlp_fusion:
                for own, borrowed in zip(_mlp(removed), _mlp(block), strict=True):
                    require_shape(f"the {side} neighbour's MLP", borrowed.weight, own.weight.shape)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, *mlp = self.synthesised()
        # Not in place: under autocast the branches are in half precision and the tokens are not.
        x = x + self._projection(x, weight, bias)
        return x + self._mlp(x, *mlp) if self.mlp_fusion else x

    def _projection(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        raise NotImplementedError

    def _mlp(self, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
        normalise = _frozen_norm(self.prev.ln2)

        def hidden(x: Tensor) -> Tensor:
            return F.linear(normalise(x), weight1, bias1)  # (N, T, F)

        activated = recompute_between(hidden, F.gelu, x) if self.recompute else F.gelu(hidden(x))
        return F.linear(activated, weight2, bias2)

    def sources(self) -> tuple[Tensor, ...]:
        linears = [linear for block in self.neighbours for linear in (block.attn.proj, *self._mlps(block))]
        return self.alpha, self.beta, *(tensor for linear in linears for tensor in (linear.weight, linear.bias))

    def synthesise(self) -> tuple[Tensor, ...]:
        return self.weight(), self.bias(), *(tensor for pair in self.mlp_weights() for tensor in pair)

    def weight(self) -> Tensor:
        """The synthesised projection, shape (D, D)."""
        raise NotImplementedError

    def bias(self) -> Tensor:
        """The synthesised bias of the projection, shape (D,)."""
        raise NotImplementedError

    def mlp_weights(self) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of both linear layers, shapes (F, D), (F,), (D, F), (D,); none without ``mlp_fusion``."""
        pairs = zip(self._mlps(self.prev), self._mlps(self.next), strict=True)
        return [(average_normalised(p.weight, n.weight), average(p.bias, n.bias)) for p, n in pairs]

    def _mlps(self, block: nn.Module) -> tuple[nn.Linear, ...]:
        return _mlp(block) if self.mlp_fusion else ()

    @torch.no_grad()
    def fuse(self) -> StaticLayer:
        static = StaticLayer(self._static_projection())
        if self.mlp_fusion:
            fc1, fc2 = (static_linear(*pair) for pair in self.mlp_weights())
            static.append(Residual(nn.Sequential(static_layer_norm(self.prev.ln2), fc1, nn.GELU(), fc2)))
        return static


class ScalarEncoderLayer(ComputingEncoderLayer):
    """``X + X W^T + b``, both mixed from the neighbours' projections by two scalars (Eq. 19-21, Eq. 50)."""

    def __init__(self, removed: nn.Module, **kwargs) -> None:
        super().__init__(removed, **kwargs)
        # One element, not none: sharded training refuses parameters without an axis.
        self.alpha = nn.Parameter(removed.attn.proj.weight.new_empty(1))
        self.beta = nn.Parameter(removed.attn.proj.weight.new_empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Both scalars to 1/2: the sources are not normalised, so the mix starts as their mean."""
        nn.init.constant_(self.alpha, 0.5)
        nn.init.constant_(self.beta, 0.5)

    def weight(self) -> Tensor:
        return mix(self.alpha, self.prev.attn.proj.weight, self.beta, self.next.attn.proj.weight)

    def bias(self) -> Tensor:
        return mix(self.alpha, self.prev.attn.proj.bias, self.beta, self.next.attn.proj.bias)

    def _projection(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(x, weight, bias)

    def _static_projection(self) -> nn.Module:
        # Nothing stands between the tokens and the projection, so it takes in the residual too: (W + I) X.
        weight = self.weight()
        return static_linear(weight + torch.eye(weight.size(0)).to(weight), self.bias())


class HeadwiseEncoderLayer(ComputingEncoderLayer):
    """``X + D^(-1/2) LN(X) W^T + b``, W mixed from normalised projections head by head (Eq. 22-24, Eq. 51).

    The LN is the left neighbour's first one, read through a stop-gradient; the bias is the neighbours' mean and is
    not scaled.
    """

    def __init__(self, removed: nn.Module, **kwargs) -> None:
        super().__init__(removed, **kwargs)
        self.alpha = nn.Parameter(removed.attn.proj.weight.new_empty(removed.attn.num_heads))
        self.beta = nn.Parameter(removed.attn.proj.weight.new_empty(removed.attn.num_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """All coefficients to 1: the sources are normalised."""
        nn.init.ones_(self.alpha)
        nn.init.ones_(self.beta)

    def weight(self) -> Tensor:
        prev, next = self.prev.attn.proj.weight, self.next.attn.proj.weight
        # The factor goes into the coefficients: they are few, the tokens are many.
        scale = prev.size(1) ** -0.5
        return mix_heads(self.alpha * scale, prev, self.beta * scale, next)

    def bias(self) -> Tensor:
        return average(self.prev.attn.proj.bias, self.next.attn.proj.bias)

    def _projection(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(_frozen_norm(self.prev.ln1)(x), weight, bias)

    def _static_projection(self) -> nn.Module:
        return Residual(nn.Sequential(static_layer_norm(self.prev.ln1), static_linear(self.weight(), self.bias())))


def _mlp(block: nn.Module) -> tuple[nn.Linear, nn.Linear]:
    """The two linear layers of an encoder layer's MLP."""
    linears = [module for module in block.ffn.modules() if isinstance(module, nn.Linear)]
    if len(linears) != 2 or type(block.ffn).__name__ != 'FFN':
        raise ValueError(
            f'mlp_fusion needs an MLP of two linear layers, got {type(block.ffn).__name__} with {len(linears)}: '
            'leave mlp_fusion out'
        )
    return linears[0], linears[1]


def _frozen_norm(norm: nn.LayerNorm) -> Callable[[Tensor], Tensor]:
    """A borrowed layer norm as it is now, its parameters read through a stop-gradient."""
    weight, bias = norm.weight.detach(), norm.bias.detach()
    return lambda x: F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)
