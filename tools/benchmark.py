"""Measure on this machine what replacement is worth: tables (CSV, Markdown) and a picture.

python tools/benchmark.py latency configs/classification/resnet101-repl_4xb128-90e_in1k.py --batch-size 1 32 --out look
"""

import itertools
from argparse import ArgumentParser, Namespace
from pathlib import Path

from repl_mm.cli import CfgOptions, explain, friendly, load_scoped_config, write

# isort: split
import torch
from mmengine.device import get_device
from mmengine.logging import MMLogger
from rich.console import Console
from rich.progress import track

from repl_mm.analysis.latency import BACKENDS, as_csv, as_markdown, as_png, as_table, check_backends, describe, measure


def parse_args() -> Namespace:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest='kind', required=True)
    latency = kinds.add_parser('latency', help='one forward pass: E2E, dynamic, deployed, deployed and folded')
    latency.add_argument('configs', nargs='+', metavar='CONFIG', help='configs with sites')
    latency.add_argument('--batch-size', nargs='+', type=int, default=[1, 16], help='(default: 1 16)')
    latency.add_argument('--size', nargs=2, type=int, default=[224, 224], metavar=('HEIGHT', 'WIDTH'))
    latency.add_argument(
        '--backend',
        nargs='+',
        default=['fp32'],
        help=f'out of {", ".join(BACKENDS)}; joined by + (default: fp32)',
    )
    latency.add_argument(
        '--policy', nargs='+', choices=['interval', 'budget'], help='how sites are chosen (default: as the configs say)'
    )
    latency.add_argument('--seconds', type=float, default=20, help='time for each row (default: %(default)s)')
    latency.add_argument('--device', default=get_device(), help='(default: %(default)s)')
    latency.add_argument('--out', type=Path, required=True, help='folder for latency.csv, latency.md and latency.png')
    latency.add_argument(
        '--cfg-options', nargs='+', action=CfgOptions, metavar='KEY=VALUE', help='override settings of the configs'
    )
    parser.set_defaults(launcher='none', local_rank=0, work_dir=None)
    return parser.parse_args()


@friendly()
def main() -> None:
    args = parse_args()
    if min(*args.batch_size, *args.size) < 1:
        raise ValueError('--batch-size and --size are at least 1')
    if not 0 <= args.seconds <= 3600:
        raise ValueError(f'--seconds is from 0 to 3600, got {args.seconds}')
    check_backends(args.backend)
    MMLogger.get_instance('mmengine', log_level='WARNING')
    with explain(f'cannot use --device {args.device}'):
        device = torch.zeros(1, device=args.device).device
    configs = []
    for path, policy in itertools.product(args.configs, args.policy or [None]):
        config = load_scoped_config(Namespace(**vars(args), config=path), sections=('model',))
        if policy is not None:
            with explain(f'cannot set the policy of {path}'):
                config.model.backbone.repl.policy = policy
        configs.append(config)
    cases = [(c, backend, batch) for c in configs for backend in args.backend for batch in args.batch_size]
    rows = []
    for config, backend, batch in track(cases, 'Measuring: '):
        with explain(f'cannot measure {config.filename}'):
            rows += measure(
                config, backend=backend, batch=batch, size=tuple(args.size), device=device, seconds=args.seconds
            )
        write(args.out / 'latency.csv', as_csv(rows).encode())
    conditions = describe(device)
    write(args.out / 'latency.md', as_markdown(rows, conditions=conditions).encode())
    write(args.out / 'latency.png', as_png(rows, conditions=conditions))
    Console().print(as_table(rows))
    print(conditions)
    print(f'Wrote latency.csv, latency.md and latency.png to {args.out}')


if __name__ == '__main__':
    main()
