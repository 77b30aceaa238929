"""Draw images, ground truth and what finished runs predict side by side, for detection and segmentation."""

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from repl_mm.cli.common import exit_on_user_error
from repl_mm.engine.errors import printable


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument('runs', nargs='+', type=Path, metavar='RUN', help='work directory of a run of mmdet or mmseg')
    parser.add_argument('--out', type=Path, required=True, help='the picture, .png')
    parser.add_argument('--number', type=int, default=6, help='how many images of the test set (default: %(default)s)')
    parser.add_argument('--score-thr', type=float, default=0.3, help='least score of a box (default: %(default)s)')
    return parser


@exit_on_user_error()
def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if args.out.suffix != '.png':
        raise ValueError(f'--out is a picture: give a name that ends in .png, got {args.out}')
    if args.number < 1:
        raise ValueError(f'--number is at least 1, got {args.number}')

    from repl_mm.analysis.predictions import as_grid
    from repl_mm.engine.files import write_atomic
    from repl_mm.engine.install import install
    from repl_mm.engine.logs import hide_warnings

    hide_warnings()
    install()
    write_atomic(args.out, as_grid(args.runs, number=args.number, threshold=args.score_thr))
    print(printable(f'Wrote {args.out}'))
