"""Write pictures of what a config's data set gives after its pipeline: images with their boxes, map or class."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence

from rich.progress import track

from repl_mm.cli.common import add_picture_arguments, exit_on_user_error
from repl_mm.engine.errors import explain, printable

LOADING = ('LoadImageFromFile', 'LoadAnnotations')


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument('config', help='a config file')
    parser.add_argument('--split', choices=['train', 'val', 'test'], default='train', help='default: %(default)s')
    parser.add_argument(
        '--number', type=int, default=20, help='how many pictures, spread over the data set (default: %(default)s)'
    )
    add_picture_arguments(parser)
    return parser


@exit_on_user_error()
def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if args.number < 1:
        raise ValueError(f'--number is at least 1, got {args.number}')

    import numpy as np
    from mmengine.registry import DATASETS

    from repl_mm.cli.config import load_scoped_config
    from repl_mm.engine.files import write_atomic
    from repl_mm.visualization import as_png, draw, has_truth

    loader = f'{args.split}_dataloader'
    config = load_scoped_config(args, sections=(loader,))
    # Test pipelines load annotations last, which leaves them in the pixels of the original image.
    config[loader].dataset.get('pipeline', []).sort(key=lambda step: not step['type'].endswith(LOADING))
    with explain(f'cannot load the {args.split} data, check {loader} in the config'):
        dataset = DATASETS.build(config[loader].dataset)
        if len(dataset) == 0:
            raise ValueError('the data set is empty')
    args.out_dir.mkdir(parents=True, exist_ok=True)
    number = min(args.number, len(dataset))
    for index in track(np.linspace(0, len(dataset) - 1, number, dtype=int).tolist(), 'Drawing: '):
        with explain(f'cannot load sample {index} of the {args.split} data'):
            item = dataset[index]
        sample, pixels = item['data_samples'], item['inputs'].permute(1, 2, 0).numpy()
        if not has_truth(sample):
            raise ValueError(f'the pipeline of {loader} loads no annotations: choose another --split')
        picture = draw(pixels, sample, scope=config.default_scope, meta=dataset.metainfo, truth=True)
        write_atomic(args.out_dir / f'{args.split}_{index:0{len(str(len(dataset) - 1))}}.png', as_png(picture))
    print(printable(f'Wrote {number} pictures to {args.out_dir}'))
