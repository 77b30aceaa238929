"""Write a data set of handwritten digits in COCO's or CityScapes' format, made from scikit-learn's."""

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from rich.progress import track

from repl_mm.cli.common import exit_on_user_error
from repl_mm.engine.errors import printable


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument('format', choices=['coco', 'cityscapes'])
    parser.add_argument('out', type=Path, help='a new folder')
    parser.add_argument('--train', type=int, default=2000, help='number of images for training (default: %(default)s)')
    parser.add_argument('--val', type=int, default=150, help='number of images for validation (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0)
    return parser


@exit_on_user_error()
def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if min(args.train, args.val) < 1:
        raise ValueError(f'--train and --val are at least 1, got {args.train} and {args.val}')
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise ValueError(f'{args.out} holds something: give a new folder')

    from repl_mm.datasets.digit_scenes import Split, make_scenes, write_cityscapes, write_coco

    write = dict(coco=write_coco, cityscapes=write_cityscapes)[args.format]
    numbers: dict[Split, int] = {'train': args.train, 'val': args.val}
    for split, number in numbers.items():
        scenes = make_scenes(split=split, number=number, seed=args.seed)
        write(args.out, track(scenes, f'{split}: ', total=number), split=split)
    print(printable(f'Wrote {args.train} + {args.val} images to {args.out}'))
