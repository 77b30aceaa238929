"""Measure on this machine what replacement is worth: tables (CSV, Markdown) and a picture.

python tools/benchmark.py latency configs/classification/resnet101-repl_4xb128-90e_in1k.py --batch-size 1 32 --out look
python tools/benchmark.py train configs/classification/resnet34-repl_4xb128-90e_in1k.py --batch-size 2 16 --out look
python tools/benchmark.py train --quick --out look
python tools/benchmark.py train --full --predict a100 --out look
"""

from __future__ import annotations

import itertools
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rich.progress import track

from repl_mm.benchmark import BACKENDS
from repl_mm.cli.common import add_cfg_options, add_device, exit_on_user_error
from repl_mm.engine.errors import explain, printable

if TYPE_CHECKING:
    import torch
    from mmengine.config import Config

    Case = tuple[Config, str, int, tuple[int, ...]]  # config, backend, batch, size

CONFIGS = Path(__file__).parents[2] / 'configs'
DEPTH_110 = {'model.backbone.depth': 110}
# The published rows: config, overrides, size of the images or sequences, batch for --quick and for --full.
SUITE = [
    ('demo/resnet32-repl_digits.py', {}, (32, 32), 128, 1024),
    ('demo/resnet32-repl_digits.py', DEPTH_110, (32, 32), 64, 1024),
    ('demo/vit-tiny-repl_digits.py', {}, (32, 32), 128, 512),
    ('classification/resnet34-repl_4xb128-90e_in1k.py', {}, (224, 224), 2, 128),
    ('classification/resnet101-repl_4xb128-90e_in1k.py', {}, (224, 224), 2, 128),
    ('classification/resnet152-repl_4xb128-90e_in1k.py', {}, (224, 224), 2, 128),
    ('classification/vit-tiny-p16-repl_4xb256-90e_in1k.py', {}, (224, 224), 4, 256),
    ('classification/vit-small-p16-repl_4xb256-90e_in1k.py', {}, (224, 224), 2, 256),
    ('classification/vit-base-p16-repl_4xb256-90e_in1k.py', {}, (224, 224), 2, 256),
    ('detection/retinanet_r50-repl_fpn_4xb2-100e_coco.py', {}, (256, 256), 1, 2),
    ('detection/retinanet_r101-repl_fpn_4xb2-100e_coco.py', {}, (256, 256), 1, 2),
    ('segmentation/deeplabv3_r50-d8-repl_1xb16-30k_cityscapes-768x768.py', {}, (128, 128), 2, 16),
    ('segmentation/deeplabv3plus_r50-d8-repl_1xb16-30k_cityscapes-768x768.py', {}, (128, 128), 2, 16),
    ('segmentation/deeplabv3_r101-d8-repl_1xb16-30k_cityscapes-768x768.py', {}, (128, 128), 2, 16),
    ('segmentation/deeplabv3plus_r101-d8-repl_1xb16-30k_cityscapes-768x768.py', {}, (128, 128), 2, 16),
    ('language/transformer-lm-12l-repl_1xb64-20e_wikitext2.py', {}, (128,), 2, 64),
]
FULL_SIZES = {'detection': (800, 1344), 'segmentation': (768, 768)}


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest='kind', required=True)
    forward = kinds.add_parser('latency', help='one forward pass: E2E, dynamic, deployed, deployed and folded')
    forward.add_argument(
        '--policy', nargs='+', choices=['interval', 'budget'], help='how sites are chosen (default: as the configs say)'
    )
    step = kinds.add_parser('train', help='one training step: E2E, dropped blocks, RepL, and other ways to save')
    step.add_argument(
        '--variant',
        nargs='+',
        help='rows beside E2E, their reference (default: all)',
    )
    step.add_argument(
        '--predict',
        metavar='DEVICE',
        help='measure nothing, predict for a100, h100 or a .json file with the figures of a device (fp32, tf32 and '
        'bf16 in TFLOPS, bandwidth in GB/s)',
    )
    suite = step.add_mutually_exclusive_group()
    suite.add_argument('--quick', action='store_true', help='the published rows at sizes for two CPU cores')
    suite.add_argument('--full', action='store_true', help='the published rows at their published sizes, for a GPU')
    for kind, many in ((forward, '+'), (step, '*')):
        kind.add_argument('configs', nargs=many, metavar='CONFIG', help='configs with sites')
        kind.add_argument('--batch-size', nargs='+', type=int, default=[1, 16], help='(default: 1 16)')
        kind.add_argument(
            '--size', nargs=2, type=int, metavar=('HEIGHT', 'WIDTH'), help='of the images (default: 224 224)'
        )
        kind.add_argument(
            '--backend', nargs='+', default=['fp32'], help=f'out of {", ".join(BACKENDS)}; joined by + (default: fp32)'
        )
        kind.add_argument('--seconds', type=float, default=20, help='time for each model (default: %(default)s)')
        add_device(kind)
        kind.add_argument('--out', type=Path, required=True, help='folder for the tables and the picture')
        add_cfg_options(kind)
    return parser


