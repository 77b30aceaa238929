"""Train a model of mmpretrain, mmdet or mmseg."""

from argparse import ArgumentParser, Namespace

import repl_mm.compat  # noqa: F401

# isort: split
from mmengine.config import Config
from mmengine.runner import find_latest_checkpoint

from repl_mm.cli import add_arguments, build_runner, friendly, load_config, read_checkpoint, require_fit


def parse_args() -> Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument('config', help='a config file')
    parser.add_argument(
        '--resume', nargs='?', const='auto', help='continue from this checkpoint, or from the last one in the work dir'
    )
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size')
    add_arguments(parser)
    return parser.parse_args()
