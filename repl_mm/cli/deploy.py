"""Turn a trained checkpoint into a static model: weights, the config that belongs to them, and exports.

Nothing is written unless the static model gives the same outputs as the trained one.
"""

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from repl_mm.cli.common import add_cfg_options, add_trust, exit_on_user_error
from repl_mm.export import EXPORTS


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file of the training')
    parser.add_argument('checkpoint', help='checkpoint that training has written')
    parser.add_argument('out', type=Path, help='a new folder for what is written')
    parser.add_argument(
        '--fuse-all', action='store_true', help="fold the batch norms of the backbone's other blocks too"
    )
    parser.add_argument('--no-ema', action='store_true', help='take the weights themselves, not their moving average')
    parser.add_argument('--format', nargs='+', choices=list(EXPORTS), default=[], help='what to export besides')
    parser.add_argument('--backbone-only', action='store_true', help='export the backbone without neck and head')
    add_cfg_options(parser)
    add_trust(parser)
    return parser


@exit_on_user_error()
def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)

    from repl_mm.cli._deploy import run

    run(args)
