"""Weights for a model out of a checkpoint: read, and required to fit."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from repl_mm.engine.checkpoints import restrict_loading
from repl_mm.engine.errors import shorten, summarise
from repl_mm.engine.finite import is_finite


def read_checkpoint(path: str) -> Mapping[str, Any]:
    """The content of a checkpoint, a file or whatever else mmengine loads from.

    Raises:
        ValueError: No such file, or not a checkpoint, or one that could run code.
    """
    restrict_loading()
    try:
        checkpoint = CheckpointLoader.load_checkpoint(path, map_location='cpu', logger='silent')
    except FileNotFoundError:
        raise ValueError(f'there is no checkpoint {path}: give a .pth file that training has written') from None
    except (OSError, ValueError):
        raise
    except Exception as error:  # from wherever else mmengine loads
        raise ValueError(f'cannot read the checkpoint {path}: {summarise(error)}') from error
    weights = checkpoint.get('state_dict', checkpoint) if isinstance(checkpoint, Mapping) else None
    if not isinstance(weights, Mapping) or not all(isinstance(key, str) for key in weights):
        raise ValueError(f'{path} is not a checkpoint: give a .pth file that training has written')
    if checkpoint.get('meta', {}) is None:
        checkpoint = {**checkpoint, 'meta': {}}
    if not isinstance(checkpoint.get('meta', {}), Mapping):
        raise ValueError(f'the meta data of {path} are no dict: give a file that training or deploy.py has written')
    return checkpoint


def load_strict(model: nn.Module, checkpoint: Mapping[str, Any], *, source: str) -> None:
    """Make sure that a checkpoint fits a model key by key, by loading it; mmengine would warn and go on.

    Raises:
        ValueError: Keys are missing or left over, tensors have another shape, or values are NaN or infinite.
    """
    given: Mapping[str, Tensor] = checkpoint.get('state_dict', checkpoint)
    state_dict = {key.removeprefix('module.'): value for key, value in given.items()}
    while hasattr(model, 'module'):  # of a distributed run, of test-time augmentation
        model = model.module
    own = model.state_dict()
    problems: dict[str, Sequence[str]] = {
        'given twice': [
            key for key in given if key != key.removeprefix('module.') and key.removeprefix('module.') in given
        ],
        'no numbers of the right kind': [k for k, v in state_dict.items() if k in own and not _is_like(v, own[k])],
    }
    broken = [  # what is infinite in a new model, such as a mask, may stay so
        key for key, value in state_dict.items()
        if key in own and key not in problems['no numbers of the right kind']
        and not is_finite(value) and is_finite(own[key])
    ]  # fmt: skip
    try:
        problems['missing'], problems['left over'] = model.load_state_dict(state_dict, strict=False)
    except RuntimeError as error:
        keys = re.findall(r'(?:size mismatch for|parameter named) "?([\w.]+)', str(error))
        problems['of another shape'] = keys or [summarise(error)]
    # One fault, one name.
    problems['of another shape'] = sorted(
        set(problems.get('of another shape', ())) - set(problems['no numbers of the right kind'])
    )
    counts = [f'{len(keys)} {what} ({shorten(keys)})' for what, keys in problems.items() if keys]
    if counts:
        raise ValueError(
            f'the checkpoint {source} does not fit the model, of its keys are {" and ".join(counts)}: '
            'give the config that it was trained with'
        )
    if broken:
        raise ValueError(
            f'{source} holds NaN or infinite values in {shorten(broken)}: give a checkpoint from before the training '
            'diverged'
        )


def _is_like(value: Any, own: Tensor) -> bool:
    """Whether a value from a file can stand for a tensor of a model; loading would round integers and drop parts."""
    if not isinstance(value, Tensor) or value.layout != own.layout or value.is_meta:
        return False
    return value.is_floating_point() == own.is_floating_point() and value.is_complex() == own.is_complex()
