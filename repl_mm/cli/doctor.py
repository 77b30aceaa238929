"""What this machine can do with the project: each part against an oracle, in minutes."""

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from repl_mm.cli.common import exit_on_user_error


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument('--device', choices=['cpu', 'cuda'], help='what to look at (default: a GPU where there is one)')
    parser.add_argument(
        '--ranks', type=int, default=1, help='processes that train together, by NCCL or on a CPU by Gloo (default: 1)'
    )
    parser.add_argument('--out', type=Path, metavar='FILE.json', help='write what was found, to send it to somebody')
    return parser


@exit_on_user_error()
def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if not 1 <= args.ranks <= 64:
        raise ValueError(f'--ranks is from 1 to 64, got {args.ranks}')
    if args.out and args.out.suffix != '.json':
        raise ValueError(f'--out is a file that ends in .json, got {args.out}')

    import torch

    from repl_mm.analysis.tables import Table
    from repl_mm.cli._doctor import as_json, describe_versions, examine
    from repl_mm.engine.files import write_atomic

    device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    if device == 'cuda' and not torch.cuda.is_available():
        raise ValueError('torch sees no GPU here: take --device cpu, or install a torch that is built for CUDA')
    if device == 'cuda' and args.ranks > torch.cuda.device_count():
        raise ValueError(f'--ranks {args.ranks} needs as many GPUs, torch sees {torch.cuda.device_count()}')
    versions = describe_versions(torch.device(device))
    Table(['', ''], 'll', [[name, text] for name, text in versions.items()]).print()
    found = list(examine(torch.device(device), ranks=args.ranks))
    rows = [[check.name, check.result, f'{check.seconds:.1f}', check.detail] for check in found]
    Table(['check', 'result', 'seconds', ''], 'llrl', rows, title=f'On {device}').print()
    if args.out:
        write_atomic(args.out, as_json(versions, device, found).encode())
        print(f'Wrote {args.out}')
    if any(check.result == 'failed' for check in found):
        raise SystemExit(1)
