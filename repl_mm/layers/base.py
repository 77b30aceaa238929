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
from repl_mm.layers.parts import Parts, find_reader, read
from repl_mm.layers.static import StaticLayer


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


def flag(*, is_structural: bool = False) -> Option:
    """An option that is on or off, and off by default."""
    return Option(False, 'True or False', lambda value: isinstance(value, bool), is_structural)


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
        coefficients: Its coefficients by name, with their initial values.
        variants: Sets of options that the planner may try, the papers' own first.
    """

    form: ClassVar[str]
    kinds: ClassVar[tuple[type[Parts], ...]]
    options_of_form: ClassVar[Mapping[str, Option]] = {}
    coefficients: ClassVar[Mapping[str, float]] = {}
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
        # They were checked when the layer was made.
        prev, next = self.neighbours
        return find_reader(prev)(prev), find_reader(next)(next)

    @classmethod
    def stands_for(cls, parts: Parts) -> bool:
        """Whether blocks of such parts can be replaced by this layer, shapes aside."""
        return isinstance(parts, cls.kinds)

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

    def fuse(self) -> StaticLayer:
        """What the layer is in eval mode as an ordinary operator with weights of its own (Eq. 32-33).

        timm's re-parameterisation tool calls it by this name.
        """
        raise NotImplementedError

    def cost(self, shape: torch.Size) -> Cost:
        """What it costs in training; ``shape`` is that of the input of a batch."""
        raise NotImplementedError

    def static_cost(self, shape: torch.Size) -> Cost:
        """What it costs when it is deployed, were it trained so."""
        raise NotImplementedError


def shape_refusal(what: str, given: Tensor, needed: Tensor) -> str | None:
    """The reason why a lent weight cannot stand in for a removed one, or None."""
    if given.shape == needed.shape:
        return None
    return f'{what} has shape {tuple(given.shape)} where {tuple(needed.shape)} is needed'
