"""The records that training leaves: read, and checked by type, before anything is made of them."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

LARGEST = 10**18  # of any quantity: far beyond bytes, operations and seconds, and all of them are exact below
LARGEST_SIDE = 10**6  # of an image, in pixels

Check = Callable[[Any], bool]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST


def _is_quantity(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and 0 <= value <= LARGEST  # false for NaN


def _is_measured(value: Any) -> bool:
    """A number that training may have logged; a diverged one is NaN or infinite."""
    if isinstance(value, float):
        return not math.isfinite(value) or abs(value) <= LARGEST
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST


def _is_shape(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) in (1, 3)
        and all(_is_whole(side) and side <= LARGEST_SIDE for side in value)
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _maps_to(check: Check) -> Check:
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


_WHOLE = (_is_whole, 'a whole number')
_QUANTITY = (_is_quantity, 'a number of at least 0, or null')
_QUANTITIES = (_maps_to(_is_quantity), 'numbers of at least 0 by name, or null')
# What ``cost.json`` says; a quantity that was not measured is null or not there.
_REQUIRED: dict[str, tuple[Check, str]] = {
    'complete': (lambda value: isinstance(value, bool), 'true or false'),
    'device': (_is_text, 'text'),
}
_OPTIONAL: dict[str, tuple[Check, str]] = {
    'input_shape': (
        _is_shape,
        'channels, height and width of the images, such as [3, 224, 224], or the length of a sequence',
    ),
    'date': (_is_text, 'text'),
    'versions': (_maps_to(_is_text), 'texts by name'),
    'world_size': _WHOLE,
    'images_per_step': _WHOLE,
    'warmup': _WHOLE,
    'steps': _WHOLE,
    'images_per_s': _QUANTITY,
    's_per_epoch': _QUANTITY,
    'step_time_s': _QUANTITIES,
    'data_time_s': _QUANTITIES,
    'time_s': _QUANTITIES,
    'memory_bytes': _QUANTITIES,
}


def read_cost(path: Path) -> dict[str, Any]:
    """The content of a ``cost.json``: what is known of it, and nothing else.

    Raises:
        ValueError: It is no JSON, or something in it is not of the kind that ``CostHook`` writes.
    """
    record = _parse(_read(path), source=f'{path}')
    missing = [key for key in _REQUIRED if record.get(key) is None]
    if missing:
        raise ValueError(f'{path} is not what training writes, {", ".join(missing)} is not there: train the run again')
    known = {key: record[key] for key in (*_REQUIRED, *_OPTIONAL) if record.get(key) is not None}
    for key, value in known.items():
        check, expected = (_REQUIRED | _OPTIONAL)[key]
        if not check(value):
            raise ValueError(f'{path}: {key!r} is {expected}, got {_shorten(value)}: train the run again')
    return known


def read_scalars(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``scalars.json``, which mmengine's visualizer wrote.

    Raises:
        ValueError: A line is no JSON, has no step, or holds something that is no number.
    """
    lines = []
    for number, text in enumerate(_read(path).splitlines(), start=1):
        source = f'{path}, line {number}'
        line = _parse(text, source=source)
        if not _is_whole(line.get('step')):
            raise ValueError(
                f"{source}: 'step' is a whole number, got {_shorten(line.get('step'))}: train the run again"
            )
        for key, value in line.items():
            if not _is_measured(value):
                raise ValueError(f'{source}: {key!r:.40} is a number, got {_shorten(value)}: train the run again')
        lines.append(line)
    return lines


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise ValueError(f'{path} is no file')
    return path.read_bytes()


def _parse(text: bytes, *, source: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise ValueError(f'{source} cannot be read: one JSON object such as training writes is expected; train again')
    return record


def _shorten(value: Any) -> str:
    """A value that may be of any kind and size, as JSON, at a length that fits into a message."""
    if isinstance(value, int) and abs(value) > LARGEST:
        return 'a number too large'
    try:
        text = json.dumps(value)
    except RecursionError:  # JSON is parsed deeper than it is written
        return f'a {type(value).__name__}'
    return text if len(text) <= 40 else f'{text[:37]}...'
