"""What training steps cost, as tables and a picture."""

from collections.abc import Sequence
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from repl_mm.analysis.plot import to_png
from repl_mm.analysis.tables import Table
from repl_mm.benchmark.timing import format_ratio
from repl_mm.benchmark.training import MeasuredStep


def as_markdown(rows: Sequence[MeasuredStep], *, conditions: str) -> str:
    """The figures as a table with the published ones beside them."""
    head = ['model', 'variant', 'backend', 'batch', 'size', 'time / E2E', 'published', 'memory / E2E', 'published']
    head += ['step (ms)', 'forward', 'backward', 'optimizer', 'memory (MiB)', 'weights', 'gradients', 'optimizer state']
    head += ['activations', 'operators a step', 'rounds']
    cells = []
    for row in rows:
        published = (row.published_time, row.published_memory) if row.variant.startswith('RepL') else (None, None)
        cells.append([
            *(row.model, row.variant, row.backend, str(row.batch), row.size),
            *(_time_ratio(row, row.time_interval), format_ratio(published[0])),
            *map(format_ratio, (row.memory, published[1])),
            *map(_figure, (row.step_ms, row.forward_ms, row.backward_ms, row.optimizer_ms, row.memory_mib)),
            *map(_figure, (row.weights_mib, row.gradients_mib, row.optimizer_mib, row.activations_mib)),
            *(_count(row.operators), str(row.rounds)),
        ])  # fmt: skip
    table = Table(head, 'lllrl' + 15 * 'r', cells)
    return f'{table.markdown()}\n{_published_savings(rows)}{conditions}\n'


def _time_ratio(row: MeasuredStep, interval: tuple[float, float] | None = None) -> str:
    return format_ratio(row.time, interval) or row.note


def _figure(value: float | None) -> str:
    return '' if value is None else f'{value:.1f}'


def _count(value: int | None) -> str:
    return '' if value is None else f'{value:,}'


def _published_savings(rows: Sequence[MeasuredStep]) -> str:
    """For each published model, which variant saves as much, or which comes nearest and what bounds it."""
    head = ['model', 'backend', 'batch', 'published time, memory', 'variant', 'its time, memory', 'most by dropping']
    cells = []
    for (model, backend, batch, _), panel in by_model(rows).items():
        ours = [row for row in panel if row.variant.startswith('RepL') and row.time is not None]
        if panel[0].published_time is None or not ours:
            continue
        # In the order of the variants, so with the fewest replaced blocks; or else the nearest.
        found = min(map(verdict, ours), key=('reached', 'open', 'missed').index)
        candidates = [row for row in ours if verdict(row) == found]
        best = min(candidates, key=_shortfall) if found == 'missed' else candidates[0]
        words = dict(
            reached=f'{best.variant} reaches both', open=f'open, by the interval of {best.variant}',
            missed=f'none reaches both; nearest {best.variant}',
        )  # fmt: skip
        dropped = [row for row in panel if row.variant.startswith('drop') and row.time is not None]
        bound = f'{min(r.time for r in dropped):.3f}, {min(r.memory for r in dropped):.3f}' if dropped else ''
        published = f'{best.published_time:.3f}, {best.published_memory:.3f}'
        its = f'{format_ratio(best.time, best.time_interval)}, {best.memory:.3f}'
        cells.append([model, backend, str(batch), published, words[found], its, bound])
    return f'Published savings, over E2E:\n\n{Table(head, "lllrlrr", cells).markdown()}\n' if cells else ''


def verdict(row: MeasuredStep) -> str:
    """Whether a row saves what is published: ``'reached'``, ``'missed'``, or ``'open'`` where its interval holds it."""
    low, high = row.time_interval
    if row.memory > row.published_memory or low > row.published_time:
        return 'missed'
    return 'reached' if high <= row.published_time else 'open'


def _shortfall(row: MeasuredStep) -> float:
    """How far a row is from both published ratios, by the worse one."""
    return max(row.time / row.published_time, row.memory / row.published_memory)


def by_model(rows: Sequence[MeasuredStep]) -> dict[tuple[str, str, int, str], list[MeasuredStep]]:
    """The rows that were measured together, by model, backend, batch and size."""
    panels: dict[tuple[str, str, int, str], list[MeasuredStep]] = {}
    for row in rows:
        panels.setdefault((row.model, row.backend, row.batch, row.size), []).append(row)
    return panels


