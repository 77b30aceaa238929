"""Checkpoint files: read without running what they hold.

A pickle can run any code when it is read. After :func:`restrict_loading` mmengine reads files and downloads by torch's
restricted unpickler, with a list of what its own checkpoints hold besides tensors; and it reads ``.safetensors``, which
can hold nothing else. torch's variable ``TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1`` (the tools' ``--trust``) lifts the
restriction.
"""

import _codecs
import errno
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import mmengine.runner.checkpoint
import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.runner.checkpoint import CheckpointLoader
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from repl_mm.compat import safe_globals
from repl_mm.engine.files import require_regular
from repl_mm.engine.lookup import Guarded


def _method(owner: type, name: str) -> Any:
    """Stands in for ``getattr``, by which pickle names the methods that mmengine's objects refer to."""
    if owner in (HistoryBuffer, OneCycleParamScheduler) and name in vars(owner) and not name.startswith('__'):
        return getattr(owner, name)
    raise UnpicklingError(f'Unsupported global: GLOBAL {getattr(owner, "__name__", owner)}.{name}')


def _called(function: Callable[..., Any], module: str, name: str) -> Callable[..., Any]:
    """A function under the name by which files ask for it."""

    def called(*args: Any) -> Any:
        return function(*args)

    called.__module__, called.__name__, called.__qualname__ = module, name, name
    return called


# The latter before NumPy 2.
_multiarray = getattr(np._core, 'multiarray', None) or np.core.multiarray  # type: ignore[attr-defined]
# What mmengine's checkpoints hold besides tensors. Its own list, where it has one, lets getattr through, by which a
# file could reach any function.
SAFE_GLOBALS = [
    slice,
    np.ndarray,
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.uint32, np.int64, np.float64)),
    _codecs.encode,
    HistoryBuffer,
    OneCycleParamScheduler,
    _called(_method, 'builtins', 'getattr'),
    *(
        _called(getattr(_multiarray, name), f'numpy.{core}.multiarray', name)
        for core in ('core', '_core')
        for name in ('scalar', '_reconstruct')
    ),
]


# What torch says of a name that it does not let through.
REFUSED = re.compile(r'(?:[Uu]nsupported global: GLOBAL|[Uu]nsupported GLOBAL|Unsupported class) ([\w.]+)')


@contextmanager
def restricted(source: str) -> Iterator[None]:
    """Let torch load what is on the list, and say of anything else what it is."""
    try:
        with safe_globals(SAFE_GLOBALS):
            yield
    except Exception as error:  # a damaged file may raise anything
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # which is a place before the file's beginning
            raise
        if found := REFUSED.search(str(error)):
            raise ValueError(
                f'{source} was not read, it holds {found[1]} and could run code: get it as weights alone, or, if you '
                'trust where it comes from, give --trust'
            ) from error
        raise ValueError(f'{source} is not a checkpoint or is damaged: give one that training has written') from error


def is_intact(file: str | IO[bytes]) -> bool:
    """Compare the check sums of an archive as torch writes it; torch itself does not when it reads.

    Raises:
        BadZipFile: They differ.
    """
    if zipfile.is_zipfile(file):  # before torch 1.6 files had another form, without check sums
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f'bad check sum of {damaged}')
    return True


def _load(file: str | IO[bytes], map_location: Any = None, weights_only: None = None) -> Mapping[str, Any]:
    with restricted(str(file)):
        is_intact(file)
        if not isinstance(file, str):
            file.seek(0)
        # Said, as torch before 2.6 unpickles anything by default.
        return torch.load(file, map_location=map_location, weights_only=not is_trusted())


def _load_url(url: str, **kwargs: Any) -> Mapping[str, Any]:
    with restricted(url):
        return torch.hub.load_state_dict_from_url(url, weights_only=not is_trusted(), **kwargs)


def is_trusted() -> bool:
    """Whether files may run what they hold, as ``--trust`` says."""
    return os.environ.get('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD') in ('1', 'y', 'yes', 'true')


def restrict_loading() -> None:
    """Let all of mmengine's loading go through this module."""
    # All of mmengine's loaders but the local one end in one of these two; before the first had a name, in torch's own.
    if hasattr(mmengine.runner.checkpoint, '_safe_torch_load'):
        mmengine.runner.checkpoint._safe_torch_load = _load
    else:
        mmengine.runner.checkpoint.torch = Guarded(torch, load=_load)
    mmengine.runner.checkpoint.load_url = _load_url
    CheckpointLoader.register_scheme(prefixes='', loader=load_local, force=True)


def load_local(filename: str, map_location: Any = None) -> Mapping[str, Any]:
    """Read a checkpoint from a local file.

    Args:
        filename: A ``.safetensors`` file, or one that torch has written.
        map_location: Where the tensors go, as for ``torch.load``.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a checkpoint, or one that holds more than weights and what mmengine adds to them.
    """
    path = Path(filename).expanduser()
    require_regular(path)
    if not path.is_file():
        raise FileNotFoundError(f'there is no file {filename}')
    if path.suffix != '.safetensors':
        return _load(str(path), map_location)
    with restricted(filename), safe_open(path, framework='pt', device='cpu') as file:
        metadata = file.metadata() or {}
        state_dict = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dict)
        meta = metadata.get('meta', '{}')
        if metadata.get('sha256', own := _digest(state_dict, meta)) != own:  # files of others have none
            raise ValueError('bad check sum')
        state_dict = {key: value.to(map_location or 'cpu') for key, value in state_dict.items()}
        return {'state_dict': state_dict, 'meta': json.loads(meta)}


def as_safetensors(state_dict: Mapping[str, Tensor], *, meta: Mapping[str, Any]) -> bytes:
    """The content of a ``.safetensors`` file; ``meta`` is kept as JSON, beside a check sum of all that it holds."""
    # Shared tensors, such as convolutions that several levels of a head use, are written once for each key.
    tensors = {key: value.detach().cpu().clone().contiguous() for key, value in state_dict.items()}
    text = json.dumps(meta)
    return save(tensors, metadata={'meta': text, 'sha256': _digest(tensors, text)})


def _digest(tensors: Mapping[str, Tensor], meta: str) -> str:
    digest = sha256(meta.encode())
    for key in sorted(tensors):
        value = tensors[key]
        digest.update(f'{key} {value.dtype} {tuple(value.shape)}'.encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
