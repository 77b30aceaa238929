"""Test a checkpoint of mmpretrain, mmdet, mmseg, or of a language model."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from repl_mm.cli.common import add_arguments, add_trust, add_verbose, exit_on_user_error

if TYPE_CHECKING:
    from mmengine.config import Config


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint that training has written')
    parser.add_argument(
        '--out', help="predictions: a .pkl file, COCO's .bbox.json file (mmdet), or a folder of label images (mmseg)"
    )
    parser.add_argument('--show-dir', type=Path, help='folder for pictures of the predictions')
    parser.add_argument(
        '--show-score-thr', type=float, default=0.3, help='least score of a box in the pictures (default: %(default)s)'
    )
    parser.add_argument('--tta', action='store_true', help="test-time augmentation, as the config's tta_model says")
    add_arguments(parser)
    add_verbose(parser)
    add_trust(parser)
    return parser


def use_out(config: Config, out: str) -> None:
    """Let the host's own metric write the form that its benchmark takes."""
    forms = {
        'mmdet': ('.bbox.json', 'CocoMetric', 'outfile_prefix', "ends in .pkl, or in .bbox.json for COCO's form"),
        'mmseg': ('', 'IoUMetric', 'output_dir', 'ends in .pkl, or is a folder for label images'),
    }
    suffix, kind, key, allowed = forms.get(config.default_scope, (None, None, None, 'ends in .pkl'))
    if suffix is None or ''.join(Path(out).suffixes[-2:]) != suffix:
        raise ValueError(f'--out {allowed}, got {out!r}')
    evaluators = config.test_evaluator if isinstance(config.test_evaluator, list) else [config.test_evaluator]
    metrics = [metric for metric in evaluators if metric.type.endswith(kind)]
    if not metrics:
        raise ValueError(f'--out {out} is written by {kind}: set one as test_evaluator in the config')
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    metrics[0][key] = out.removesuffix(suffix)


def use_amp(config: Config) -> None:
    from mmengine.device import get_device

    if get_device() == 'cpu' and config.default_scope == 'mmdet':
        raise ValueError("--amp is bfloat16 on a CPU, which mmdet's metrics cannot read: leave it out")
    config.test_cfg.fp16 = True


def use_tta(config: Config) -> None:
    if 'tta_model' not in config or 'tta_pipeline' not in config:
        raise ValueError('--tta needs tta_model and tta_pipeline: set them in the config')
    config.model = dict(**config.tta_model, module=config.model)
    config.test_dataloader.dataset.pipeline = config.tta_pipeline


@exit_on_user_error()
def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)

    from repl_mm.cli.config import load_config
    from repl_mm.cli.runner import build_runner
    from repl_mm.engine.predictions import DumpPredictions
    from repl_mm.engine.weights import load_strict, read_checkpoint
    from repl_mm.visualization import PictureHook

    config = load_config(args, sections=('default_scope', 'model', 'test_dataloader', 'test_cfg', 'test_evaluator'))
    as_pickle = bool(args.out) and args.out.endswith(('.pkl', '.pickle'))
    if args.out and not as_pickle:
        use_out(config, args.out)
    if args.show_dir and config.default_scope == 'repl_mm':
        raise ValueError('--show-dir draws on images, and a language model has none: leave it out')
    config.update(load_from=args.checkpoint, resume=False)
    if args.amp:
        use_amp(config)
    if args.tta:
        use_tta(config)
    checkpoint = read_checkpoint(args.checkpoint)
    runner = build_runner(config, loops=['test'], verbose=args.verbose)
    load_strict(runner.model, checkpoint, source=args.checkpoint)
    if args.show_dir:
        runner.register_hook(PictureHook(args.show_dir, score_thr=args.show_score_thr))
    if as_pickle:
        runner.test_evaluator.metrics.append(DumpPredictions(args.out))
    runner.test()