def as_table(rows: Sequence[MeasuredStep]) -> Table:
    """What matters most, for a terminal."""
    head = ['model', 'variant', 'backend', 'batch', 'time / E2E', 'memory / E2E', 'step (ms)', 'memory (MiB)']
    head += ['operators a step']
    cells = [
        [
            *(row.model, row.variant, row.backend, str(row.batch), _time_ratio(row), format_ratio(row.memory)),
            *(*map(_figure, (row.step_ms, row.memory_mib)), _count(row.operators)),
        ]
        for row in rows
    ]
    return Table(head, 'lllrrrrrr', cells)


def as_png(rows: Sequence[MeasuredStep], *, conditions: str) -> bytes:
    """The picture of :func:`plot` as a PNG file."""
    return to_png(plot(rows, conditions=conditions), dpi=110)


def plot(rows: Sequence[MeasuredStep], *, conditions: str) -> Figure:
    """Time and memory over those of E2E, a panel for each model, backend and batch size."""
    panels = by_model(rows)
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(6.5 * columns, 1.2 + 4.2 * lines), layout='constrained')
    for axes, (what, shown) in zip(figure.subplots(lines, columns, squeeze=False).flat, panels.items(), strict=False):
        _plot_panel(axes, shown)
        axes.set_title(f'{what[0]}, {what[1]}, batch {what[2]}, {what[3]}', fontsize=9)
    for axes in figure.axes[len(panels) :]:
        axes.set_axis_off()
    figure.supxlabel('step time over E2E', fontsize=10)
    figure.supylabel('peak memory over E2E', fontsize=10)
    figure.suptitle(fill(conditions, 75 * columns), fontsize=9)
    return figure


def _plot_panel(axes: Axes, rows: Sequence[MeasuredStep]) -> None:
    colours = {'E2E': '#222222', 'drop': '#888888', 'RepL': '#c2571a', 'SD': '#33608f', 'AC': '#33608f'}
    measured = [row for row in rows if row.time is not None]
    axes.axhline(1, color='#bbb', linewidth=0.8)
    axes.axvline(1, color='#bbb', linewidth=0.8)
    for row in measured:
        kind = row.variant.partition(',')[0].partition(' ')[0]
        axes.plot(row.time_interval, (row.memory, row.memory), color=colours[kind], linewidth=1, alpha=0.6)
        axes.plot(row.time, row.memory, 'o' if kind == 'RepL' else 's', color=colours[kind], markersize=5)
    labels = [(row.variant, row.time, row.memory, '#222') for row in measured]
    first = rows[0]
    if first.published_time is not None:
        axes.plot(first.published_time, first.published_memory, 'D', color='#2b8a3e', markersize=6)
        labels.append(('published, A100', first.published_time, first.published_memory, '#2b8a3e'))
    axes.spines[['top', 'right']].set_visible(False)
    axes.margins(0.16)
    axes.autoscale_view()
    _label(axes, labels)


def _label(axes: Axes, labels: Sequence[tuple[str, float, float, str]]) -> None:
    """Write (text, x, y, colour) to the right of a panel, each on a line of its own that leads to its point."""
    labels = sorted(labels, key=lambda label: label[2])
    heights = spread_out([axes.transLimits.transform(label[1:3])[1] for label in labels], gap=0.055)
    for (text, x, y, colour), height in zip(labels, heights, strict=True):
        axes.annotate(
            text, (x, y), xytext=(1.02, height), textcoords='axes fraction', va='center', fontsize=7, color=colour,
            arrowprops=dict(arrowstyle='-', linewidth=0.4, color=colour, alpha=0.5, shrinkA=1, shrinkB=3),
        )  # fmt: skip


def spread_out(heights: Sequence[float], *, gap: float) -> list[float]:
    """Ascending heights from 0 to 1, moved up and then down as little as leaves ``gap`` between any two."""
    gap = min(gap, 1 / max(len(heights) - 1, 1))
    placed: list[float] = []
    for at, height in enumerate(heights):
        placed.append(max(height, placed[-1] + gap if at else 0))
    highest = 1.0
    for at in reversed(range(len(placed))):
        placed[at] = min(placed[at], highest)
        highest = placed[at] - gap
    return placed