def load(args: Namespace, path: str | Path, sections: tuple[str, ...]) -> Config:
    from repl_mm.cli.config import IMAGE_SCOPES, SCOPES, load_scoped_config

    scopes = SCOPES if args.kind == 'train' else IMAGE_SCOPES
    return load_scoped_config(Namespace(**vars(args) | dict(config=str(path))), sections=sections, scopes=scopes)


def latency_cases(args: Namespace) -> list[Case]:
    configs = []
    for path, policy in itertools.product(args.configs, args.policy or [None]):
        config = load(args, path, ('model',))
        if policy is not None:
            with explain(f'cannot set the policy of {path}'):
                config.model.backbone.repl.policy = policy
        configs.append(config)
    return list(itertools.product(configs, args.backend, args.batch_size, [tuple(args.size or (224, 224))]))


def training_cases(args: Namespace) -> list[Case]:
    if bool(args.configs) == (args.quick or args.full):
        raise ValueError('give either configs, or one of --quick and --full, which bring their own')
    sections = ('model', 'optim_wrapper')
    if args.configs:
        from repl_mm.analysis.cost import input_shape_of

        configs = [load(args, path, sections) for path in args.configs]
        sizes = [input_shape_of(config, args.size)[-2:] for config in configs]
        return [
            (config, backend, batch, size)
            for config, size in zip(configs, sizes, strict=True)
            for backend, batch in itertools.product(args.backend, args.batch_size)
        ]
    cases = []
    for path, overrides, size, quick, full in SUITE:
        config = load(args, CONFIGS / path, sections)
        config.merge_from_dict(overrides)
        batch, size = (full, FULL_SIZES.get(path.split('/')[0], size)) if args.full else (quick, size)
        cases += [(config, backend, batch, size) for backend in args.backend]
    return cases


def measure_case(args: Namespace, case: Case, device: torch.device) -> list[Any]:
    from repl_mm.benchmark import latency, predict
    from repl_mm.benchmark.training import measure_steps
    from repl_mm.benchmark.variants import build_variants, name_of, variants_for

    config, backend, batch, size = case
    options = dict(backend=backend, batch=batch, size=size, device=device, seconds=args.seconds)
    if args.kind == 'latency':
        return latency.measure(config, **options)
    names = args.variant or variants_for(config, backend)
    variants = build_variants(config, list(dict.fromkeys(['E2E', *names])))
    if args.predict:
        return predict.predict_steps(
            variants, args.predict, model=name_of(config), batch=batch, size=size, backend=backend
        )
    return measure_steps(variants, model=name_of(config), **options)


@exit_on_user_error()
def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if min([*args.batch_size, *(args.size or ())]) < 1:
        raise ValueError('--batch-size and --size are at least 1')
    if not 0 <= args.seconds <= 3600:
        raise ValueError(f'--seconds is from 0 to 3600, got {args.seconds}')

    import torch
    from mmengine.device import get_device
    from mmengine.logging import MMLogger

    from repl_mm.analysis.tables import as_csv
    from repl_mm.benchmark import latency, predict, report
    from repl_mm.benchmark.devices import find_device
    from repl_mm.benchmark.step import check_training_backends
    from repl_mm.benchmark.timing import check_backends, describe
    from repl_mm.engine.files import write_atomic

    (check_backends if args.kind == 'latency' else check_training_backends)(args.backend)
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f'--out is a folder, and {args.out} is a file')
    MMLogger.get_instance('mmengine', log_level='WARNING')
    with explain(f'cannot use --device {args.device}'):
        device = torch.zeros(1, device=args.device or get_device()).device
    if predicted := getattr(args, 'predict', None):
        for backend in args.backend:
            predict.check_predictable(backend, find_device(predicted))
    tables: ModuleType = latency if args.kind == 'latency' else report
    cases: Callable[[Namespace], list[Case]] = latency_cases if args.kind == 'latency' else training_cases
    rows = []
    for case in track(cases(args), 'Measuring: '):
        with explain(f'cannot measure {case[0].filename}'):
            rows += measure_case(args, case, device)
        write_atomic(args.out / f'{args.kind}.csv', as_csv(rows).encode())
    if predicted:
        table, conditions = (
            predict.as_table(rows),
            predict.conditions(predicted, args.backend, ' '.join(row.left_out for row in rows)),
        )
        write_atomic(args.out / f'{args.kind}.md', f'{table.markdown()}\n{conditions}\n'.encode())
        table.print()
        print(conditions)
        print(printable(f'Wrote {args.kind}.csv and {args.kind}.md to {args.out}'))
        return
    conditions = describe(device)
    write_atomic(args.out / f'{args.kind}.md', tables.as_markdown(rows, conditions=conditions).encode())
    write_atomic(args.out / f'{args.kind}.png', tables.as_png(rows, conditions=conditions))
    tables.as_table(rows).print()
    print(conditions)
    print(printable(f'Wrote {args.kind}.csv, {args.kind}.md and {args.kind}.png to {args.out}'))
