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
    parser.add_argument(
        '--size', nargs=2, type=int, metavar=('HEIGHT', 'WIDTH'),
        help="of the images that an export is traced with (default: a ViT's and Swin's own, else one that stays free)",
    )  # fmt: skip
    parser.add_argument('--backbone-only', action='store_true', help='export the backbone without neck and head')
    add_cfg_options(parser)
    add_trust(parser)
    return parser


@exit_on_user_error()
def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if args.size and not args.format:
        raise ValueError('--size is the size of an export: say which with --format')
    if args.size and not 32 <= min(args.size) <= max(args.size) <= 4096:
        raise ValueError(f'--size is from 32 to 4096, got {args.size[0]} x {args.size[1]}')

    from repl_mm.cli._deploy import run

    run(args)
