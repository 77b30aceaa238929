"""Finished runs side by side: what they score and what they cost."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from mmengine.config import Config
from rich.table import Table

from repl_mm.analysis.complexity import Complexity, count

MIB = 2**20
# Names of the host libraries' metrics as people say them.
METRICS = {
    'accuracy/top1': 'Top-1 accuracy (%)',
    'accuracy/top5': 'Top-5 accuracy (%)',
    'coco/bbox_mAP': 'AP',
    'coco/bbox_mAP_50': 'AP50',
    'coco/bbox_mAP_75': 'AP75',
    'mIoU': 'mIoU (%)',
    'mAcc': 'mAcc (%)',
    'aAcc': 'aAcc (%)',
}
_BOOKKEEPING = {'time', 'data_time', 'step', 'epoch', 'iter'}


@dataclass(frozen=True)
class Run:
    """A finished run, as its work directory tells it.

    Attributes:
        name: What the run is called in tables.
        cost: The content of ``cost.json``.
        complexity: Size of its model.
        by_epoch: Whether validations are counted in epochs, not in iterations.
        loss: Training loss as (iteration, value) pairs.
        metrics: Each validated metric as (epoch or iteration, value) pairs.
    """

    name: str
    cost: Mapping[str, Any]
    complexity: Complexity
    by_epoch: bool
    loss: Sequence[tuple[int, float]]
    metrics: Mapping[str, Sequence[tuple[int, float]]]


@dataclass(frozen=True)
class Row:
    """One quantity of all runs.

    Attributes:
        label: Name and unit.
        values: One value per run, in that unit; None where a run does not know it.
        places: Digits after the point.
        is_score: A score, whose change is a difference; the change of a cost is a ratio.
    """

    label: str
    values: tuple[float | None, ...]
    places: int = 0
    is_score: bool = False

    def change(self, run: int) -> float | None:
        """Difference to the first run (scores), or relative change in per cent (costs)."""
        first, value = self.values[0], self.values[run]
        if first is None or value is None or (first == 0 and not self.is_score):
            return None
        return value - first if self.is_score else 100 * (value / first - 1)

    def cell(self, run: int) -> str:
        """Value and change as text."""
        value, change = self.values[run], self.change(run)
        if value is None:
            return '–'
        text = f'{value:,.{self.places}f}'
        if run == 0 or change is None:
            return text
        return f'{text} ({change:+.{self.places}f})' if self.is_score else f'{text} ({change:+.1f} %)'


@dataclass(frozen=True)
class Comparison:
    """All rows of a comparison, and what must be said with them."""

    runs: tuple[Run, ...]
    rows: tuple[Row, ...]
    warnings: tuple[str, ...]


def compare(folders: Sequence[Path]) -> Comparison:
    """Compare runs; the first is what the others are measured against.

    Args:
        folders: Work directories of runs with a ``repl_mm.CostHook``.

    Raises:
        ValueError: Fewer than two runs, one of them twice, or a folder that is not a finished run.
    """
    if len(folders) < 2:
        raise ValueError(f'a comparison needs at least two runs, got {len(folders)}: give the E2E run first')
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError(f'a run is given twice: {", ".join(map(str, folders))}')
    runs = tuple(load_run(folder, name=name) for folder, name in zip(folders, _names(folders), strict=True))
    return Comparison(runs, tuple(_rows(runs)), tuple(_warnings(runs)))


def load_run(folder: Path, *, name: str) -> Run:
    """Read a work directory.

    Raises:
        ValueError: It does not exist, or lacks something, or holds something that cannot be read.
    """
    if not folder.is_dir():
        raise ValueError(f'there is no folder {folder}: give the work directory of a finished run')
    cost = _read_cost(folder / 'cost.json')
    configs = sorted(folder.glob('*.py'), key=lambda path: path.stat().st_mtime)
    if not configs:
        raise ValueError(f'{folder} holds no config: give the work directory in which tools/train.py left one')
    lines = _read_scalars(folder)
    train = [line for line in lines if 'loss' in line]
    validations = [line for line in lines if 'loss' not in line and 'lr' not in line]
    keys = dict.fromkeys(key for line in validations for key in line if _is_metric(key, line[key]))
    config = Config.fromfile(configs[-1])
    return Run(
        name=name if cost['complete'] else f'{name} (interrupted)',
        cost=cost,
        complexity=count(config, input_shape=cost['input_shape']),
        by_epoch=bool(config.get('train_cfg', {}).get('by_epoch', True)),
        loss=_curve(train, 'loss'),
        metrics={key: _curve(validations, key) for key in keys},
    )


def _read_cost(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(
            f"{path.parent} holds no cost.json: train with custom_hooks=[dict(type='repl_mm.CostHook')] in the config"
        )
    try:
        cost = json.loads(path.read_text())
        missing = {'complete', 'device', 'input_shape', 'step_time_s', 'memory_bytes'} - set(cost)
    except (ValueError, TypeError):
        raise ValueError(f'{path} cannot be read: train the run again') from None
    if missing or cost['input_shape'] is None:
        raise ValueError(f'{path} holds no step of training: train the run again')
    return cost


def _read_scalars(folder: Path) -> list[dict[str, float]]:
    """All lines that mmengine's visualizer wrote, the oldest folder first; a resumed run has several."""
    lines = []
    for path in sorted(folder.glob('*/vis_data/scalars.json')):
        for number, text in enumerate(path.read_text().splitlines(), start=1):
            try:
                lines.append(json.loads(text))
            except ValueError:
                raise ValueError(f'{path} cannot be read, line {number} is not JSON: train the run again') from None
    return lines


