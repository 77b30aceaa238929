"""What the work directory of a run tells about it."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from mmengine.config import Config

from repl_mm.analysis.cost import Complexity, count
from repl_mm.analysis.records import read_cost, read_scalars
from repl_mm.engine.errors import explain

_BOOKKEEPING = ('time', 'data_time', 'memory', 'step', 'epoch', 'iter')


@dataclass(frozen=True)
class Run:
    """A run, as its work directory tells it.

    Attributes:
        name: What the run is called in tables.
        cost: The content of ``cost.json``, or None where the run has none.
        complexity: Size of its model.
        by_epoch: Whether validations are counted in epochs, not in iterations.
        loss: Training loss as (iteration, value) pairs.
        metrics: Each validated metric as (epoch or iteration, value) pairs.
    """

    name: str
    cost: Mapping[str, Any] | None
    complexity: Complexity
    by_epoch: bool
    loss: Sequence[tuple[int, float]]
    metrics: Mapping[str, Sequence[tuple[int, float]]]


def load_runs(folders: Sequence[Path]) -> tuple[Run, ...]:
    """Read work directories; the runs are called as their folders, or as the paths from where those part.

    Raises:
        ValueError: A folder does not exist, or lacks something, or holds something that cannot be read.
    """
    costs = [_find_cost(folder) for folder in folders]
    # A run that does not know the size of its images is counted at that of the others.
    shapes = [cost.get('input_shape') if cost else None for cost in costs]
    known = next((shape for shape in shapes if shape), None)
    return tuple(
        _load_run(folder, name=name, cost=cost, input_shape=shape or known)
        for folder, name, cost, shape in zip(folders, name_runs(folders), costs, shapes, strict=True)
    )


def name_runs(folders: Sequence[Path]) -> list[str]:
    """The names of the folders, or their paths from where those part if two have the same name."""
    paths = [folder.resolve() for folder in folders]
    names = [path.name for path in paths]
    if len(set(names)) == len(names):
        return names
    common = os.path.commonpath([path.parent for path in paths])
    return [str(path.relative_to(common)) for path in paths]


def _load_run(folder: Path, *, name: str, cost: Mapping[str, Any] | None, input_shape: Sequence[int] | None) -> Run:
    path = find_config(folder)
    # Configs are Python code, and so is what they configure: anything may be raised.
    with explain(f'cannot build {path} and apply it to images of {input_shape}', errors=Exception):
        config = Config.fromfile(path)
        complexity = count(config, input_shape=input_shape)
        # The step under which mmengine's LoggerHook writes validations.
        by_epoch = config.get('default_hooks', {}).get('logger', {}).get('log_metric_by_epoch', True)
    lines = _read_logs(sorted(folder.glob('*/vis_data/scalars.json')))
    validations = [line for line in lines if 'loss' not in line and 'lr' not in line]
    keys = dict.fromkeys(key for line in validations for key in line if _is_metric(key, line[key]))
    return Run(
        name=f'{name} (interrupted)' if cost and not cost['complete'] else name,
        cost=cost,
        complexity=complexity,
        by_epoch=bool(by_epoch),
        loss=_curve(lines, 'loss'),
        metrics={key: _curve(validations, key) for key in keys},
    )


def _find_cost(folder: Path) -> dict[str, Any] | None:
    """The record of ``CostHook``, which a run by a host's own tools may not have."""
    if not folder.is_dir():
        raise ValueError(f'there is no folder {folder}: give the work directory of a run')
    path = folder / 'cost.json'
    return read_cost(path) if path.exists() else None


def find_config(folder: Path) -> Path:
    """The config of the latest training in a work directory; one at its top may have been overwritten by a later test.

    Raises:
        ValueError: There is none.
    """
    beside_logs = [log.with_name('config.py') for log in sorted(folder.glob('*/vis_data/scalars.json'), reverse=True)]
    top_level = sorted(folder.glob('*.py'), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in [*beside_logs, *top_level]:
        if path.is_file():
            return path
    raise ValueError(f'{folder} holds no config: give the work directory in which tools/train.py left one')


def _read_logs(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The lines that mmengine's visualizer wrote, in the order of training; a resumed run has several files.

    From the first step of training in a file, it stands in place of what the older ones say.
    """
    lines: list[dict[str, Any]] = []
    for path in paths:
        newer = read_scalars(path)
        start = min((line['step'] for line in newer if 'loss' in line), default=float('inf'))
        older = takewhile(lambda line: 'loss' not in line or line['step'] < start, lines)  # noqa: B023
        lines = [*older, *newer]
    return lines


def _is_metric(key: str, value: float) -> bool:
    if key in _BOOKKEEPING or key.startswith(('cost/', 'base_')):
        return False
    # COCO: one value per class, too many for a comparison; and -1 where there is no object of a size.
    return not key.startswith('coco/') or not (key.endswith('_precision') or value == -1)


def _curve(lines: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    """(step, value) pairs in order; where a resumed run repeats a step, the later one counts."""
    return sorted({line['step']: float(line[key]) for line in lines if key in line}.items())
