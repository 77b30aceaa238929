"""Which numbers of a network, or of a checkpoint, are NaN or infinite."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from repl_mm.compat import total_norm


def _own(tensor: Tensor) -> Tensor:
    """The numbers that a tensor has in this process: of a sharded one its shard, of a sparse one the given ones."""
    tensor = tensor.to_local() if hasattr(tensor, 'to_local') else tensor  # a DTensor
    return tensor._values() if tensor.layout is torch.sparse_coo else tensor


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor, or what this process has of it, holds neither NaN nor infinity."""
    own = _own(tensor.detach())
    own = own.float() if own.is_floating_point() and own.itemsize == 1 else own  # float8 has no comparisons
    return bool(own.isfinite().all())


def first_gradient_not_finite(parameters: Mapping[str, nn.Parameter]) -> str | None:
    """The first of named parameters with a gradient that is not finite in this process; None where there is none.

    All gradients are finite where their norm is, which takes four operators and one wait for the device.
    """
    named = [(name, p.grad) for name, p in parameters.items() if p.grad is not None]
    if math.isfinite(total_norm([_own(gradient) for _, gradient in named])):
        return None
    # Finite numbers may have a norm beyond the largest number.
    return next((name for name, gradient in named if not is_finite(gradient)), None)


def tensors_not_finite(content: Any, path: str = '') -> Iterator[str]:
    """The places of a checkpoint, or of a part of one, whose tensors hold NaN or infinite values."""
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(content, Tensor):
        if not is_finite(content):
            yield path
    elif isinstance(content, Mapping):
        items = content.items()
    elif isinstance(content, Sequence) and not isinstance(content, str | bytes):
        items = enumerate(content)
    for key, value in items:
        yield from tensors_not_finite(value, f'{path}.{key}' if path else str(key))
