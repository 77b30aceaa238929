"""What all computing layers share."""

from typing import Any, Self

import torch
from torch import Tensor, nn

from repl_mm.layers.static import StaticLayer


class ComputingLayer(nn.Module):
    """A light layer whose weights are synthesised from its two neighbours at every step (Eq. 5-6).

    It owns its coefficients and its norm only. The neighbours are kept in a plain tuple, so that they are not
    registered as children: every parameter keeps one owner, one key and one gradient. Copying or
    pickling the whole network keeps the links; :func:`repl_mm.surgery.check_links` finds broken ones.

    Args:
        prev: The retained block on the left.
        next: The retained block on the right.
    """

    def __init__(self, prev: nn.Module, next: nn.Module) -> None:
        super().__init__()
        self.neighbours = (prev, next)
        self._synthesised: tuple[tuple[Tensor, ...], list[Any], tuple[Tensor, ...]] | None = None

    @property
    def prev(self) -> nn.Module:
        """The retained block on the left."""
        return self.neighbours[0]

    @property
    def next(self) -> nn.Module:
        """The retained block on the right."""
        return self.neighbours[1]

    def reset_parameters(self) -> None:
        """Give the layer's own parameters their initial values."""
        raise NotImplementedError

    def sources(self) -> tuple[Tensor, ...]:
        """All tensors that :meth:`synthesise` reads."""
        raise NotImplementedError

    def synthesise(self) -> tuple[Tensor, ...]:
        """All tensors that the layer computes from weights alone."""
        raise NotImplementedError

    def synthesised(self) -> tuple[Tensor, ...]:
        """What :meth:`synthesise` returns; in eval mode without gradients, computed once until a source changes."""
        if not self._may_reuse():
            self.forget()
            return self.synthesise()
        sources = self.sources()
        # Under autocast a weight may come out in another precision.
        state = [torch.is_autocast_enabled(sources[0].device.type)]
        state += [(source.data_ptr(), source._version) for source in sources]
        if self._synthesised is None or self._synthesised[1] != state:
            # The detached sources keep their memory from being given to other tensors, and count versions along.
            self._synthesised = (tuple(source.detach() for source in sources), state, self.synthesise())
        return self._synthesised[2]

    def _may_reuse(self) -> bool:
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return False
        # Other kinds of tensors (fake, sharded, of inference mode) have no address or no version to go by.
        return all(
            type(source) in (Tensor, nn.Parameter) and not source.is_meta and not source.is_inference()
            for source in self.sources()
        )

    def forget(self) -> None:
        """Have the next pass synthesise anew."""
        self._synthesised = None

    def train(self, mode: bool = True) -> Self:
        # Averaged models are exchanged through ``.data``, which counts no version, and then set to eval mode.
        self.forget()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        self.forget()
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {'_synthesised': None}

    def fuse(self) -> StaticLayer:
        """What the layer is in eval mode as an ordinary operator with weights of its own (Eq. 32-33).

        timm's re-parameterisation tool calls it by this name.
        """
        raise NotImplementedError


def require_shape(what: str, weight: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless ``weight``, described by ``what``, has the shape that the removed block had."""
    if tuple(weight.shape) != tuple(shape):
        raise ValueError(
            f'{what} has shape {tuple(weight.shape)}, but the removed block needs {tuple(shape)}: '
            'choose a site whose neighbours have the shape of the block that it replaces'
        )
