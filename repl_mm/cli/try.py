"""Find out what replacement is worth for a network of yours: plan, train both, compare, deploy, and one report.

python tools/try.py my_config.py --steps 200          # a first look
python tools/try.py my_config.py                      # the whole of both trainings
python tools/try.py my_config.py --checkpoint e2e.pth # of a trained network: what is left of its score, no training
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from repl_mm.cli.common import add_trust, exit_on_user_error
from repl_mm.cli.plan import percentage


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='config of a network without sites, of mmpretrain, mmdet or mmseg')
    parser.add_argument(
        '--checkpoint', help='of this network when it is trained: fit the network with sites to it, and train nothing'
    )
    parser.add_argument(
        '--steps', type=int, metavar='N', help='train both for N steps, with a schedule that ends there, for a look'
    )
    parser.add_argument(
        '--save-time', type=percentage, default=0.1, metavar='PERCENT',
        help='of the time of a step, which the sites are chosen for (default: 10%%)',
    )  # fmt: skip
    parser.add_argument(
        '--predict', metavar='DEVICE', default='a100', help='plan for a100, h100 or a .json file (default: a100)'
    )
    parser.add_argument('--work-dir', type=Path, help='where all goes (default: work_dirs/try/<name of the config>)')
    parser.set_defaults(launcher='none', local_rank=0, cfg_options=None)
    add_trust(parser)
    return parser


@exit_on_user_error(on_interrupt='the same command goes on')
def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if args.steps is not None and not 2 <= args.steps <= 10**7:
        raise ValueError(f'--steps is from 2 to {10**7:,}, got {args.steps}')
    if args.steps is not None and args.checkpoint is not None:
        raise ValueError('--checkpoint trains nothing: leave out --steps')
    folder = args.work_dir or Path('work_dirs', 'try', Path(args.config).stem)
    if not str(folder).isprintable():
        raise ValueError(f'--work-dir takes a name of characters that can be shown, got {str(folder)!r}')
    if folder.exists() and not folder.is_dir():
        raise ValueError(f'--work-dir {folder} is a file: give a folder')

    from repl_mm.engine.files import lock_folder
    from repl_mm.engine.install import install
    from repl_mm.engine.logs import hide_warnings

    hide_warnings()
    install()

    from repl_mm.cli._try import Attempt

    with lock_folder(folder):
        Attempt(args, folder).run()
