"""The picture of every published saving: published, predicted, and predicted without the same blocks.

python benchmarks/evidence_picture.py docs/results/evidence.csv docs/results/evidence.png
"""

import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from repl_mm.analysis.plot import to_png
from repl_mm.engine.files import write_atomic

# What is drawn of a row: column of the CSV, marker, colour, title.
SERIES = [
    ('published_{}', 'D', '#2b8a3e', 'published'),
    ('{}', 'o', '#c2571a', 'predicted, as the row is written'),
    ('drop_{}', '|', '#5b6770', 'predicted, same blocks dropped'),
]


def plot(rows: Sequence[Mapping[str, str]]) -> Figure:
    """Ratios over E2E, a line for each row and a panel for time and for memory."""
    figure = Figure(figsize=(13, 1.6 + 0.27 * len(rows)), layout='constrained')
    for axes, what in zip(figure.subplots(1, 2, sharey=True), ('time', 'memory'), strict=True):
        _plot_panel(axes, rows, what)
    first = figure.axes[0]
    first.set_yticks(range(len(rows)), [title(row) for row in rows], fontsize=12)
    first.set_ylim(len(rows) - 0.4, -0.6)
    figure.legend(
        *first.get_legend_handles_labels(), loc='outside upper center', ncols=len(SERIES), fontsize=13, frameon=False
    )
    return figure


def title(row: Mapping[str, str]) -> str:
    """A row's name: table, data, network, and what it has in E2E's place."""
    return ' '.join(row[key] for key in ('table', 'data', 'network', 'what'))


def _plot_panel(axes: Axes, rows: Sequence[Mapping[str, str]], what: str) -> None:
    axes.axvline(1, color='#bbb', linewidth=0.8)
    for at, row in enumerate(rows):
        values = [float(row[key]) for key in (f'published_{what}', what) if row[key]]
        axes.plot(values, [at] * len(values), color='#c2571a', linewidth=1.2, alpha=0.5, zorder=1)
        if at and row['table'] != rows[at - 1]['table']:
            axes.axhline(at - 0.5, color='#ddd', linewidth=0.8)
    for column, marker, colour, label in SERIES:
        points = [(float(row[key]), at) for at, row in enumerate(rows) if row[key := column.format(what)]]
        size = 11 if marker == '|' else 7
        axes.plot(*zip(*points, strict=True), marker, color=colour, markersize=size, markeredgewidth=2, label=label)
    axes.set_title(f'{what} over E2E', fontsize=14)
    axes.tick_params(axis='x', labelsize=12, top=True, labeltop=True)
    axes.spines[['right', 'left']].set_visible(False)


def main(table: str, picture: str) -> None:
    """Draw the rows of a CSV."""
    with Path(table).open() as file:
        write_atomic(Path(picture), to_png(plot(list(csv.DictReader(file))), dpi=100))


if __name__ == '__main__':
    main(*sys.argv[1:])
