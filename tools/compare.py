"""Compare finished runs: scores and costs as a table (terminal, Markdown, JSON) and as a picture."""

import os
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from repl_mm.analysis.compare import as_json, as_markdown, as_table, compare, conditions
from repl_mm.analysis.plot import plot
from repl_mm.cli import friendly


def write(path: Path, save: Callable[[Path], object]) -> None:
    """Save beside, then move into place."""
    beside = path.with_name(f'.{path.name}')
    save(beside)
    os.replace(beside, path)


@friendly()
def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument('runs', nargs='+', type=Path, metavar='RUN', help='work directory of a run; the E2E run first')
    parser.add_argument('--out', type=Path, help='where the files go (default: the folder that holds the first run)')
    args = parser.parse_args()
    comparison = compare(args.runs)
    out = args.out or args.runs[0].resolve().parent
    out.mkdir(parents=True, exist_ok=True)
    write(out / 'comparison.md', lambda path: path.write_text(as_markdown(comparison)))
    write(out / 'comparison.json', lambda path: path.write_text(as_json(comparison)))
    write(out / 'comparison.png', lambda path: plot(comparison).savefig(path, dpi=120, format='png'))
    console = Console()
    console.print(as_table(comparison))
    console.print(conditions(comparison), highlight=False)
    for warning in comparison.warnings:
        console.print(warning, style='bold yellow')
    print(f'Wrote {out}/comparison.md, comparison.json and comparison.png')


if __name__ == '__main__':
    main()
