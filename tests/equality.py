"""Whether two checkpoints hold the same."""

from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer


def same(one: Any, other: Any) -> bool:
    """Whether two values of checkpoints are equal, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, HistoryBuffer):
        return all(map(np.array_equal, one.data, other.data))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other
