"""Finished runs side by side: what they score and what they cost."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from repl_mm.analysis.runs import Run, load_runs
from repl_mm.analysis.tables import Table, escape

MIB = 2**20
# Names of the host libraries' metrics as people say them.
METRICS = {
    'accuracy/top1': 'Top-1 accuracy (%)',
    'accuracy/top5': 'Top-5 accuracy (%)',
    'coco/bbox_mAP': 'AP',
    'coco/bbox_mAP_50': 'AP50',
    'coco/bbox_mAP_75': 'AP75',
    'coco/bbox_mAP_s': 'AP, small objects',
    'coco/bbox_mAP_m': 'AP, medium objects',
    'coco/bbox_mAP_l': 'AP, large objects',
    'mIoU': 'mIoU (%)',
    'mAcc': 'mAcc (%)',
    'aAcc': 'aAcc (%)',
    'perplexity': 'Perplexity',
}


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
        folders: Work directories of runs; one without ``cost.json`` is compared in its size and its scores.

    Raises:
        ValueError: Fewer than two runs, one of them twice, or a folder that is not a finished run.
    """
    if len(folders) < 2:
        raise ValueError(f'a comparison needs at least two runs, got {len(folders)}: give the E2E run first')
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError(f'a run is given twice: {", ".join(map(str, folders))}')
    runs = load_runs(folders)
    return Comparison(runs, tuple(_rows(runs)), tuple(_warnings(runs)))


def _rows(runs: Sequence[Run]) -> list[Row]:
    def row(label: str, value: Callable[[Run], float | None], places: int = 0) -> Row:
        return Row(label, tuple(value(run) for run in runs), places)

    def cost(*keys: str, scale: float = 1) -> Callable[[Run], float | None]:
        def value(run: Run) -> float | None:
            found: Any = run.cost
            for key in keys:
                found = (found or {}).get(key)
            return None if found is None else found * scale

        return value

    def growth(run: Run) -> float | None:
        peak, start = (cost('memory_bytes', key)(run) for key in ('peak_resident', 'resident_at_start'))
        return None if peak is None or start is None else (peak - start) / MIB

    kind = _kind_of_input(runs)
    rows = [
        row('Parameters', lambda run: run.complexity.parameters),
        row('Trainable parameters', lambda run: run.complexity.trainable),
        row(
            f'FLOPs, forward, per {kind} (M)',
            lambda run: None if run.complexity.flops is None else run.complexity.flops / 1e6,
            1,
        ),
        row('Peak GPU memory, allocated (MiB)', cost('memory_bytes', 'peak_allocated', scale=1 / MIB)),
        row('Peak GPU memory, reserved (MiB)', cost('memory_bytes', 'peak_reserved', scale=1 / MIB)),
        row('Peak memory of all processes (MiB)', cost('memory_bytes', 'peak_resident', scale=1 / MIB)),
        row('of which since training began (MiB)', growth),
        row('Step time, p50 (ms)', cost('step_time_s', 'p50', scale=1e3), 1),
        row('Step time, p90 (ms)', cost('step_time_s', 'p90', scale=1e3), 1),
        row('Data time, mean (ms)', cost('data_time_s', 'mean', scale=1e3), 1),
        row(f'{kind.capitalize()}s per second', cost('images_per_s'), 1),
        row('Time per epoch (s)', cost('s_per_epoch'), 2),
    ]
    # A GPU's memory is unknown to a run on a CPU, and the other way round.
    return _score_rows(runs) + [row for row in rows if any(value is not None for value in row.values)]


def _kind_of_input(runs: Sequence[Run]) -> str:
    """What the runs' networks take, by the shapes of their inputs."""
    shapes = [run.cost['input_shape'] for run in runs if run.cost and run.cost.get('input_shape')]
    return 'sequence' if shapes and all(len(shape) == 1 for shape in shapes) else 'image'


def _score_rows(runs: Sequence[Run]) -> list[Row]:
    """The last value of every metric, the well-known ones first."""
    keys = dict.fromkeys(chain(METRICS, *(run.metrics for run in runs)))
    return [
        Row(
            METRICS.get(key, key),
            tuple(_last(run, key) for run in runs),
            3 if 'coco' in key else 2,
            is_score=True,
        )
        for key in keys
        if any(key in run.metrics for run in runs)
    ]


def _last(run: Run, key: str) -> float | None:
    """A metric at the end of training; None where it was not validated or is not a number."""
    value = run.metrics[key][-1][1] if key in run.metrics else math.nan
    return value if math.isfinite(value) else None


def _warnings(runs: Sequence[Run]) -> list[str]:
    kinds = {
        'device': 'hardware',
        'world_size': 'number of processes',
        'input_shape': 'input shape',
        'images_per_step': 'batch size',
    }
    known = [run.cost for run in runs if run.cost]
    warnings = [f'{run.name} has no cost.json, its time and memory are unknown' for run in runs if not run.cost]
    for key, what in kinds.items():
        values = [str(cost.get(key)) for cost in known]
        if len(set(values)) > 1:
            warnings.append(f'Not the same kind of run: {what} {" / ".join(values)}')
    return warnings


def conditions(comparison: Comparison) -> str:
    """Hardware, versions, batch and date of the first run that knows them, in one line; empty if none does."""
    cost = next((run.cost for run in comparison.runs if run.cost), None)
    if cost is None:
        return ''
    versions = cost.get('versions', {})
    shape = ' x '.join(map(str, cost.get('input_shape', ['unknown'])))
    return (
        f'{cost["device"]}, torch {versions.get("torch")}, repl_mm {versions.get("repl_mm")}, {cost.get("date")}; '
        f'input {shape}, {cost.get("images_per_step")} {_kind_of_input(comparison.runs)}s per step, '
        f'{cost.get("world_size")} process(es), first {cost.get("warmup")} steps left out'
    )


def as_table(comparison: Comparison) -> Table:
    """A row for each quantity, a column for each run."""
    runs = comparison.runs
    rows = [[row.label, *map(row.cell, range(len(runs)))] for row in comparison.rows]
    return Table(['', *(run.name for run in runs)], 'l' + 'r' * len(runs), rows)


def as_markdown(comparison: Comparison) -> str:
    """The table in Markdown, with the conditions."""
    # Behind a word, as what is at the beginning of a line may make a heading or a list of it.
    measured_on = escape(conditions(comparison))
    notes = [f'Measured on {measured_on}.'] if measured_on else []
    notes += [f'**{escape(warning)}.**' for warning in comparison.warnings]
    return '\n'.join([as_table(comparison).markdown(), '\n\n'.join(notes)]) + '\n'


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
