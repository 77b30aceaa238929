"""Score finished runs in FP32 and in INT8 (torchao, onnxruntime): Table XVII for your own models."""

from __future__ import annotations

import json
import logging
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import track

from repl_mm.analysis.tables import Table
from repl_mm.cli.common import add_trust, exit_on_user_error
from repl_mm.engine.errors import explain, printable

if TYPE_CHECKING:
    from mmengine.runner import Runner
    from torch import Tensor

PRECISIONS = ('FP32', 'INT8, torchao', 'INT8, onnxruntime')
BATCH = 16


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument('runs', nargs='+', type=Path, metavar='RUN', help='work directory of a finished run')
    parser.add_argument('--out', type=Path, required=True, help='folder for quantization.md and quantization.json')
    parser.add_argument(
        '--calibration', type=int, default=256, help='training images that fix the ranges (default: %(default)s)'
    )
    add_trust(parser)
    return parser


def load_run(folder: Path, *, work_dir: Path) -> Runner:
    """A runner with the run's last checkpoint, deployed."""
    from mmengine.runner import find_latest_checkpoint

    from repl_mm.analysis.runs import find_config
    from repl_mm.backbones import ReplMixin
    from repl_mm.cli.config import load_config
    from repl_mm.cli.runner import build_runner
    from repl_mm.deployment import deploy, fold_norms, takes_images
    from repl_mm.engine.weights import load_strict, read_checkpoint

    path = find_latest_checkpoint(str(folder))
    if path is None:
        raise ValueError(f'{folder} holds no checkpoint: give the work directory of a finished run')
    args = Namespace(
        config=str(find_config(folder)), cfg_options=None, launcher='none', local_rank=0, work_dir=str(work_dir)
    )
    config = load_config(args, sections=('model', 'train_dataloader', 'test_dataloader', 'test_evaluator'))
    config.update(load_from=None, resume=False, log_level='WARNING')
    runner = build_runner(config, loops=['test'])
    if not takes_images(runner.model):
        raise ValueError(f'INT8 is for networks that take images, and that of {folder} takes none: leave it out')
    load_strict(runner.model, read_checkpoint(path), source=path)
    if isinstance(runner.model.backbone, ReplMixin):
        runner.model = deploy(runner.model, fuse_all=True)
    else:  # the host's own, of an E2E run
        fold_norms(runner.model.eval().backbone)
    return runner


def calibration_images(runner: Runner, *, number: int) -> list[Tensor]:
    """Batches of training images, as the test pipeline's normalisation gives them, cut to one size."""
    import torch
    from mmengine.dataset import pseudo_collate
    from mmengine.runner import Runner

    with explain('cannot load the train data, which fixes the ranges of INT8'):
        dataset = Runner.build_dataloader(runner.cfg.train_dataloader, seed=0).dataset
    preprocessor = runner.model.data_preprocessor
    images = [preprocessor(pseudo_collate([dataset[i]]), False)['inputs'] for i in range(min(number, len(dataset)))]
    height, width = (min(image.shape[axis] for image in images) for axis in (2, 3))
    return list(torch.cat([image[:, :, :height, :width] for image in images]).split(BATCH))


def score_precisions(folder: Path, *, number: int, work_dir: Path) -> dict[str, dict[str, float]]:
    """Metrics and images per second in each precision."""
    import torch

    from repl_mm.analysis.compare import METRICS
    from repl_mm.benchmark.timing import time_interleaved
    from repl_mm.deployment import RawOutputs
    from repl_mm.export.quantization import quantize, quantize_onnx

    runner = load_run(folder, work_dir=work_dir)
    batches = [batch for batch in calibration_images(runner, number=number) if len(batch) > 1]
    if not batches:
        raise ValueError(
            f'the train data of {folder} has too few images to fix the ranges of INT8: at least 2 are needed'
        )
    static = runner.model
    models = dict(zip(PRECISIONS, (static, quantize(static, batches), quantize_onnx(static, batches)), strict=True))
    results = {}
    for precision, model in models.items():
        runner.model = model
        # COCO's -1 says that there is no object of a size.
        scores = runner.test().items()
        results[precision] = {key: float(value) for key, value in scores if key in METRICS and value != -1}
    with torch.no_grad():
        calls = {precision: partial(RawOutputs(model), batches[0]) for precision, model in models.items()}  # type: ignore[misc]
        times = time_interleaved(calls, seconds=10)
    for precision, seconds in times.items():
        results[precision]['images/s'] = len(batches[0]) / sorted(seconds)[len(seconds) // 2]
    return results


def as_table(results: dict[str, dict[str, dict[str, float]]]) -> Table:
    """One row per run and quantity; INT8 with its change."""
    from repl_mm.analysis.compare import METRICS

    rows = []
    for run, found in results.items():
        for key, reference in found['FP32'].items():
            places = 3 if key.startswith('coco') else 2 if key in METRICS else 1
            cells = [f'{reference:.{places}f}']
            for precision in PRECISIONS[1:]:
                value = found[precision][key]
                change = f'{value - reference:+.{places}f}' if key in METRICS else f'{value / reference:.2f} x'
                cells.append(f'{value:.{places}f} ({change})')
            rows.append([run, METRICS.get(key, key), *cells])
    return Table(['run', '', *PRECISIONS], 'llrrr', rows)


@exit_on_user_error()
def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if args.calibration < 2:
        raise ValueError(f'--calibration is at least 2, got {args.calibration}')

    import torch

    from repl_mm.analysis.runs import name_runs
    from repl_mm.benchmark.timing import describe
    from repl_mm.engine.files import write_atomic

    args.out.mkdir(parents=True, exist_ok=True)
    logging.getLogger().setLevel(logging.ERROR)  # onnxruntime asks for a step that changes nothing here
    names = name_runs(args.runs)
    results = {
        name: score_precisions(run, number=args.calibration, work_dir=args.out / 'logs' / name)
        for name, run in track(list(zip(names, args.runs, strict=True)), 'Scoring: ')
    }
    table = as_table(results)
    markdown = f'{table.markdown()}\n{describe(torch.device("cpu"))}\n'
    write_atomic(args.out / 'quantization.md', markdown.encode())
    write_atomic(args.out / 'quantization.json', (json.dumps(results, indent=2) + '\n').encode())
    table.print()
    print(printable(f'Wrote quantization.md and quantization.json to {args.out}'))
