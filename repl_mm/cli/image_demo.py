"""Write pictures of what a model predicts: boxes (mmdet), a map (mmseg) or a class (mmpretrain) for each image."""

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from repl_mm.cli.common import add_device, add_picture_arguments, add_trust, exit_on_user_error


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint that training has written')
    parser.add_argument('images', type=Path, help='an image, or a folder of images and of folders with images')
    add_picture_arguments(parser)
    add_trust(parser)
    parser.add_argument('--score-thr', type=float, default=0.3, help='least score of a box (default: %(default)s)')
    add_device(parser)
    return parser


@exit_on_user_error()
def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)

    from repl_mm.cli._image_demo import run

    run(args)
