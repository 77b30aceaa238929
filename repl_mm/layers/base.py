"""What all computing layers share, and how each of them describes itself as a form.

A form is what a config calls a kind of computing layer, such as ``'channelwise'``. All that other modules must know of
one stands in its class: which blocks it takes the place of, its options, its coefficients, what it costs. ``FORMS`` of
:mod:`repl_mm.layers` is the table.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from repl_mm.layers.cost import Cost
from repl_mm.layers.fit import Fit
from repl_mm.layers.parts import READERS, Parts, owner_of_forward, read


@dataclass(frozen=True)
class Option:
    """An option of a form.

    Attributes:
        default: Its value unless one is given.
        allowed: What is allowed, for messages.
        check: Whether a value is.
        is_structural: Whether it changes what the network computes, not only how it is trained.
    """

    default: Any
    allowed: str
    check: Callable[[Any], bool]
    is_structural: bool = False


def flag(default: bool = False, *, is_structural: bool = False) -> Option:
    """An option that is on or off, and off by default."""
    return Option(default, 'True or False', lambda value: isinstance(value, bool), is_structural)


def one_of(*allowed: str) -> Option:
    """A structural option that is one of several words, the first by default."""
    words = ', '.join(map(repr, allowed))
    return Option(allowed[0], f'one of {words}', lambda value: isinstance(value, str) and value in allowed, True)


class ComputingLayer(nn.Module):
    """A light layer whose weights are synthesised from its two neighbours at every pass (Eq. 5-6).

    It owns its coefficients and its norm only. The neighbours are kept in a plain tuple, so that they are not
    registered as children: every parameter keeps one owner, one key and one gradient. Copying or
    pickling the whole network keeps the links; :func:`repl_mm.surgery.check_links` finds broken ones.

    Args:
        removed: The block whose place is taken; it gives geometry, shapes and the activation.
        prev: The retained block on the left.
        next: The retained block on the right.
        zero_init_residual: Start with the branch switched off, where a norm can do that.
        **options: Those of the form.

    Attributes:
        form: What a config calls it.
        kinds: What the blocks that it can take the place of lend.
        options_of_form: Its options by name.
        coefficients: Its coefficients by name, with their initial values: of a class all that it may have, of a layer
            those that its options leave.
        variants: Sets of options that the planner may try, the papers' own first.
    """

    form: ClassVar[str]
    kinds: ClassVar[tuple[type[Parts], ...]]
    options_of_form: ClassVar[Mapping[str, Option]] = {}
    coefficients: Mapping[str, float] = {}
    variants: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)

    def __init__(
        self,
        removed: nn.Module,
        *,
        prev: nn.Module,
        next: nn.Module,
        zero_init_residual: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        self.neighbours = (prev, next)
        self.zero_init_residual = zero_init_residual
        self.options = {name: option.default for name, option in self.options_of_form.items()} | options
        reason = self.refusal(*map(read, (removed, prev, next)), **self.options)
        if reason is not None:
            raise ValueError(f'{type(removed).__name__} cannot be replaced: {reason}')
        # Found once: the compiler of torch 2.6 cannot follow how.
        self._kinds = owner_of_forward(prev), owner_of_forward(next)

    @property
    def prev(self) -> nn.Module:
        """The retained block on the left."""
        return self.neighbours[0]

    @property
    def next(self) -> nn.Module:
        """The retained block on the right."""
        return self.neighbours[1]

    @property
    def parts(self) -> tuple[Any, Any]:
        """What the neighbours lend now."""
        (prev, next), (kind_of_prev, kind_of_next) = self.neighbours, self._kinds
        return READERS[kind_of_prev](prev), READERS[kind_of_next](next)

    @property
    def norms(self) -> list[nn.Module]:
        """Its norms with running statistics."""
        return [module for module in self.modules() if getattr(module, 'running_mean', None) is not None]

    @classmethod
    def stands_for(cls, parts: Parts) -> bool:
        """Whether blocks of such parts can be replaced by this layer, shapes aside."""
        return isinstance(parts, cls.kinds)

    @classmethod
    def conflict(cls, **given: Any) -> str | None:
        """The reason why the given options of the form contradict each other, or None."""
        return None

    @classmethod
    def refusal(cls, removed: Parts, prev: Parts, next: Parts, **options: Any) -> str | None:
        """The reason why a block between two others cannot be replaced, or None where it can."""
        raise NotImplementedError

    def _make_coefficients(self, like: Tensor, size: int) -> None:
        """Register the coefficients, (size,) each; not scalars, as sharded training refuses those."""
        for name in self.coefficients:
            self.register_parameter(name, nn.Parameter(like.new_empty(size)))

    def reset_parameters(self) -> None:
        """Give the layer's own parameters their initial values."""
        for name, value in self.coefficients.items():
            nn.init.constant_(getattr(self, name), value)

    def fuse(self) -> nn.Module:
        """What the layer is in eval mode as an ordinary operator with weights of its own (Eq. 32-33).

        timm's re-parameterisation tool calls it by this name.
        """
        raise NotImplementedError

    def fit(self) -> Fit | None:
        """How a warm start fits it to the block whose place it takes; None where there is nothing to fit."""
        return None

    def cost(self, shape: torch.Size) -> Cost:
        """What it costs in training; ``shape`` is that of the input of a batch."""
        raise NotImplementedError

    def static_cost(self, shape: torch.Size) -> Cost:
        """What it costs when it is deployed, were it trained so."""
        raise NotImplementedError

    def costs(self, shape: torch.Size, removed: Cost) -> tuple[Cost, Cost]:
        """Both of them; ``removed`` is what the removed block costs, for layers that compute what it did."""
        return self.cost(shape), self.static_cost(shape)


