"""Look whether a published data set is on disk, complete and sound, and say what to do about it."""

import os
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import track

from repl_mm.cli.common import exit_on_user_error
from repl_mm.datasets.integrity import SOURCES, check, contents
from repl_mm.engine.errors import printable

LABELS, POLYGONS = '_labelTrainIds.png', '_polygons.json'


def make_train_ids(root: Path) -> None:
    """Write the label images that are missing beside CityScapes' polygons."""
    try:
        from cityscapesscripts.preparation.json2labelImg import json2labelImg
    except ImportError as error:
        raise ValueError(f'--make-train-ids: {error}, pip install cityscapesscripts') from None
    todo = {path: path.with_name(path.name.replace(POLYGONS, LABELS)) for path in root.glob(f'gtFine/*/*/*{POLYGONS}')}
    for polygons, labels in track([item for item in todo.items() if not item[1].exists()], 'labels: '):
        beside = labels.with_name(f'.{labels.name}')
        json2labelImg(str(polygons), str(beside), 'trainIds')
        os.replace(beside, labels)


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument('name', help=f'one of {", ".join(SOURCES)}')
    parser.add_argument('root', type=Path, help='the folder of the data set')
    parser.add_argument(
        '--make-train-ids', action='store_true', help='first write the labels that CityScapes leaves to be made'
    )
    return parser


@exit_on_user_error()
def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if args.make_train_ids:
        if args.name != 'cityscapes':
            raise ValueError(f'--make-train-ids is for cityscapes, not for {args.name}: leave it out')
        make_train_ids(args.root)
    problems = check(args.name, args.root, track=partial(track, description='files: ', transient=True))
    console = Console(soft_wrap=True, highlight=False)
    console.print(printable(f'{SOURCES[args.name].title} in {args.root}'), markup=False)
    for part, number in contents(args.name, args.root).items():
        console.print(f'{number:>12,} file(s)  {part}', markup=False)
    for problem in problems:
        console.print(printable(problem.message), style='red' if problem.fatal else 'yellow', markup=False)
    if any(problem.fatal for problem in problems):
        sys.exit(1)
    console.print('Complete.')
