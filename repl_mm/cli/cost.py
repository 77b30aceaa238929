"""What a config's network costs: predicted from the method's equations, and counted on the network itself."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.progress import track

from repl_mm.analysis.tables import Table
from repl_mm.cli.common import add_cfg_options, add_table_out, exit_on_user_error, show_tables
from repl_mm.engine.errors import explain

if TYPE_CHECKING:
    from repl_mm.analysis.cost import Cost

MIB = 2**20
COLUMNS = ('parameters', 'trainable', 'forward (GFLOP)', 'backward (GFLOP)', 'activations (MiB)', 'optimizer (MiB)')


def cells(cost: Cost, reference: Cost) -> list[str]:
    """Quantities in readable units, each with its change from E2E."""
    scales = ((1, ',.0f'), (1, ',.0f'), (1e9, ',.3f'), (1e9, ',.3f'), (MIB, ',.2f'))
    texts = []
    for value, base, (unit, spec) in zip(cost.values(), reference.values(), scales, strict=True):
        change = '' if value == base else f' ({100 * (value / base - 1):+.1f} %)'
        texts.append(f'{value / unit:{spec}}{change}')
    return texts


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument('config', help='a config with sites')
    parser.add_argument(
        '--size', nargs=2, type=int, metavar=('HEIGHT', 'WIDTH'), help='of the images (default: 224 224)'
    )
    add_table_out(parser)
    add_cfg_options(parser)
    return parser


@exit_on_user_error()
def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)

    from mmengine.logging import MMLogger

    from repl_mm.analysis.cost import (
        build_empty,
        count_cost,
        input_shape_of,
        optimizer_bytes,
        predict_cost,
        variants,
    )
    from repl_mm.cli.config import SCOPES, load_scoped_config

    config = load_scoped_config(args, sections=('model',), scopes=SCOPES)
    if args.size and min(args.size) < 1:
        raise ValueError(f'--size is at least 1 x 1, got {args.size[0]} x {args.size[1]}')
    MMLogger.get_instance('mmengine', log_level='WARNING')
    configs = variants(config)
    shape = input_shape_of(config, args.size)
    size = ' x '.join(map(str, shape[-2:]))
    with explain(f'cannot count {args.config} at {size}'):
        counted = {name: count_cost(c, shape) for name, c in track(configs.items(), 'Counting: ')}
    predicted = predict_cost(config, counted['E2E'], shape) if 'RepL' in configs else {}
    optimizer = config.get('optim_wrapper', {}).get('optimizer')
    rows = []
    for name, c in configs.items():
        state = f'{optimizer_bytes(build_empty(c), optimizer) / MIB:,.1f}' if optimizer else '–'
        rows.append([name, 'counted', *cells(counted[name], counted['E2E']), state])
        if name in predicted and name != 'E2E':
            agrees = predicted[name] == counted[name]
            figures = ['the same'] * 5 if agrees else cells(predicted[name], counted['E2E'])
            rows.append(['', 'predicted', *figures, ''])
    title = f'{args.config}, one {"image" if len(shape) == 3 else "sequence"} of {size}, float32'
    show_tables([Table(['', '', *COLUMNS], 'll' + 'r' * len(COLUMNS), rows, title=title)], args.out)
