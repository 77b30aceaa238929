"""Compare finished runs: scores and costs as a table (terminal, Markdown, JSON) and as a picture."""

import os
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from repl_mm.cli.common import exit_on_user_error


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument('runs', nargs='+', type=Path, metavar='RUN', help='work directory of a run; the E2E run first')
    parser.add_argument('--out', type=Path, help='where the files go (default: the folder that all runs are in)')
    return parser


@exit_on_user_error()
def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    out = args.out or Path(os.path.commonpath([run.resolve().parent for run in args.runs]))
    if out.exists() and not out.is_dir():
        raise ValueError(f'--out {out} is a file: give a folder')

    from mmengine.logging import MMLogger

    from repl_mm.analysis.compare import as_json, as_markdown, as_table, compare, conditions
    from repl_mm.analysis.plot import as_bubbles, as_png
    from repl_mm.engine.errors import printable
    from repl_mm.engine.files import write_atomic

    # Models are built to be counted; what they say while they are built was said in training.
    MMLogger.get_current_instance().setLevel('ERROR')
    comparison = compare(args.runs)
    # All is made before anything is written.
    files = {
        'comparison.md': as_markdown(comparison).encode(),
        'comparison.json': as_json(comparison).encode(),
        'comparison.png': as_png(comparison),
    }
    if (bubbles := as_bubbles(comparison)) is not None:
        files['bubbles.png'] = bubbles
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_atomic(out / name, content)
    console = Console()
    as_table(comparison).print()
    console.print(printable(conditions(comparison)), highlight=False, markup=False, soft_wrap=True)
    for warning in comparison.warnings:
        console.print(printable(warning), style='bold yellow', markup=False, soft_wrap=True)
    print(printable(f'Wrote {", ".join(files)} to {out}'))
