"""The picture of a comparison: how the runs learn, and what they cost."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from repl_mm.analysis.compare import METRICS, Comparison, Run

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


def plot(comparison: Comparison) -> Figure:
    """Training loss, main metric, and costs relative to the first run."""
    figure = Figure(figsize=(15, 4.6), layout='constrained')
    loss, metric, cost = figure.subplots(1, 3, width_ratios=[1, 1, 1.15])
    _plot_loss(loss, comparison.runs)
    _plot_metric(metric, comparison.runs)
    _plot_costs(cost, comparison)
    for axes in (loss, metric, cost):
        axes.spines[['top', 'right']].set_visible(False)
    return figure


def _plot_loss(axes: Axes, runs: Sequence[Run]) -> None:
    axes.set(title='Training loss', xlabel='iteration', ylabel='loss')
    for run, colour in zip(runs, _colours(len(runs)), strict=True):
        if run.loss:
            steps, values = np.transpose(run.loss)
            axes.plot(steps, values, color=colour, alpha=0.3, linewidth=1)
            axes.plot(steps, _smooth(values), color=colour, linewidth=2, label=run.name)
            axes.legend(frameon=False)
    if any(run.loss for run in runs):
        axes.set_ylim(bottom=0)


def _plot_metric(axes: Axes, runs: Sequence[Run]) -> None:
    """The first metric that all runs were validated with."""
    known = [key for key in dict.fromkeys([*METRICS, *runs[0].metrics]) if all(key in run.metrics for run in runs)]
    if not known:
        axes.set_title('no metric that all runs share')
        return
    axes.set(title=METRICS.get(known[0], known[0]), xlabel='epoch' if runs[0].by_epoch else 'iteration')
    for run, colour in zip(runs, _colours(len(runs)), strict=True):
        steps, values = np.transpose(run.metrics[known[0]])
        axes.plot(
            steps, values, color=colour, linewidth=2, marker='o', markersize=4, label=f'{run.name}: {values[-1]:.4g}'
        )
    axes.legend(frameon=False, loc='lower right')
    axes.grid(axis='y', alpha=0.3)


def _plot_costs(axes: Axes, comparison: Comparison) -> None:
    """Horizontal bars; the first run is 100 %."""
    rows = [
        (name, row)
        for start, name in BARS.items()
        for row in comparison.rows
        if row.label.startswith(start) and all(row.values)
    ]
    axes.set(title=f'Cost relative to {comparison.runs[0].name}', xlabel='per cent')
    height = 0.8 / len(comparison.runs)
    for at, (run, colour) in enumerate(zip(comparison.runs, _colours(len(comparison.runs)), strict=True)):
        places = np.arange(len(rows)) + (at - (len(comparison.runs) - 1) / 2) * height
        percentages = [100 * row.values[at] / row.values[0] for _, row in rows]
        bars = axes.barh(places, percentages, height * 0.92, color=colour, label=run.name)
        axes.bar_label(bars, [f'{value:.1f}' for value in percentages], padding=3, fontsize=9)
    axes.axvline(100, color='#444', linewidth=0.8, linestyle=':')
    axes.set_yticks(np.arange(len(rows)), [name for name, _ in rows])
    axes.invert_yaxis()
    axes.margins(x=0.12)


def _colours(count: int) -> list[str]:
    return [COLOURS[at % len(COLOURS)] for at in range(count)]


def _smooth(values: np.ndarray) -> np.ndarray:
    """Exponential moving average over about a fiftieth of the curve, started at its first value."""
    weight = max(0.0, 1 - 50 / len(values))
    smooth = [values[0]]
    for value in values[1:]:
        smooth.append(weight * smooth[-1] + (1 - weight) * value)
    return np.array(smooth)
