"""The pictures of the analyses, as PNG files."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from repl_mm.analysis.compare import METRICS
from repl_mm.analysis.plot import COLOURS, to_png
from repl_mm.analysis.recoverability import Block
from repl_mm.engine.errors import printable

DPI = 120
Blocks = Sequence[str]
_plain = rc_context({'text.parse_math': False})  # names may hold dollar signs


def _ticks(blocks: Sequence[Any]) -> list[int]:
    """Places of the labels of at most some 18 blocks."""
    return list(range(0, len(blocks), -(-len(blocks) // 18)))


@_plain
def cka_figure(matrices: Sequence[tuple[str, str, Blocks, Blocks, np.ndarray]], sites: Mapping[str, set[str]]) -> bytes:
    """A matrix for each pair of runs: names, blocks and values; the labels of replaced blocks are coloured."""
    columns = min(3, len(matrices))
    rows = -(-len(matrices) // columns)
    figure = Figure(figsize=(5.2 * columns + 0.8, 5.3 * rows), layout='constrained')
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(matrices) :]:
        axes.set_axis_off()
    for axes, (one, other, left, right, values) in zip(grid.flat, matrices, strict=False):
        image = axes.imshow(values, vmin=0, vmax=1, cmap='magma', origin='lower')
        axes.set_title(printable(one if one == other else f'{one} against {other}'), fontsize=11)
        axes.set(xlabel=printable(f'blocks of {other}'), ylabel=printable(f'blocks of {one}'))
        axes.set_xticks(_ticks(right), [right[at] for at in _ticks(right)], rotation=90, fontsize=8)
        axes.set_yticks(_ticks(left), [left[at] for at in _ticks(left)], fontsize=8)
        for name, labels in ((other, axes.get_xticklabels()), (one, axes.get_yticklabels())):
            for label in labels:
                if label.get_text() in sites[name]:
                    label.set(color=COLOURS[1], weight='bold')
    figure.colorbar(image, ax=grid, label='linear CKA', shrink=0.7)
    return to_png(figure, dpi=DPI)


@_plain
def tsne_figure(places: Mapping[str, tuple[np.ndarray, np.ndarray]], classes: Sequence[str]) -> bytes:
    """A panel for each run: places (samples, 2) and classes (samples,)."""
    figure = Figure(figsize=(5 * len(places), 5.6), layout='constrained')
    panels = figure.subplots(1, len(places), squeeze=False)[0]
    colours = [matplotlib_colour(label, len(classes)) for label in range(len(classes))]
    for axes, (name, (points, labels)) in zip(panels, places.items(), strict=True):
        axes.scatter(*points.T, c=[colours[label] for label in labels], s=14, linewidths=0)
        axes.set(title=printable(name), xticks=[], yticks=[])
    known = sorted({int(label) for _, labels in places.values() for label in labels})[:20]
    handles = [
        Line2D([], [], marker='o', linestyle='', color=colours[label], label=printable(str(classes[label])))
        for label in known
    ]
    figure.legend(handles=handles, loc='outside lower center', ncols=10, frameon=False)
    return to_png(figure, dpi=DPI)


def matplotlib_colour(label: int, number: int) -> tuple[float, float, float, float]:
    """The colour of a class."""
    from matplotlib import colormaps

    return colormaps['tab10'](label) if number <= 10 else colormaps['turbo'](label / max(number - 1, 1))


@_plain
def probe_figure(accuracies: Mapping[str, Mapping[str, float]], sites: Mapping[str, set[str]]) -> bytes:
    """Accuracy over depth, a curve for each run; replaced blocks are marked."""
    figure = Figure(figsize=(9, 5), layout='constrained')
    axes = figure.subplots()
    for at, (name, found) in enumerate(accuracies.items()):
        colour, values = COLOURS[at % len(COLOURS)], list(found.values())
        axes.plot(values, color=colour, linewidth=2, marker='o', markersize=4, label=printable(name))
        replaced = [place for place, block in enumerate(found) if block in sites[name]]
        axes.scatter(replaced, [values[place] for place in replaced], s=90, facecolors='none', edgecolors=colour)
    blocks = max(map(list, accuracies.values()), key=len)
    axes.set_xticks(_ticks(blocks), [blocks[at] for at in _ticks(blocks)], rotation=45, ha='right')
    axes.set(title='Linear probe after each block (circles: replaced blocks)', ylabel='accuracy on validation data (%)')
    axes.grid(axis='y', alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)
    figure.legend(loc='outside lower center', ncols=3, frameon=False)
    return to_png(figure, dpi=DPI)


@_plain
def map_figure(
    images: Sequence[np.ndarray],
    titles: Sequence[str],
    maps: Sequence[Sequence[np.ndarray]],
    *,
    overlay: bool,
    labels: Sequence[str] = (),
) -> bytes:
    """A row for each image: itself (H, W, 3), then its maps; laid over the image, or by themselves.

    Args:
        images: From 0 to 1.
        titles: Of the columns behind the image.
        maps: For each image, one (h, w) for each of these columns.
        overlay: Whether to lay them over the image.
        labels: Of the rows.
    """
    rows, columns = len(images), 1 + len(titles)
    ratio = images[0].shape[0] / images[0].shape[1]
    figure = Figure(figsize=(1.9 * columns, 1.9 * ratio * rows + 0.5), layout='constrained')
    grid = figure.subplots(rows, columns, squeeze=False)
    for line, image, found in zip(grid, images, maps, strict=True):
        line[0].imshow(image)
        for axes, values in zip(line[1:], found, strict=True):
            if overlay:
                axes.imshow(image.mean(2), cmap='gray', vmin=0, vmax=1)
                axes.imshow(values, cmap='jet', alpha=0.5, vmin=0, vmax=1)
            else:
                axes.imshow(values, cmap='magma')
        for axes in line:
            axes.set_axis_off()
    for line, label in zip(grid, labels, strict=False):
        line[0].text(-0.08, 0.5, printable(label), transform=line[0].transAxes, rotation=90, ha='right', va='center')
    for axes, title in zip(grid[0], ['image', *titles], strict=True):
        axes.set_title(printable(title), fontsize=9)
    return to_png(figure, dpi=DPI)


@_plain
def curves_figure(
    title: str,
    x: tuple[str, Sequence[float]],
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    log: bool = False,
) -> bytes:
    """Panels side by side over one axis, each with its curves."""
    figure = Figure(figsize=(5.6 * len(panels), 4.6), layout='constrained')
    label, values = x
    for axes, (name, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for at, (what, curve) in enumerate(curves.items()):
            axes.plot(values, curve, color=COLOURS[at % len(COLOURS)], linewidth=2, marker='o', label=what)
        axes.set(title=name, xlabel=label)
        if log:
            axes.set_yscale('log')
            axes.yaxis.set_major_formatter('{x:,g}')
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis='y', alpha=0.3)
        axes.spines[['top', 'right']].set_visible(False)
        axes.legend(frameon=False)
    figure.suptitle(printable(title), weight='bold')
    return to_png(figure, dpi=DPI)


@rc_context({'text.parse_math': False, 'font.size': 14})  # readable at half its size
def recoverability_figure(metric: str, score: float, found: Sequence[Block]) -> bytes:
    """What replacing a block costs, its local errors and its distances, over depth.

    Args:
        metric: The score.
        score: Of the trained network.
        found: In network order.
    """
    figure = Figure(figsize=(max(10, 0.55 * len(found) + 3), 10.5), layout='constrained')
    loss, error, distance = figure.subplots(3, 1, sharex=True, height_ratios=[5, 5, 3])
    values, label = [block.loss for block in found], METRICS.get(metric, metric)
    bars = loss.bar(range(len(found)), values, color=[COLOURS[1] if value > 0 else COLOURS[2] for value in values])
    if len(found) <= 18:
        loss.bar_label(bars, [f'{value:.3g}' for value in values], padding=2)
    loss.axhline(0, color='black', linewidth=0.8)
    loss.margins(y=0.2)
    loss.set_title(printable(f'{label} lost where this block alone is replaced (E2E: {score:.4g})'), loc='left')
    _curves(error, found, {
        'start': [block.fit.start.mean for block in found], 'fitted': [block.fit.fitted.mean for block in found],
    })  # fmt: skip
    error.set_title('Local error (Eq. 41), mean over samples', loc='left')
    error.set_ylim(bottom=0)
    names = list(dict.fromkeys(name for block in found for name in block.fit.distances))
    _curves(distance, found, {name: [block.fit.distances.get(name, np.nan) for block in found] for name in names})
    distance.set_title('Weight-space distance (Eq. 72-75) over the norm of the removed weight', loc='left')
    distance.set_ylim(0, 1.05)
    at = _ticks(values)
    distance.set_xticks(at, [printable(found[place].name) for place in at], rotation=45, ha='right')
    for axes in (loss, error, distance):
        axes.spines[['top', 'right']].set_visible(False)
    return to_png(figure, dpi=DPI)


def _curves(axes: Axes, found: Sequence[Block], curves: Mapping[str, Sequence[float]]) -> None:
    """Curves, broken between stages, with their names at their ends."""
    stages = [block.site.stage for block in found]
    for at, (name, values) in enumerate(curves.items()):
        for stage in sorted(set(stages)):
            places = [place for place, own in enumerate(stages) if own == stage]
            axes.plot(places, [values[place] for place in places], 'o-', color=COLOURS[at], linewidth=2)
        axes.annotate(
            printable(name), (len(found) - 1, values[-1]), (12, 9 - 18 * at), textcoords='offset points',
            color=COLOURS[at], weight='bold', va='center', annotation_clip=False,
        )  # fmt: skip
    axes.grid(axis='y', alpha=0.3)
