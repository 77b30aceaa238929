"""The analyses of the papers on finished runs: what networks represent, and what replacing blocks does to them."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from repl_mm.cli.common import add_trust, exit_on_user_error

REPRESENTATION = {
    'cka': 'similarity (linear CKA) of all pairs of blocks, in each run and of the first against the others',
    'tsne': 't-SNE of the features in front of the classifier',
    'probes': 'a linear classifier after each block, fitted to training data and scored on validation data',
    'cam': 'Grad-CAM: where in an image the evidence for its class lies',
    'features': 'features of blocks as maps',
}
THEORY = {
    'bound': 'how far replaced blocks move the features, measured beside the bound (Eq. 59-60), by interval',
    'bias': 'bias of the gradients of the retained parameters, measured beside the bound (Eq. 61-64), by interval',
    'tradeoff': 'cost by interval, by formula (Eq. 76; those of the 2024 paper) and counted, beside that bias',
}
OF_IMAGES = ('cam', 'features')


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    kinds = parser.add_subparsers(dest='kind', required=True, metavar='ANALYSIS')
    for kind, text in (REPRESENTATION | THEORY).items():
        own = kinds.add_parser(kind, help=text, description=f'{text[0].upper()}{text[1:]}.')
        own.add_argument(
            'runs', nargs='+', type=Path, metavar='RUN', help='work directory of a finished run; the E2E run first'
        )
        if kind in OF_IMAGES:
            own.add_argument('--number', type=int, default=4, help='images (default: %(default)s)')
        else:
            own.add_argument('--batches', type=int, default=20, help='batches of a data set (default: %(default)s)')
        if kind in THEORY:
            own.add_argument(
                '--intervals', nargs='+', type=int, default=list(range(2, 9)), metavar='K', help='default: 2 to 8'
            )
            own.add_argument(
                '--policy',
                choices=['interval', 'budget'],
                default='budget',
                help='how sites are chosen (default: %(default)s)',
            )
            own.add_argument(
                '--images', type=int, default=64, help='for the constants of the bound (default: %(default)s)'
            )
        own.add_argument('--out', type=Path, required=True, help='folder for the picture and the numbers')
        add_trust(own)
    return parser


@exit_on_user_error()
def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    for option in ('number', 'batches', 'images'):
        if (value := getattr(args, option, 1)) < 1:
            raise ValueError(f'--{option} is at least 1, got {value}')
    if bad := [every for every in getattr(args, 'intervals', ()) if every < 2]:
        raise ValueError(f'--intervals are at least 2, got {bad[0]}')
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f'--out {args.out} is a file: give a folder')
    if len({run.resolve() for run in args.runs}) < len(args.runs):
        raise ValueError(f'a run is given twice: {", ".join(map(str, args.runs))}')

    from mmengine.logging import MMLogger

    from repl_mm.analysis.runs import name_runs
    from repl_mm.cli import _analyses, _theory
    from repl_mm.cli._trained import load_trained
    from repl_mm.engine.errors import printable
    from repl_mm.engine.files import write_atomic

    MMLogger.get_instance('mmengine', log_level='ERROR')
    runs = [load_trained(run, name=name) for run, name in zip(args.runs, name_runs(args.runs), strict=True)]
    module = _theory if args.kind in THEORY else _analyses
    files = getattr(module, f'analyse_{args.kind}')(runs, args)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_atomic(args.out / name, content)
    print(printable(f'Wrote {" and ".join(files)} to {args.out}'))
