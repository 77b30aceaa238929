"""Draw which class is taken for which, from predictions that test.py --out has saved."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repl_mm.cli.common import add_cfg_options, exit_on_user_error

if TYPE_CHECKING:
    import numpy as np
    from torch.utils.data import Dataset


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config that the predictions were made with')
    parser.add_argument('predictions', type=Path, help='the .pkl file that test.py --out has written')
    parser.add_argument('out', type=Path, help='the picture, .png; the counts go beside it, .csv')
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='least score of a box that counts (default: %(default)s)'
    )
    parser.add_argument(
        '--iou-thr', type=float, default=0.5, help='least overlap of a box and its object (default: %(default)s)'
    )
    add_cfg_options(parser)
    return parser


def count(
    scope: str, predictions: Sequence[dict[str, Any]], dataset: Dataset, *, score_thr: float, iou_thr: float
) -> tuple[np.ndarray, list[str]]:
    """The confusion matrix of a library's predictions, and the names of its rows."""
    from repl_mm.analysis import confusion

    names = [str(name) for name in dataset.metainfo.get('classes') or ()]
    if not names:
        raise ValueError('the test data name no classes: set metainfo=dict(classes=(...)) of its data set')
    if scope == 'mmpretrain':
        return confusion.count_images(predictions, len(names)), names
    if scope == 'mmseg':
        return confusion.count_pixels(predictions, len(names)), names
    infos = map(dataset.get_data_info, range(len(dataset)))
    truth = {info['img_id']: info['instances'] for info in infos}
    counts = confusion.count_objects(predictions, truth, len(names), score_thr=score_thr, iou_thr=iou_thr)
    return counts, [*names, confusion.BACKGROUND]


@exit_on_user_error()
def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if args.out.suffix != '.png':
        raise ValueError(f'the picture is a file that ends in .png, got {args.out}')
    for name in ('score_thr', 'iou_thr'):
        if not 0 <= (value := getattr(args, name)) <= 1:
            raise ValueError(f'--{name.replace("_", "-")} is from 0 to 1, got {value}')

    from repl_mm.analysis.confusion import as_png, as_table, most_confused
    from repl_mm.analysis.tables import render
    from repl_mm.cli._saved import load_saved
    from repl_mm.engine.errors import explain, printable
    from repl_mm.engine.files import write_atomic

    config, dataset, predictions = load_saved(args)
    if config.default_scope == 'repl_mm':
        raise ValueError("a language model's words have no confusion matrix: score them with eval_metric.py")
    with explain(f'{args.predictions} does not fit {args.config}'):
        counts, names = count(
            config.default_scope, predictions, dataset, score_thr=args.score_thr, iou_thr=args.iou_thr
        )
    picture = as_png(counts, names, title=args.predictions.stem)
    write_atomic(args.out, picture)
    write_atomic(args.out.with_suffix('.csv'), render([as_table(counts, names)], form='.csv').encode())
    most_confused(counts, names).print()
    print(printable(f'Wrote {args.out} and {args.out.with_suffix(".csv").name} beside it'))