class MixingLayer(ComputingLayer):
    """A computing layer whose coefficients weigh the neighbours' weights, with the papers' variants as options.

    ``neighbours`` are those that are mixed: with ``'prev'`` or ``'next'`` the other one's term is gone, and so is its
    coefficient (Table VII). With ``coefficients='one'`` both terms share alpha (Table XVI). With
    ``stop_gradient=False`` the neighbours get gradients through the layer, which Eq. 30 cuts off. None of them changes
    which positions can be replaced.
    """

    options_of_form: ClassVar[Mapping[str, Option]] = {
        'neighbours': one_of('both', 'prev', 'next'),
        'coefficients': one_of('two', 'one'),
        'stop_gradient': flag(True),
    }

    def __init__(self, removed: nn.Module, **kwargs: Any) -> None:
        super().__init__(removed, **kwargs)
        names = self._coefficient_names()
        self.coefficients = {name: value for name, value in type(self).coefficients.items() if name in names}

    @classmethod
    def conflict(cls, **given: Any) -> str | None:
        neighbours = given.get('neighbours', 'both')
        if neighbours != 'both' and given.get('coefficients', 'two') == 'one':
            return f"neighbours={neighbours!r} has a single coefficient as it is: leave coefficients='one' out"
        return None

    def _coefficient_names(self) -> tuple[str, ...]:
        if self.options['coefficients'] == 'one':
            return ('alpha',)
        return {'both': ('alpha', 'beta'), 'prev': ('alpha',), 'next': ('beta',)}[self.options['neighbours']]

    def _terms(self, prev: Any, next: Any) -> tuple[Any, Any, Any, Any]:
        """The coefficients, each before what it multiplies; None for a neighbour that is left out."""
        if self.options['coefficients'] == 'one':
            return self.alpha, prev, self.alpha, next
        alpha, beta = (getattr(self, name, None) for name in ('alpha', 'beta'))
        return alpha, None if alpha is None else prev, beta, None if beta is None else next

    def _asked(self, prev: Any, next: Any) -> tuple[Any, ...]:
        """Out of what both neighbours have, that of those that are mixed."""
        return {'both': (prev, next), 'prev': (prev,), 'next': (next,)}[self.options['neighbours']]

    def columns(self, prev: Tensor, next: Tensor) -> list[Tensor]:
        """What each coefficient weighs, in their order, given what it is of each neighbour."""
        asked = self._asked(prev, next)
        return [sum(asked)] if self.options['coefficients'] == 'one' else list(asked)

    def _lent(self, parameter: Tensor) -> Tensor:
        """A neighbour's parameter that is used as it is."""
        return parameter.detach() if self.options['stop_gradient'] else parameter


def shape_refusal(what: str, given: Tensor, needed: Tensor) -> str | None:
    """The reason why a lent weight cannot stand in for a removed one, or None."""
    if given.shape == needed.shape:
        return None
    return f'{what} has shape {tuple(given.shape)} where {tuple(needed.shape)} is needed'
