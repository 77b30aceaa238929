"""What the text of a config can name: classes that are registered, and what its file names itself.

mmengine's registries import any Python path that they do not know and call what they find there, some host classes
evaluate their arguments as Python, and files that arguments name are unpickled. A config file is Python anyway; options
of the command line are data, as they come from notes, job scripts and colleagues.
"""

import io
import pickle
from collections.abc import Iterator, Mapping
from functools import partial
from importlib import import_module
from types import FunctionType, ModuleType
from typing import IO, Any

import mmengine.fileio.handlers.yaml_handler
import mmengine.registry.registry
import numpy as np
import torch
import yaml
from mmengine.config import Config
from mmengine.utils import get_object_from_string

SCOPES = ('mmengine', 'mmcv', 'mmpretrain', 'mmdet', 'mmseg', 'repl_mm')

# The texts of the config files that this process has read.
_trusted: set[str] = set()


def trust(config: Config) -> None:
    """Let the registries import what a config file names by its path, as its author could have imported it there."""
    _trusted.update(_texts(config.to_dict()))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from _texts(item)


def _find_object(name: str) -> Any:
    return get_object_from_string(name) if name in _trusted else None


def _import_registry(name: str) -> ModuleType:
    """Import a library's registry, which mmengine does for any scope; the locations of registries come here too."""
    scope, _, module = name.rpartition('.')
    is_named = any(text == scope or text.startswith(f'{scope}.') for text in _trusted)
    if module == 'registry' and scope not in SCOPES and not is_named:
        raise ValueError(
            f'{scope!r} is not one of the libraries {", ".join(SCOPES)}: what else a config shall use, its file names'
        )
    return import_module(name)


def _read_config(path: str, *args: Any, **kwargs: Any) -> Config:
    """Config files that a host class takes as an argument run as Python too."""
    if not any(str(path) == text or str(path).endswith(f'/{text}') for text in _trusted):
        raise ValueError(f'{path} is a config that would run as Python: name it in the config file, not in an option')
    return Config.fromfile(path, *args, **kwargs)


# --- Files of data ---

# What pickled data consists of, in the names of Python 2 and 3, and of NumPy 1 and 2.
_PLAIN = {
    *(
        f'{module}.{name}'
        for module in ('builtins', '__builtin__')
        for name in ('set', 'frozenset', 'slice', 'complex', 'bytearray', 'bytes')
    ),
    *('collections.OrderedDict', '_codecs.encode', 'numpy.ndarray', 'numpy.dtype'),
    *(
        f'numpy.{core}.{name}'
        for core in ('core', '_core')
        for name in ('multiarray._reconstruct', 'multiarray.scalar', 'numeric._frombuffer')
    ),
}


class DataUnpickler(pickle.Unpickler):
    """Reads containers, numbers, texts and arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if f'{module}.{name}' not in _PLAIN and module != 'numpy.dtypes':
            raise ValueError(
                f'the pickle holds {module}.{name} and could run code: get the data as arrays and plain Python, or in '
                'another format'
            )
        return super().find_class(module, name)


def read_pickle(file: IO[bytes], **options: Any) -> Any:
    """What a file of pickled data holds, without running any of it.

    Raises:
        ValueError: It holds more than containers, numbers, texts and NumPy's arrays.
    """
    return DataUnpickler(file, **options).load()


def _read_pickled_bytes(content: bytes, **options: Any) -> Any:
    return read_pickle(io.BytesIO(content), **options)


class Guarded:
    """Stands in for a module or class within a host's module, with some of its functions exchanged."""

    def __init__(self, original: Any, **exchanged: Any) -> None:
        self._original = original
        vars(self).update(exchanged)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


# --- Arguments that a host evaluates ---


def _read_name(module: ModuleType, kind: type, text: str) -> Any:
    """What a name stands for in a module that would evaluate any expression in its place."""
    first, *rest = text.split('.')
    value = vars(module).get(first, torch if first == 'torch' else None)
    for part in rest:
        value = getattr(value, part, None)
    if not isinstance(value, kind) or (kind is FunctionType and value.__module__ != module.__name__):
        raise ValueError(f'{module.__name__} has no {kind.__name__} of the name {text!r}: check its spelling')
    return value


def restrict_lookup() -> None:
    """Let the host libraries take the text of a config for names of what is registered, and files for data.

    - A path of Python that no registry knows is imported only if :func:`trust` saw it in a config file.
    - So is a config that a class takes as its argument, such as a teacher's.
    - Pickles and YAML files are read without running what they hold.
    - Where a host evaluates an argument, it is looked up as a name.
    """
    mmengine.registry.registry.get_object_from_string = _find_object
    mmengine.registry.registry.import_module = _import_registry
    mmengine.fileio.handlers.yaml_handler.Loader = yaml.SafeLoader
    guarded = Guarded(pickle, load=read_pickle, loads=_read_pickled_bytes)
    module: Any
    for name in ('mmengine.fileio.handlers.pickle_handler', 'mmseg.utils.io', 'mmpretrain.datasets.cifar'):
        module = import_module(name)
        module.pickle = guarded
    module = import_module('mmdet.datasets.openimages')
    module.np = Guarded(np, load=lambda path, allow_pickle: np.load(path))
    module = import_module('mmdet.models.detectors.kd_one_stage')
    module.Config = Guarded(Config, fromfile=_read_config)
    for name, kind in (
        ('mmcv.ops.nms', FunctionType),
        ('mmdet.models.task_modules.tracking.camera_motion_compensation', int),
        ('mmcv.cnn.rfsearch.search', type),
        ('mmpretrain.datasets.transforms.processing', torch.dtype),
    ):
        module = import_module(name)
        module.eval = partial(_read_name, module, kind)
