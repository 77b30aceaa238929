"""The picture of a comparison: how the runs learn, and what they cost."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from repl_mm.analysis.compare import METRICS, Comparison, Row
from repl_mm.analysis.runs import Run
from repl_mm.engine.errors import printable

COLOURS = ['#33608f', '#c2571a', '#4f8a4c', '#8a5aa8', '#8c7a2b', '#5b6770']
# The costs worth a bar, by the beginning of their label.
BARS = {
    'Parameters': 'parameters',
    'FLOPs': 'FLOPs, forward',
    'Peak GPU memory, allocated': 'peak memory',
    'of which since': 'memory since start',
    'Step time, p50': 'step time, p50',
    'Time per epoch': 'time per epoch',
}


@rc_context({'text.parse_math': False})  # names may hold dollar signs
def as_png(comparison: Comparison) -> bytes:
    """Training loss, main metric, and costs relative to the first run; a PNG file."""
    # matplotlib leaves names out of a legend that begin with an underscore, and breaks at line ends.
    runs = [replace(run, name=re.sub('^_', ' _', printable(run.name))) for run in comparison.runs]
    # What the first run does not know cannot be relative to it.
    rows = {
        name: row
        for start, name in BARS.items()
        for row in comparison.rows
        if row.label.startswith(start) and row.values[0]
    }
    figure = Figure(figsize=(15, max(5.2, 2 + 0.17 * len(runs) * len(rows))), layout='constrained')
    loss, metric, cost = figure.subplots(1, 3, width_ratios=[1, 1, 1.15])
    _plot_loss(loss, runs)
    _plot_metric(metric, runs)
    _plot_costs(cost, rows, runs=runs)
    for axes in (loss, metric, cost):
        axes.spines[['top', 'right']].set_visible(False)
    handles = [Patch(color=colour, label=run.name) for run, colour in zip(runs, _colours(runs), strict=True)]
    legend = figure.legend(handles=handles, loc='outside lower center', ncols=min(len(runs), 3), frameon=False)
    legend.set_title('\n'.join(map(printable, comparison.warnings)))
    legend.get_title().set_color('#b00020')
    figure.suptitle(f'Compared with {runs[0].name}', weight='bold')
    return to_png(figure, dpi=120)


@rc_context({'text.parse_math': False})
def as_bubbles(comparison: Comparison) -> bytes | None:
    """Score over peak memory, a bubble for each run whose diameter is that memory (Fig. 1 of the papers); a PNG file.

    None where no score or no memory is known of all runs. A GPU's memory goes before that of processes.
    """

    def find(start: str) -> Row | None:
        return next((row for row in known if row.label.startswith(start)), None)

    known = [row for row in comparison.rows if None not in row.values]
    score = next((row for row in known if row.is_score), None)
    memory = find('Peak GPU memory, allocated') or find('of which since') or find('Peak memory')
    if score is None or memory is None or max(memory.values) <= 0:
        return None
    figure = Figure(figsize=(7, 5.5), layout='constrained')
    axes = figure.subplots()
    label = memory.label.replace('of which', 'Peak memory')
    axes.set(title='Score over memory; diameter: memory', xlabel=label, ylabel=score.label)
    runs = comparison.runs
    for run, colour, x, y in zip(runs, _colours(runs), memory.values, score.values, strict=True):
        diameter = 60 * max(x, 0) / max(memory.values)  # points
        axes.scatter(x, y, s=diameter**2, color=colour, alpha=0.6, linewidths=0)
        axes.plot(x, y, '.', color=colour, label=re.sub('^_', ' _', printable(run.name)))
    axes.margins(0.35)
    axes.grid(alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)
    figure.legend(loc='outside lower center', ncols=min(len(runs), 3), frameon=False)
    return to_png(figure, dpi=120)


def to_png(figure: Figure, *, dpi: int, **options: Any) -> bytes:
    """A PNG file of a figure; options as for matplotlib's ``savefig``."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=dpi, **options)
    return buffer.getvalue()


def _plot_loss(axes: Axes, runs: Sequence[Run]) -> None:
    axes.set(title='Training loss (faint: as logged, bold: smoothed)', xlabel='iteration', ylabel='loss')
    for run, colour in zip(runs, _colours(runs), strict=True):
        steps, values = _points(run.loss)
        axes.plot(steps, values, color=colour, alpha=0.3, linewidth=1, zorder=1)
        axes.plot(steps, _smooth(values), color=colour, linewidth=2)
    if any(run.loss for run in runs):
        axes.set_ylim(bottom=0)
    axes.grid(axis='y', alpha=0.3)


def _plot_metric(axes: Axes, runs: Sequence[Run]) -> None:
    """The first metric that all runs were validated with."""
    known = [key for key in dict.fromkeys([*METRICS, *runs[0].metrics]) if all(key in run.metrics for run in runs)]
    if not known:
        axes.set(title='No metric that all runs were validated with', xticks=[], yticks=[])
        return
    label = METRICS.get(known[0], known[0])
    axes.set(title=f'Validation: {label}', xlabel='epoch' if runs[0].by_epoch else 'iteration', ylabel=label)
    for run, colour in zip(runs, _colours(runs), strict=True):
        steps, values = _points(run.metrics[known[0]])
        axes.plot(steps, values, color=colour, linewidth=2, marker='o', markersize=4)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis='y', alpha=0.3)


def _plot_costs(axes: Axes, rows: Mapping[str, Row], *, runs: Sequence[Run]) -> None:
    """Horizontal bars; the first run is 100 %."""
    axes.set(title='Cost', xlabel=f'per cent of {runs[0].name}')
    height = 0.8 / len(runs)
    for at, colour in enumerate(_colours(runs)):
        places = np.arange(len(rows)) + (at - (len(runs) - 1) / 2) * height
        values = [row.values[at] for row in rows.values()]
        percentages = [100 * (value or 0) / row.values[0] for value, row in zip(values, rows.values(), strict=True)]
        bars = axes.barh(places, percentages, height * 0.92, color=colour)
        texts = ['–' if value is None else f'{of:.1f} %' for value, of in zip(values, percentages, strict=True)]
        axes.bar_label(bars, texts, padding=3, fontsize=9)
    axes.axvline(100, color='#bbb', linewidth=0.8, linestyle=':', zorder=0)
    axes.set_yticks(np.arange(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.margins(x=0.16)


def _colours(runs: Sequence[Run]) -> list[str]:
    return [COLOURS[at % len(COLOURS)] for at in range(len(runs))]


def _points(curve: Sequence[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a curve, without those that are not a number."""
    steps, values = np.array(curve, dtype=float).reshape(-1, 2).T
    known = np.isfinite(values)
    return steps[known], values[known]


def _smooth(values: np.ndarray) -> np.ndarray:
    """Exponential moving average over about a fiftieth of the curve, started at its first value."""
    weight = max(0.0, 1 - 50 / max(len(values), 1))
    smooth = values.copy()
    for at in range(1, len(values)):
        smooth[at] = weight * smooth[at - 1] + (1 - weight) * values[at]
    return smooth
