"""The picture of docs/accuracy.md: score over predicted time and memory, with a name at every point."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

COLOURS = {'E2E': '#33608f', 'RepL': '#c2571a', 'dropped': '#5b6770'}
OTHER = '#4f8a4c'


def plot(scores: Mapping[str, Mapping[int, float]], costs: Sequence[Any], *, confirmed: int) -> Figure:
    """A row of panels for each network, time and memory beside each other.

    Args:
        scores: By row, such as ``'ResNet-32: E2E'``, and seed.
        costs: With ``row``, ``step_ms`` and ``memory_mib``.
        confirmed: Seeds of a row below which its point is hollow.
    """
    by = {cost.row: cost for cost in costs if scores.get(cost.row)}
    networks = list(dict.fromkeys(row.partition(':')[0] for row in by))
    figure = Figure(figsize=(13, 5.2 * len(networks)), layout='constrained')
    for panels, network in zip(figure.subplots(len(networks), 2, sharey='row', squeeze=False), networks, strict=True):
        mine = [row for row in by if row.startswith(f'{network}: ')]
        for axes, cost in zip(panels, ('step_ms', 'memory_mib'), strict=True):
            ratios = [getattr(by[row], cost) / getattr(by[f'{network}: E2E'], cost) for row in mine]
            names = [row.partition(': ')[2] for row in mine]
            _plot_panel(axes, names, ratios, [list(scores[row].values()) for row in mine], confirmed)
            axes.set_xlabel(f'{"time" if cost == "step_ms" else "memory"} of a step over E2E, predicted', fontsize=13)
        panels[0].set_ylabel('top-1 accuracy (%), with standard error', fontsize=13)
        panels[0].set_title(network, loc='left', weight='bold', fontsize=15)
    return figure


def _plot_panel(
    axes: Axes, names: Sequence[str], ratios: Sequence[float], scores: Sequence[Sequence[float]], confirmed: int
) -> None:
    """Points with the standard error of their means, and names in a column at the right, joined by thin lines."""
    means = [mean(values) for values in scores]
    errors = [stats.sem(values) if len(values) > 1 else 0 for values in scores]
    for name, x, y, error, values in zip(names, ratios, means, errors, scores, strict=True):
        colour = next((colour for start, colour in COLOURS.items() if name.startswith(start)), OTHER)
        face = colour if len(values) >= confirmed else 'white'
        axes.errorbar(x, y, yerr=error, fmt='o', markersize=9, color=colour, mfc=face, elinewidth=1.5, capsize=3)
    axes.margins(y=0.1)
    width = max(ratios) - min(ratios)
    right = max(ratios) + 0.08 * width
    axes.set_xlim(min(ratios) - 0.05 * width, right + 0.7 * width)
    axes.set_xticks([tick for tick in axes.get_xticks() if min(ratios) - 0.05 * width <= tick <= right])
    # Names stand in the order of the scores, so that their lines do not cross more than they must.
    order = sorted(range(len(names)), key=means.__getitem__)
    bottom, top = axes.get_ylim()
    for place, at in enumerate(order, start=1):
        y = bottom + (top - bottom) * place / (len(order) + 1)
        axes.annotate(
            names[at], (ratios[at], means[at]), (right, y), fontsize=13, va='center',
            zorder=0,
            arrowprops=dict(arrowstyle='-', color='#bbb', linewidth=0.9, shrinkB=6, relpos=(0, 0.5)),
        )  # fmt: skip
    axes.grid(alpha=0.25)
    axes.spines[['top', 'right']].set_visible(False)
    axes.tick_params(labelsize=12)