def _is_metric(key: str, value: Any) -> bool:
    return isinstance(value, int | float) and key not in _BOOKKEEPING and not key.startswith(('cost/', 'base_'))


def _curve(lines: Sequence[Mapping[str, float]], key: str) -> list[tuple[int, float]]:
    """(step, value) pairs in order; where a resumed run repeats a step, the later one counts."""
    return sorted({int(line['step']): float(line[key]) for line in lines if key in line}.items())


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names, or their paths from where they part."""
    paths = [folder.resolve() for folder in folders]
    if len({path.name for path in paths}) == len(paths):
        return [path.name for path in paths]
    common = os.path.commonpath(paths)
    return [str(path.relative_to(common)) for path in paths]


def _rows(runs: Sequence[Run]) -> list[Row]:
    def row(label: str, value: Callable[[Run], float | None], places: int = 0) -> Row:
        return Row(label, tuple(value(run) for run in runs), places)

    def cost(*keys: str, scale: float = 1) -> Callable[[Run], float | None]:
        def value(run: Run) -> float | None:
            found: Any = run.cost
            for key in keys:
                found = None if found is None else found.get(key)
            return None if found is None else found * scale

        return value

    def growth(run: Run) -> float | None:
        memory = run.cost['memory_bytes']
        if 'peak_resident' not in memory:
            return None
        return (memory['peak_resident'] - memory['resident_at_start']) / MIB

    rows = [
        row('Parameters', lambda run: run.complexity.parameters),
        row('Trainable parameters', lambda run: run.complexity.trainable),
        row('FLOPs, forward, per image (M)', lambda run: run.complexity.flops / 1e6, 1),
        row('Peak GPU memory, allocated (MiB)', cost('memory_bytes', 'peak_allocated', scale=1 / MIB)),
        row('Peak GPU memory, reserved (MiB)', cost('memory_bytes', 'peak_reserved', scale=1 / MIB)),
        row('Peak memory of all processes (MiB)', cost('memory_bytes', 'peak_resident', scale=1 / MIB)),
        row('of which since training began (MiB)', growth),
        row('Step time, p50 (ms)', cost('step_time_s', 'p50', scale=1e3), 1),
        row('Step time, p90 (ms)', cost('step_time_s', 'p90', scale=1e3), 1),
        row('Data time, mean (ms)', cost('data_time_s', 'mean', scale=1e3), 1),
        row('Images per second', cost('images_per_s'), 1),
        row('Time per epoch (s)', cost('s_per_epoch'), 2),
    ]
    # A GPU's memory is unknown to a run on a CPU, and the other way round.
    return _score_rows(runs) + [row for row in rows if any(value is not None for value in row.values)]


def _score_rows(runs: Sequence[Run]) -> list[Row]:
    """The last value of every metric, the well-known ones first."""
    keys = dict.fromkeys(chain(METRICS, *(run.metrics for run in runs)))
    return [
        Row(
            METRICS.get(key, key),
            tuple(run.metrics[key][-1][1] if key in run.metrics else None for run in runs),
            3 if 'coco' in key else 2,
            is_score=True,
        )
        for key in keys
        if any(key in run.metrics for run in runs)
    ]


def _warnings(runs: Sequence[Run]) -> list[str]:
    kinds = {
        'device': 'hardware',
        'world_size': 'number of processes',
        'input_shape': 'input shape',
        'images_per_step': 'batch size',
    }
    warnings = []
    for key, what in kinds.items():
        values = [str(run.cost.get(key)) for run in runs]
        if len(set(values)) > 1:
            warnings.append(f'Not the same kind of run: {what} {" / ".join(values)}')
    return warnings


def conditions(comparison: Comparison) -> str:
    """Hardware, versions, batch and date of the first run, in one line."""
    cost = comparison.runs[0].cost
    versions = cost.get('versions', {})
    shape = ' x '.join(map(str, cost['input_shape']))
    return (
        f'{cost["device"]}, torch {versions.get("torch")}, repl_mm {versions.get("repl_mm")}, {cost.get("date")}; '
        f'input {shape}, {cost.get("images_per_step")} images per step, {cost.get("world_size")} process(es), '
        f'first {cost.get("warmup")} steps left out'
    )


def as_table(comparison: Comparison) -> Table:
    """The comparison for a terminal."""
    table = Table('')
    for run in comparison.runs:
        table.add_column(run.name, justify='right')
    for row in comparison.rows:
        table.add_row(row.label, *map(row.cell, range(len(comparison.runs))))
    return table


def as_markdown(comparison: Comparison) -> str:
    """The comparison as a Markdown table with its conditions."""
    head = ['', *(run.name for run in comparison.runs)]
    lines = [head, ['---', *['---:'] * len(comparison.runs)]]
    lines += [[row.label, *map(row.cell, range(len(comparison.runs)))] for row in comparison.rows]
    table = '\n'.join(f'| {" | ".join(line)} |' for line in lines)
    notes = [conditions(comparison) + '.', *(f'**{warning}.**' for warning in comparison.warnings)]
    return '\n\n'.join([table, *notes]) + '\n'


def as_json(comparison: Comparison) -> str:
    """The comparison as numbers: ``rows`` with values and changes per run, and the runs' own records."""
    everyone = range(len(comparison.runs))
    record = {
        'runs': [{'name': run.name, 'cost': run.cost} for run in comparison.runs],
        'warnings': comparison.warnings,
        'rows': [
            {
                'label': row.label,
                'values': row.values,
                'change': [row.change(run) for run in everyone],
                'change_unit': 'difference' if row.is_score else 'per cent',
            }
            for row in comparison.rows
        ],
    }
    return json.dumps(record, indent=2) + '\n'
