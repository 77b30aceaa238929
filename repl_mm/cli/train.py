"""Train a model of mmpretrain, mmdet or mmseg, or a language model, from its config."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from repl_mm.cli.common import add_arguments, add_trust, add_verbose, exit_on_user_error, launched_rank

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


def say(message: str) -> None:
    """Once, not from each process."""
    if launched_rank() == 0:
        print(message, file=sys.stderr)


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


def use_adaptive_sites(config: Config) -> None:
    """Let a training that chooses its sites do so."""
    from repl_mm.backbones.configs import is_adaptive

    if not is_adaptive(config):
        return
    types = [name_of(hook.get('type')).rpartition('.')[2] for hook in config.custom_hooks]
    if 'AdaptiveHook' not in types:
        config.custom_hooks.append(dict(type='repl_mm.AdaptiveHook'))
    config.setdefault('find_unused_parameters', True)  # on several processes


def start_watchdog(config: Config) -> None:
    """Watch over several processes from here on; a hook in the config says for how long each may stall."""
    from repl_mm.engine.hooks.watchdog import TIMEOUT, Watchdog

    hooks = [hook for hook in config.custom_hooks if isinstance(hook, Mapping)]
    given = [hook.get('timeout', TIMEOUT) for hook in hooks if hook.get('type') == 'repl_mm.WatchdogHook']
    watchdog = Watchdog(*given[:1] or [TIMEOUT], rank=launched_rank())
    if config.launcher != 'none':
        watchdog.start()


def checkpoint_folder(config: Config) -> Path:
    """Where the config's runs write checkpoints."""
    out_dir = (config.default_hooks['checkpoint'] or {}).get('out_dir')
    return Path(out_dir, Path(config.work_dir).name) if out_dir else Path(config.work_dir)


def use_checkpoint(config: Config, path: str) -> None:
    """Let the run go on from a checkpoint."""
    from repl_mm.engine.resume import describe, require_resumable
    from repl_mm.engine.weights import read_checkpoint

    checkpoint = read_checkpoint(path)
    require_resumable(checkpoint, source=path)
    config.update(load_from=path, resume=True)
    # mmengine takes the seed from the checkpoint too, but when the order of the samples is settled.
    if 'seed' in checkpoint['meta']:
        config.randomness = dict(config.get('randomness') or {}) | dict(seed=checkpoint['meta']['seed'])
    say(f'resuming {describe(checkpoint["meta"])} from {path}')


def use_newest(config: Config) -> None:
    """Let the run go on from the newest checkpoint of its folder, where there is one."""
    from repl_mm.engine.resume import find_newest

    folder = checkpoint_folder(config)
    if path := find_newest(folder):
        use_checkpoint(config, str(path))
    else:
        config.resume = False
        say(f'nothing to resume from in {folder}: the run begins anew')


def train(config: Config, *, verbose: bool) -> None:
    from mmengine.model import BaseModel

    from repl_mm.cli.runner import build_model, build_runner
    from repl_mm.engine.errors import explain
    from repl_mm.engine.weights import load_strict, read_checkpoint

    loops = ['train'] + ['val'] * (config.get('val_cfg') is not None)
    runner = build_runner(config, loops=loops, verbose=verbose)
    if config.get('resume'):
        path = config.load_from
        model = runner.model if isinstance(runner.model, BaseModel) else build_model(config)  # sharded: a config
        load_strict(model, read_checkpoint(path), source=path)
        runner.load_or_resume = explain(f'cannot resume from {path}', errors=Exception)(runner.load_or_resume)
    runner.train()


@exit_on_user_error(on_interrupt='run again with --resume to continue from the last checkpoint')
def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)

    from repl_mm.cli.config import load_config
    from repl_mm.engine.files import lock_folder

    config = load_config(args, sections=('model', 'train_dataloader', 'train_cfg', 'optim_wrapper'))
    if args.amp:
        use_amp(config)
    if args.auto_scale_lr:
        use_scaled_lr(config)
    use_exact_resume(config)
    use_adaptive_sites(config)
    start_watchdog(config)
    resume = args.resume
    if resume is None and config.get('resume'):  # as mmengine's own configs ask for it
        resume = config.get('load_from') or 'auto'
    if resume not in (None, 'auto'):  # a bad file leaves no folder behind
        use_checkpoint(config, resume)
    with lock_folder(Path(config.work_dir)) if launched_rank() == 0 else nullcontext():
        if resume == 'auto':
            use_newest(config)
        elif resume is None and any(checkpoint_folder(config).glob('*.pth')):
            say(
                f'{checkpoint_folder(config)} holds checkpoints of an earlier run: this one begins anew, and writes '
                'over those of the same name; --resume would go on'
            )
        train(config, verbose=args.verbose)
