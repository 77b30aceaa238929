"""A device for machines without one: its tensors are none of the CPU's to PyTorch, and are computed there.

What a GPU refuses, it refuses: tensors of two devices in one operator, and NumPy. Whoever builds a tensor without
naming a device gets one of it, as after ``torch.set_default_device('cuda')``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

DEVICE = torch.device('privateuseone:0')
# Copies go between devices, and indices may be on the CPU.
MIXED = {torch.ops.aten.copy_, torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_}


class StandIn(torch.Tensor):
    """A tensor of the device; it holds one of the CPU."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> 'StandIn':
        return torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            layout=held.layout, device=DEVICE,
        )  # fmt: skip

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held

    def __repr__(self, **_: Any) -> str:
        return f'StandIn({self.held})'

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        copied = StandIn(self.held.detach().clone()).requires_grad_(self.requires_grad)
        memo[id(self)] = (
            torch.nn.Parameter(copied, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copied
        )
        return memo[id(self)]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return compute(func, args, kwargs or {})


def compute(func: Any, args: tuple, kwargs: dict) -> Any:
    """Run an operator on what its tensors hold.

    Raises:
        RuntimeError: Tensors of both devices; numbers, tensors without axes, are taken from either, as by CUDA.
    """
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    ours = any(isinstance(tensor, StandIn) for tensor in given)
    if ours and func.overloadpacket not in MIXED:
        for tensor in given:
            if not isinstance(tensor, StandIn) and tensor.dim():
                raise RuntimeError(f'{func}: tensors on {DEVICE} and one of {tensor.shape} on cpu')
    asked = kwargs.get('device')
    if asked is not None:
        ours = asked.type == DEVICE.type
        kwargs = {**kwargs, 'device': torch.device('cpu')}
    out = func(*tree_map(_held, args), **tree_map(_held, kwargs))
    written = _written(func, args, kwargs)
    if written:
        return written[0] if len(written) == 1 else written
    return tree_map(lambda value: StandIn(value) if ours and isinstance(value, torch.Tensor) else value, out)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, StandIn) else value


def _written(func: Any, args: tuple, kwargs: dict) -> list[torch.Tensor]:
    """The arguments that an operator writes to and returns."""
    returned = {alias for out in func._schema.returns if out.alias_info and out.alias_info.is_write
                for alias in out.alias_info.before_set}  # fmt: skip
    found = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info and argument.alias_info.is_write and argument.alias_info.before_set & returned:
            found.append(args[i] if i < len(args) else kwargs[argument.name])
    return found


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return compute(func, args, kwargs or {})


class _Default(TorchFunctionMode):
    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func == torch.Tensor.data.__set__ and isinstance(args[0], StandIn):
            args[0].held = args[1].held
        if func not in _device_constructors() or kwargs.get('device') is not None:
            return func(*args, **kwargs)
        if func in (torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy):  # not by way of an operator
            grad = kwargs.pop('requires_grad', False)
            return func(*args, **{**kwargs, 'device': 'cpu'}).to(DEVICE).requires_grad_(grad)
        return func(*args, **{**kwargs, 'device': DEVICE})


@contextmanager
def stand_in() -> Iterator[None]:
    """Everything that names no device is on the stand-in."""
    if not hasattr(torch, 'stand_in'):
        _setup_privateuseone_for_python_backend(rename='stand_in')
    with _Operators(), _Default():
        yield
