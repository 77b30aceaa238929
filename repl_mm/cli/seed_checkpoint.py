"""Write a checkpoint of a config's model as it starts, for runs that shall start from the same weights."""

import io
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from repl_mm.cli.common import add_arguments, exit_on_user_error
from repl_mm.engine.errors import explain, printable


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument('config', help='a config file')
    parser.add_argument('out', type=Path, help='the checkpoint to write; other configs start from it by load_from=OUT')
    add_arguments(parser)
    return parser


@exit_on_user_error()
def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if args.out.is_dir():
        raise ValueError(f'{args.out} is a folder: give the name of a file, such as {args.out / "seed.pth"}')
    if args.out.suffix != '.pth':  # one slip, and it would be written over the config
        raise ValueError(f'the checkpoint to write ends in .pth, got {args.out}')

    import torch
    from mmengine.logging import MMLogger
    from mmengine.registry import init_default_scope
    from mmengine.runner import set_random_seed

    from repl_mm.cli.config import load_config
    from repl_mm.cli.runner import build_model
    from repl_mm.engine.files import write_atomic

    config = load_config(args, sections=('model',))
    # mmengine would list the initialisation of every parameter.
    MMLogger.get_instance('mmengine', log_level='WARNING')
    init_default_scope(config.default_scope)
    set_random_seed(config.get('randomness', {}).get('seed') or 0)
    model = build_model(config)
    with explain(f'cannot initialise the model of {args.config}'):
        model.init_weights()
    buffer = io.BytesIO()
    torch.save({'state_dict': model.state_dict()}, buffer)
    write_atomic(args.out, buffer.getvalue())
    print(printable(f'Wrote {args.out}'))
