"""Which checkpoint a run goes on from, and whether what it holds can be gone on from.

Any file may be given to ``--resume``, so all that a resumed run reads is checked here, before anything is built.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.logging import print_log
from torch import Tensor

from repl_mm.engine.checkpoints import is_intact, is_trusted, restricted
from repl_mm.engine.errors import shorten
from repl_mm.engine.files import require_regular
from repl_mm.engine.finite import tensors_not_finite

_ABSENT = object()
# What a checkpoint holds of numbers that training has computed.
NUMBERS = ('state_dict', 'ema_state_dict', 'optimizer')


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_dict(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_list_of(is_right: Callable[[Any], bool], value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(is_right, value))


_are_dicts = partial(_is_list_of, _is_dict)


def _is_optimizer(value: Any) -> bool:
    """The state of an optimizer, or of several by name."""
    if not isinstance(value, Mapping) or not value:
        return False
    if 'param_groups' in value:
        return _is_dict(value.get('state')) and bool(value['param_groups']) and _are_dicts(value['param_groups'])
    return all(map(_is_optimizer, value.values()))


def _are_schedulers(value: Any) -> bool:
    return all(map(_are_dicts, value.values())) if isinstance(value, Mapping) else _are_dicts(value)


def _are_named(kind: type, value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(k, str) and isinstance(v, kind) for k, v in value.items())


def _is_cost(value: Any) -> bool:
    kinds = dict(
        first_step=int | None, resumed_at=list, steps=int, input_shape=list | None, images_per_step=int | None,
        images=int, step_s=Tensor, data_s=Tensor, time_s=Mapping, memory_bytes=Mapping,
    )  # fmt: skip
    return isinstance(value, Mapping) and all(isinstance(value.get(key, _ABSENT), kinds[key]) for key in kinds)


class Field(NamedTuple):
    """What a resumable checkpoint holds at a place.

    Attributes:
        place: Keys on the way, with dots between.
        is_right: Whether a value can stand there.
        what: What stands there.
        required: Whether it may be absent, if what is around it is there.
    """

    place: str
    is_right: Callable[[Any], bool]
    what: str
    required: bool = True


SCHEMA = (
    Field('state_dict', partial(_are_named, object), 'weights by name'),
    Field('ema_state_dict', partial(_are_named, Tensor), 'averages by name', required=False),
    Field('meta', _is_dict, 'a dict'),
    Field('meta.iter', _is_count, 'a number of steps'),
    Field('meta.epoch', _is_count, 'a number of epochs'),
    Field('meta.seed', lambda v: _is_count(v) and v < 2**32, 'a whole number below 2**32', required=False),
    Field('meta.run', lambda v: isinstance(v, float) and math.isfinite(v) and v >= 0, 'seconds', required=False),
    Field('meta.place', _is_dict, 'a dict', required=False),
    Field('meta.place.done', _is_count, 'a number of batches'),
    Field('meta.place.batches', _is_count, 'a number of batches'),
    Field('meta.place.world_size', _is_count, 'a number of processes'),
    Field('optimizer', _is_optimizer, "an optimizer's state"),
    Field('message_hub', _is_dict, 'a dict'),
    Field('message_hub.log_scalars', _is_dict, 'a dict'),
    Field('message_hub.resumed_keys', _is_dict, 'a dict'),
    Field('message_hub.runtime_info', partial(_are_named, object), 'a dict'),
    Field(
        'message_hub.runtime_info.keep_ckpt_ids', partial(_is_list_of, _is_count), 'numbers of steps', required=False
    ),
    Field(
        'message_hub.runtime_info.preemption_ckpt',
        lambda v: isinstance(v, str) and v == Path(v).name,
        'a name of a file',
        required=False,
    ),
    Field('message_hub.runtime_info.best_ckpt', lambda v: isinstance(v, str), 'a path', required=False),
    Field('param_schedulers', _are_schedulers, 'states of schedulers', required=False),
    Field(
        'gradients',
        partial(_is_list_of, partial(_are_named, Tensor)),
        'gradients by name, of each process',
        required=False,
    ),
    Field('early_stopping', _are_dicts, 'dicts', required=False),
    Field('cost', _is_cost, "CostHook's figures", required=False),
    Field('meta.infinite', partial(_is_list_of, lambda v: isinstance(v, str)), 'names of masks', required=False),
)


def _find(content: Any, place: str) -> Any:
    for key in place.split('.') if place else ():
        if not isinstance(content, Mapping) or key not in content:
            return _ABSENT
        content = content[key]
    return content


def _faults(content: Mapping[str, Any]) -> Iterator[str]:
    for place, is_right, what, required in SCHEMA:
        value = _find(content, place)
        if value is _ABSENT:
            around = _find(content, place.rpartition('.')[0])
            if required and around is not _ABSENT:
                yield f'{place} is missing'
        elif not is_right(value):
            shown = repr(value) if isinstance(value, str | int | float | None) else f'a {type(value).__name__}'
            yield f'{place} is {what}, got {shown[:40]}'


def require_resumable(content: Any, *, source: str) -> None:
    """Make sure that a checkpoint holds what a resumed run reads, and of the kind that it takes.

    Raises:
        ValueError: It holds something else, or numbers that are not finite.
    """
    _require_fields(content, source=source)
    _require_finite(content, source=source)


def _require_intact(content: Any, *, source: str) -> None:
    with restricted(source):
        is_intact(source)


def _require_fields(content: Any, *, source: str) -> None:
    if not isinstance(content, Mapping) or 'optimizer' not in content:
        raise ValueError(f'{source} holds weights alone: start from them with --cfg-options load_from={source}')
    if faults := list(_faults(content)):
        raise ValueError(
            f'{source} cannot be resumed from, {shorten(faults)}: start from its weights with --cfg-options '
            f'load_from={source}'
        )


def _require_finite(content: Mapping[str, Any], *, source: str) -> None:
    masks = set(content['meta'].get('infinite') or ())
    numbers = {key: content[key] for key in NUMBERS if key in content}
    if broken := [place for place in tensors_not_finite(numbers) if place not in masks]:
        raise ValueError(
            f'{source} holds NaN or infinite values in {shorten(broken)}: give a checkpoint from before the training '
            'diverged'
        )


def started(meta: Mapping[str, Any]) -> float:
    """When the run of a checkpoint began, in seconds since 1970; what tells runs in one folder from each other.

    Files of mmengine's own hook say when the run was last resumed; 0 where nothing is known.
    """
    if 'run' in meta:
        return meta['run']
    try:
        return datetime.strptime(str(meta.get('experiment_name'))[-15:], '%Y%m%d_%H%M%S').timestamp()
    except ValueError:
        return 0.0


def describe(meta: Mapping[str, Any]) -> str:
    """A run and how far it is, for a person."""
    begin = started(meta)
    run = f'the run of {datetime.fromtimestamp(begin):%Y-%m-%d %H:%M:%S}' if begin else 'a run of unknown date'
    return f'{run} at iteration {meta["iter"]}'


def find_newest(folder: Path) -> Path | None:
    """The checkpoint of the farthest step of the run that began last in a work directory.

    One that is damaged, or cannot be resumed from, is named in a warning and passed over.

    Returns:
        None where training has written none.

    Raises:
        ValueError: There are some, and none of them can be resumed from.
    """
    begun: dict[Path, tuple[float, int, int]] = {}
    problems: list[str] = []

    def is_good(path: Path, *checks: Callable[..., None]) -> bool:
        try:
            require_regular(path)
            with restricted(str(path)):
                # Its tensors are read when they are looked at.
                content = torch.load(str(path), map_location='cpu', mmap=True, weights_only=not is_trusted())
            for check in checks:
                check(content, source=str(path))
        except (ValueError, OSError) as error:
            problems.append(str(error))
            return False
        begun[path] = started(content['meta']), content['meta']['iter'], content['meta']['epoch']
        return True

    for path in sorted(folder.glob('*.pth')):
        if not path.name.startswith('best_'):  # which are weights alone
            is_good(path, _require_fields)
    newest_first = sorted(begun, key=begun.get, reverse=True)
    newest = next((path for path in newest_first if is_good(path, _require_intact, _require_finite)), None)
    if newest is None and problems:
        raise ValueError(
            f'no checkpoint in {folder} can be resumed from, to begin anew remove them: {"; ".join(problems)}'
        )
    for problem in problems:
        print_log(f'{problem}. It is passed over')  # there is no log file yet
    return newest
