"""Train a model of mmpretrain, mmdet or mmseg from its config."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repl_mm.cli.common import add_arguments, add_trust, add_verbose, exit_on_user_error

if TYPE_CHECKING:
    from mmengine.config import Config


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--resume', nargs='?', const='auto', help='continue from this checkpoint, or from the last one in the work dir'
    )
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size')
    add_arguments(parser)
    add_verbose(parser)
    add_trust(parser)
    return parser


def use_amp(config: Config) -> None:
    kind = config.optim_wrapper.get('type', 'OptimWrapper')
    if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise ValueError(f"--amp needs an optim_wrapper of type 'OptimWrapper', the config has {kind!r}")
    config.optim_wrapper.type = 'AmpOptimWrapper'


def use_scaled_lr(config: Config) -> None:
    if 'base_batch_size' not in config.get('auto_scale_lr', {}):
        raise ValueError('--auto-scale-lr needs auto_scale_lr.base_batch_size: set it in the config')
    config.auto_scale_lr.enable = True


def name_of(kind: str | type | None) -> str:
    """What a class of mmengine is called, however a config names it."""
    return getattr(kind, '__name__', str(kind)).removeprefix('mmengine.')


def use_exact_resume(config: Config) -> None:
    """Let the config's loop, checkpoints and hooks be those that survive bad luck; see docs/long_runs.md."""
    loop = config.train_cfg
    if 'by_epoch' in loop and 'type' not in loop:
        loop['type'] = 'EpochBasedTrainLoop' if loop.pop('by_epoch') else 'IterBasedTrainLoop'
    if name_of(loop.get('type')) in ('EpochBasedTrainLoop', 'IterBasedTrainLoop'):
        loop['type'] = f'repl_mm.{name_of(loop["type"])}'
    hooks = config.get('default_hooks') or {}
    checkpoint = hooks.get('checkpoint', dict(type='CheckpointHook', interval=1))  # None: the config wants none
    if checkpoint and name_of(checkpoint.get('type')) == 'CheckpointHook':
        checkpoint = checkpoint | dict(type='repl_mm.CheckpointHook')
    config.default_hooks = dict(hooks) | dict(checkpoint=checkpoint)
    given = [*(config.get('custom_hooks') or [])]
    types = [name_of(hook.get('type')).rpartition('.')[2] for hook in given if isinstance(hook, Mapping)]
    ours = ('repl_mm.CostHook', 'repl_mm.FiniteLossHook', 'repl_mm.WatchdogHook')
    config.custom_hooks = given + [dict(type=kind) for kind in ours if kind.removeprefix('repl_mm.') not in types]


def checkpoint_folder(config: Config) -> Path:
    """Where the config's runs write checkpoints."""
    out_dir = (config.default_hooks['checkpoint'] or {}).get('out_dir')
    return Path(out_dir, Path(config.work_dir).name) if out_dir else Path(config.work_dir)


def use_checkpoint(config: Config, path: str) -> Mapping[str, Any]:
    """Let the run go on from a checkpoint, which is returned."""
    from repl_mm.engine.weights import read_checkpoint

    checkpoint = read_checkpoint(path)
    missing = {'optimizer', 'meta', 'message_hub'} - set(checkpoint)
    if 'optimizer' in missing:
        raise ValueError(f'{path} holds weights alone: start from them with --cfg-options load_from={path}')
    if missing or not {'iter', 'epoch'} <= set(checkpoint['meta']):
        raise ValueError(f'{path} was not written by mmengine: start from it with --cfg-options load_from={path}')
    config.update(load_from=path, resume=True)
    # mmengine takes the seed from the checkpoint too, but when the order of the samples is settled.
    if 'seed' in checkpoint['meta']:
        config.randomness = dict(config.get('randomness') or {}) | dict(seed=checkpoint['meta']['seed'])
    return checkpoint


@exit_on_user_error(on_interrupt='run again with --resume to continue from the last checkpoint')
def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)

    from mmengine.model import BaseModel

    from repl_mm.cli.config import load_config
    from repl_mm.cli.runner import build_model, build_runner
    from repl_mm.engine.checkpoints import find_newest
    from repl_mm.engine.weights import load_strict

    config = load_config(args, sections=('model', 'train_dataloader', 'train_cfg', 'optim_wrapper'))
    if args.amp:
        use_amp(config)
    if args.auto_scale_lr:
        use_scaled_lr(config)
    use_exact_resume(config)
    path = find_newest(checkpoint_folder(config)) if args.resume == 'auto' else args.resume
    if args.resume and path is None:
        print(f'nothing to resume from in {checkpoint_folder(config)}: the run begins anew', file=sys.stderr)
    if path is not None:
        checkpoint = use_checkpoint(config, str(path))
        print(f'resuming from {path}', file=sys.stderr)
    loops = ['train'] + ['val'] * (config.get('val_cfg') is not None)
    runner = build_runner(config, loops=loops, verbose=args.verbose)
    if path is not None:
        model = runner.model if isinstance(runner.model, BaseModel) else build_model(config)  # sharded: a config
        load_strict(model, checkpoint, source=path)
        del checkpoint  # it holds the optimizer's state as well
    runner.train()
