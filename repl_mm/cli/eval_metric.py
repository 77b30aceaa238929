"""Score predictions that test.py --out has saved, by the metrics of a config, without the network."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from repl_mm.cli.common import add_cfg_options, exit_on_user_error


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config whose test_evaluator scores them')
    parser.add_argument('predictions', type=Path, help='the .pkl file that test.py --out has written')
    add_cfg_options(parser)
    return parser


@exit_on_user_error()
def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)

    from mmengine.evaluator import Evaluator

    from repl_mm.analysis.compare import METRICS
    from repl_mm.analysis.tables import Table
    from repl_mm.cli._saved import load_saved
    from repl_mm.engine.errors import explain

    config, dataset, predictions = load_saved(args)
    with explain(f'{args.predictions} does not fit the test_evaluator of {args.config}'):
        evaluator = Evaluator(config.test_evaluator)
        evaluator.dataset_meta = dataset.metainfo
        scores = evaluator.offline_evaluate(predictions)
    rows = [[METRICS.get(key, key), f'{float(value):.{3 if "coco" in key else 2}f}'] for key, value in scores.items()]
    Table(['metric', 'value'], 'lr', rows).print()
