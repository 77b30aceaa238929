"""Find out which blocks of a trained network can be replaced, by what the network scores without each of them.

python tools/recoverability.py my_config.py work_dirs/my_config/epoch_90.pth --out look
python tools/plan.py my_config.py --save-time 15% --by look/recoverability.json
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from repl_mm.cli.common import add_cfg_options, add_trust, exit_on_user_error
from repl_mm.engine.errors import printable

if TYPE_CHECKING:
    from mmengine.config import Config


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='the config of a training without sites')
    parser.add_argument('checkpoint', help='checkpoint of that training')
    parser.add_argument('--out', type=Path, required=True, help='folder for the tables, the picture and a .json')
    parser.add_argument(
        '--batches', type=int, default=20,
        help='batches of the training data to fit to, and of the validation data for the local errors '
        '(default: %(default)s)',
    )  # fmt: skip
    add_cfg_options(parser)
    add_trust(parser)
    return parser


def read_config(args: Namespace) -> Config:
    """The config of a network that replaces nothing yet, whose backbone is one of ours."""
    from repl_mm.backbones.configs import replaceable
    from repl_mm.cli.config import load_config

    sections = ('model', 'train_dataloader', 'val_dataloader', 'val_cfg', 'val_evaluator')
    config = load_config(args, sections=sections)
    if (config.model.get('backbone') or {}).get('repl'):
        raise ValueError(
            f'{config.filename} has sites already: give the config of the training without sites, or '
            '--cfg-options model.backbone.repl=None with a checkpoint of it'
        )
    config = replaceable(config)
    # What hooks do to a run's weights and files has no place here.
    config.update(load_from=None, resume=False, log_level='WARNING', custom_hooks=[])
    config.default_hooks = {**(config.get('default_hooks') or {}), 'checkpoint': None}
    return config


@exit_on_user_error()
def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if args.batches < 1:
        raise ValueError(f'--batches is at least 1, got {args.batches}')
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f'--out {args.out} is a file: give a folder')

    from repl_mm.analysis.figures import recoverability_figure
    from repl_mm.analysis.recoverability import as_json, correlations
    from repl_mm.analysis.tables import render
    from repl_mm.cli._recoverability import conclusion, measure, tables
    from repl_mm.cli.runner import build_runner
    from repl_mm.engine.files import write_atomic
    from repl_mm.engine.weights import load_strict, read_checkpoint

    args.work_dir = str(args.out / 'logs')
    config = read_config(args)
    checkpoint = read_checkpoint(args.checkpoint)
    runner = build_runner(config, loops=['val'])
    reference = runner.model
    load_strict(reference, checkpoint, source=args.checkpoint)
    found, blocks = measure(config, runner, reference, batches=args.batches)
    ranks = correlations(blocks)
    shown, lines = tables(found, blocks, ranks), conclusion(found, blocks, ranks)
    for table in shown:
        table.print()
    print(*lines, sep='\n')
    files = {
        'recoverability.md': (render(shown, form='.md') + '\n' + '\n\n'.join(lines) + '\n').encode(),
        'recoverability.json': as_json(found, blocks, ranks),
        'recoverability.png': recoverability_figure(found['metric'], found['score'], blocks),
    }
    for name, content in files.items():
        write_atomic(args.out / name, content)
    print(printable(f'Wrote {", ".join(files)} to {args.out}'))
