"""How many operators torch dispatches: what a GPU that waits for launches spends its time on."""

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


def is_launched(operator: Any) -> bool:
    """Whether an operator launches something, by its schema: views, allocations and questions (``prim``) do not."""
    schema = operator._schema
    is_view = any(a.alias_info is not None and not a.alias_info.is_write for a in schema.arguments)
    return not is_view and 'empty' not in schema.name and not schema.name.startswith('prim::')


class OperatorCounter(TorchDispatchMode):
    """Counts what is launched inside of it, the backward pass too, by name.

    Attributes:
        counts: Number of calls of each operator.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if is_launched(func):
            self.counts[func._schema.name.removeprefix('aten::')] += 1
        return func(*args, **(kwargs or {}))
