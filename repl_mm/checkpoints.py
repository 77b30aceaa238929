"""Checkpoint files: read without running what they hold.

A pickle can run any code when it is read. From here on mmengine reads local files by torch's restricted unpickler, with
a list of what its own checkpoints hold besides tensors; and it reads ``.safetensors``, which can hold nothing else.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.runner.checkpoint import CheckpointLoader, get_torch_safe_globals
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor


def _method(owner: type, name: str) -> Any:
    """Stands in for ``getattr``, by which pickle names the methods that mmengine's objects refer to."""
    if owner in (HistoryBuffer, OneCycleParamScheduler) and name in vars(owner) and not name.startswith('__'):
        return getattr(owner, name)
    raise UnpicklingError(f'Unsupported global: GLOBAL {getattr(owner, "__name__", owner)}.{name}')


# mmengine's list lets getattr through, by which a file could reach any function.
SAFE_GLOBALS = [
    *(item for item in get_torch_safe_globals() if item is not getattr),
    OneCycleParamScheduler,
    (_method, 'builtins.getattr'),
    # The names before NumPy 2.
    (np._core.multiarray.scalar, 'numpy.core.multiarray.scalar'),
    (np._core.multiarray._reconstruct, 'numpy.core.multiarray._reconstruct'),
]


@CheckpointLoader.register_scheme(prefixes='', force=True)
def load_local(filename: str, map_location: Any = None) -> Mapping[str, Any]:
    """Read a checkpoint from a local file.

    torch's variable ``TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1`` (the tools' ``--trust``) lifts the restriction.

    Args:
        filename: A ``.safetensors`` file, or one that torch has written.
        map_location: Where the tensors go, as for ``torch.load``.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a checkpoint, or one that holds more than weights and what mmengine adds to them.
    """
    path = Path(filename).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'there is no file {filename}')
    try:
        if path.suffix == '.safetensors':
            with safe_open(path, framework='pt', device=str(map_location or 'cpu')) as file:
                metadata = file.metadata() or {}
                state_dict = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dict)
            return {'state_dict': state_dict, 'meta': json.loads(metadata.get('meta', '{}'))}
        with torch.serialization.safe_globals(SAFE_GLOBALS):
            return torch.load(path, map_location=map_location)
    except OSError:
        raise
    except Exception as error:  # a damaged file may raise anything
        if found := re.search(r'Unsupported (?:global: GLOBAL|class) ([\w.]+)', str(error)):
            raise ValueError(
                f'{filename} was not read, it holds {found[1]} and could run code: get it as weights alone, or, if you '
                'trust where it comes from, give --trust'
            ) from error
        raise ValueError(
            f'{filename} is not a checkpoint or is damaged: give a file that training has written'
        ) from error


def as_safetensors(state_dict: Mapping[str, Tensor], *, meta: Mapping[str, Any]) -> bytes:
    """The content of a ``.safetensors`` file; ``meta`` is kept as JSON."""
    # Shared tensors, such as convolutions that several levels of a head use, are written once for each key.
    tensors = {key: value.detach().cpu().clone().contiguous() for key, value in state_dict.items()}
    return save(tensors, metadata={'meta': json.dumps(meta)})
