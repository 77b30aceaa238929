"""Computing layers of transformers: plain, windowed and causal ones alike, as they see each token by itself.

Shapes:
    X      (..., D)  tokens
    H, d   attention heads, and channels of one head: D = H d
    F      hidden width of the MLP
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repl_mm.layers.base import MixingLayer, Option, flag, shape_refusal
from repl_mm.layers.cost import Cost, layer_cost, recomputed
from repl_mm.layers.fit import AffineFit, Fit, ProjectionFit
from repl_mm.layers.memory import recompute_between
from repl_mm.layers.parts import Activation, TransformerParts, as_module, owner_of_forward, read
from repl_mm.layers.static import Residual, StaticAffine, StaticLayer, static_layer_norm, static_linear
from repl_mm.synthesis import average, average_normalised, mix, mix_heads, row_norm

# timm's chooses between two kernels of the same.
LAYER_NORMS = ('torch.nn.modules.normalization.LayerNorm', 'timm.layers.norm.LayerNorm')


def _options(sources: tuple[str, ...]) -> dict[str, Option]:
    words = ', '.join(map(repr, sources))
    return {
        'mlp_fusion': flag(is_structural=True),
        'recompute': flag(),
        # None is what ``mlp_fusion`` says.
        'sources': Option(None, f'one of {words}', lambda value: isinstance(value, str) and value in sources, True),
        **MixingLayer.options_of_form,
    }


def _sources(options: Mapping[str, Any]) -> str:
    return options.get('sources') or ('both' if options.get('mlp_fusion') else 'attention')


def _spelt(options: Mapping[str, Any]) -> str:
    """The option that asks for an MLP, as it was given."""
    return f'sources={options["sources"]!r}' if options.get('sources') else 'mlp_fusion'


class _TransformerLayer(MixingLayer):
    """A token-wise residual projection in place of a pre-norm transformer block (Eq. 19-27).

    Options: ``sources`` are the weights that are borrowed (Table VI): the ``'attention'`` projection; ``'both'``, which
    lets an MLP follow whose weights are the mean of the neighbours' normalised ones and which has no parameters of its
    own (Eq. 25-27); that ``'mlp'`` alone; ``'none'``, see :class:`ScalarTransformerLayer`. ``mlp_fusion=True`` is the
    older spelling of ``'both'``. ``recompute`` computes the input of the MLP's activation twice instead of keeping it
    for the backward pass.
    """

    kinds = (TransformerParts,)
    # Without an MLP it is another network than the papers' headline rows have.
    variants = (dict(mlp_fusion=True), dict(mlp_fusion=True, recompute=True), {})
    norms_projection: ClassVar[bool]  # whether the projection reads the left neighbour's first norm

    def __init__(self, removed: nn.Module, **kwargs: Any) -> None:
        super().__init__(removed, **kwargs)
        parts: Any = read(removed)
        self.activation = _out_of_place(parts.activation)
        self._make_coefficients(parts.proj.weight, self._number(parts))
        self.reset_parameters()

    def _number(self, parts: TransformerParts) -> int:
        """How many coefficients there are for each neighbour."""
        raise NotImplementedError

    @classmethod
    def conflict(cls, **given: Any) -> str | None:
        sources, fusion = given.get('sources'), given.get('mlp_fusion')
        if sources is not None and fusion is not None and fusion != (sources == 'both'):
            return f"sources={sources!r} and mlp_fusion={fusion} disagree: give 'sources' alone"
        idle = {'mlp': {'coefficients'}, 'none': {'coefficients', 'neighbours'}}.get(sources, set()) & set(given)
        if idle:
            return f'sources={sources!r} has no {" and no ".join(sorted(idle))} to choose: leave that out'
        return super().conflict(**given)

    @property
    def sources(self) -> str:
        """Which weights are borrowed."""
        return _sources(self.options)

    def _coefficient_names(self) -> tuple[str, ...]:
        without_projection = {'mlp': (), 'none': ('gamma', 'delta')}
        return without_projection.get(self.sources, super()._coefficient_names())

    @classmethod
    def refusal(
        cls, removed: TransformerParts, prev: TransformerParts, next: TransformerParts, **options: Any
    ) -> str | None:
        sources = _sources(options)
        fusion = sources in ('both', 'mlp')
        if removed.proj.in_features != removed.proj.out_features:
            return 'its attention is of another width than its tokens'
        if not all(map(cls.stands_for, (prev, next))):
            return 'its neighbours are blocks of another kind'
        if fusion and any(parts.mlp is None for parts in (removed, prev, next)):
            return f'{_spelt(options)} needs MLPs of two linear layers: leave it out'
        if fusion and any(True for _ in _parameters(removed.activation)):
            return f'{_spelt(options)} needs an activation without parameters: leave it out'
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
        if self.sources == 'none':
            return torch.addcmul(self.delta, x, 1 + self.gamma)
        # Not in place: under autocast the branches are in half precision and the tokens are not.
        if self.sources != 'mlp':
            x = x + self._projection(x)
        return x + self._mlp(x) if self._has_mlp else x

    @property
    def _has_mlp(self) -> bool:
        return self.sources in ('both', 'mlp')

    def _projection(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _mlp(self, x: Tensor) -> Tensor:
        normalise = self._borrowed_norm(self.parts[0].norm2)
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

    def fit(self) -> Fit | None:
        if self.sources == 'mlp':
            return None
        return AffineFit(self) if self.sources == 'none' else ProjectionFit(self)

    def mlp_weights(self) -> list[tuple[Tensor, Tensor | None]]:
        """Weight and bias of both linear layers of the MLP, shapes (F, D), (F,), (D, F), (D,)."""
        prev, next = self.parts
        return [
            (average_normalised(*self._asked(p.weight, n.weight), stop_gradient=self._stops), self._average_bias(p, n))
            for p, n in zip(prev.mlp, next.mlp, strict=True)
        ]

    @property
    def _stops(self) -> bool:
        return self.options['stop_gradient']

    def _average_bias(self, prev: nn.Linear, next: nn.Linear) -> Tensor | None:
        if prev.bias is None:
            return None
        return average(*self._asked(prev.bias, next.bias), stop_gradient=self._stops)

    def _borrowed_norm(self, norm: nn.LayerNorm) -> Callable[[Tensor], Tensor]:
        """A borrowed layer norm as it is now."""
        weight, bias = (None if p is None else self._lent(p) for p in (norm.weight, norm.bias))
        return lambda x: F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)

    @torch.no_grad()
    def fuse(self) -> StaticLayer:
        if self.sources == 'none':
            return StaticLayer(StaticAffine(1 + self.gamma, self.delta))
        static = StaticLayer() if self.sources == 'mlp' else StaticLayer(self._static_projection())
        if self._has_mlp:
            fc1, fc2 = (static_linear(*pair) for pair in self.mlp_weights())
            norm, activation = static_layer_norm(self.parts[0].norm2), copy.deepcopy(self.activation)
            static.append(Residual(nn.Sequential(norm, fc1, activation, fc2)))
        return static

    def _static_projection(self) -> nn.Module:
        raise NotImplementedError

    def _sizes(self, shape: torch.Size) -> tuple[int, int, int, int]:
        """Tokens of an image, their width, the MLP's hidden width, and parameters of one layer norm."""
        width, prev = shape[-1], self.parts[0]
        hidden = prev.mlp[0].out_features if self._has_mlp else 0
        return shape[1:-1].numel(), width, hidden, sum(p.numel() for p in prev.norm1.parameters())

    def cost(self, shape: torch.Size) -> Cost:
        tokens, width, hidden, _ = self._sizes(shape)
        # A projection after a norm keeps the norm's output as well, and its statistics.
        normed = self.norms_projection * tokens * (width + 2)
        own = sum(p.numel() for p in self.parameters())
        projects = self.sources not in ('mlp', 'none')
        cost = layer_cost(own, projects * 2 * tokens * width**2, kept=tokens * width + normed)
        if self._has_mlp:
            mlp = 4 * tokens * width * hidden
            # All weights are borrowed: no gradients, and no inputs kept but those of the norm and of the activation.
            kept = tokens * (projects * width + hidden + 2) + (not self._stops) * tokens * (width + hidden)
            cost += layer_cost(0, mlp, frozen=self._stops * mlp, kept=kept)
            if self.options['recompute']:
                cost += recomputed(mlp // 2, tokens * hidden)
        return cost

    def static_cost(self, shape: torch.Size) -> Cost:
        tokens, width, hidden, norm = self._sizes(shape)
        prev = self.parts[0]
        if self.sources == 'none':
            return layer_cost(2 * width, 0, kept=tokens * width)
        normed = self.norms_projection * tokens * (width + 2)
        projects = self.sources != 'mlp'
        own = projects * _numbers(prev.proj) + self.norms_projection * norm
        cost = layer_cost(own, projects * 2 * tokens * width**2, kept=tokens * width + normed)
        if self._has_mlp:
            own = sum(map(_numbers, prev.mlp)) + norm
            kept = tokens * ((1 + projects) * width + 2 * hidden + 2)
            cost += layer_cost(own, 4 * tokens * width * hidden, kept=kept)
        return cost


class ScalarTransformerLayer(_TransformerLayer):
    """``X + X W^T + b``, both mixed from the neighbours' projections by two scalars (Eq. 19-21, Eq. 50).

    With ``sources='none'`` it reads no neighbour: ``X + gamma X + delta``, both per channel and 0 at the start.
    """

    form = 'scalar'
    # The sources are not normalised: the mix starts as their mean.
    coefficients = {'alpha': 0.5, 'beta': 0.5, 'gamma': 0.0, 'delta': 0.0}
    norms_projection = False
    options_of_form = _options(('attention', 'both', 'mlp', 'none'))

    def _number(self, parts: TransformerParts) -> int:
        return parts.proj.out_features if self.sources == 'none' else 1

    def weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        prev, next = (
            (parts.proj.weight, *([] if parts.proj.bias is None else [parts.proj.bias])) for parts in self.parts
        )
        weight, *bias = mix(*self._terms(prev, next), stop_gradient=self._stops)
        return weight, bias[0] if bias else None

    def _projection(self, x: Tensor) -> Tensor:
        return F.linear(x, *self.weight_and_bias())

    def projected(self, x: Tensor) -> list[Tensor]:
        """What each coefficient weighs at tokens (T, D), the same shape."""
        return self.columns(*(F.linear(x, parts.proj.weight, parts.proj.bias) for parts in self.parts))

    def grouped(self, weight: Tensor, *, borrowed: bool) -> Tensor:
        """A projection as rows of numbers that share a coefficient."""
        return weight.reshape(1, -1)

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
    coefficients = {'alpha': 1.0, 'beta': 1.0}
    norms_projection = True
    options_of_form = _options(('attention', 'both'))

    @classmethod
    def refusal(
        cls, removed: TransformerParts, prev: TransformerParts, next: TransformerParts, **options: Any
    ) -> str | None:
        heads, width = removed.num_heads, removed.proj.in_features
        if not isinstance(heads, int) or heads < 1 or width % heads:
            return f'{heads!r} heads do not divide its width {width}'
        return super().refusal(removed, prev, next, **options)

    def _number(self, parts: TransformerParts) -> int:
        return parts.num_heads

    def weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        prev, next = (parts.proj for parts in self.parts)
        # The factor goes into the coefficients: they are few, the tokens are many.
        scale = prev.in_features**-0.5
        alpha, left, beta, right = self._terms(prev.weight, next.weight)
        alpha, beta = (None if coefficients is None else coefficients * scale for coefficients in (alpha, beta))
        weight = mix_heads(alpha, left, beta, right, stop_gradient=self._stops)
        return weight, self._average_bias(prev, next)

    def _projection(self, x: Tensor) -> Tensor:
        return F.linear(self._borrowed_norm(self.parts[0].norm1)(x), *self.weight_and_bias())

    def projected(self, x: Tensor) -> list[Tensor]:
        """What each coefficient weighs at tokens (T, D), the same shape; one neighbour's heads, then the other's."""
        x = self._borrowed_norm(self.parts[0].norm1)(x)
        number = self.parts[0].num_heads
        heads = (  # (H, T, D) of each neighbour
            torch.einsum(
                'thd,hcd->htc',
                x.unflatten(-1, (number, -1)),
                self.grouped(w, borrowed=True).view(number, x.size(-1), -1),
            )
            for w in (parts.proj.weight for parts in self.parts)
        )
        return [head for neighbour in self.columns(*heads) for head in neighbour]

    def grouped(self, weight: Tensor, *, borrowed: bool) -> Tensor:
        """A projection as rows of numbers that share a coefficient, a row for each head."""
        if borrowed:
            weight = weight / row_norm(weight) * weight.size(1) ** -0.5
        return weight.unflatten(1, (self.parts[0].num_heads, -1)).transpose(0, 1).flatten(1)

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


def _numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
