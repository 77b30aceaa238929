"""What the command-line tools share: errors that a person can read, arguments, config, runner."""

import importlib.util
import os
import sys
import time
from argparse import Action, ArgumentError, ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.model import BaseModel
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from mmengine.runner._flexible_runner import FlexibleRunner

from repl_mm.engine.cpu import GlooRunner
from repl_mm.engine.errors import UNKNOWN_TYPE, explain, sentence
from repl_mm.engine.install import install

SHARDED = ('FlexibleRunner', 'repl_mm.FSDPStrategy')
CALLED = ('type', 'constructor')  # keys of a config whose values mmengine looks up, in registries and beyond
SCOPES = ('mmengine', 'mmcv', 'mmpretrain', 'mmdet', 'mmseg', 'repl_mm')


@contextmanager
def exit_on_user_error(*, on_interrupt: str = '') -> Iterator[None]:
    """End a tool on bad input with one sentence and exit code 2, and on Ctrl-C with 130; other errors pass.

    Use it as a decorator of ``main``.

    Args:
        on_interrupt: What to do after an interruption.
    """
    try:
        yield
    except KeyboardInterrupt:
        _leave(f'interrupted: {on_interrupt}'.removesuffix(': '), code=130)
    except FloatingPointError as error:
        _leave(f'error: {error}', code=1)
    except RuntimeError as error:
        if 'DataLoader worker' not in str(error):
            raise
        _leave(f'error: {sentence(error)}: it may have run out of memory', code=1)
    except (ValueError, OSError, KeyError) as error:
        if isinstance(error, KeyError) and not UNKNOWN_TYPE.search(str(error)):
            raise
        _leave(f'error: {sentence(error)}', code=2)


def _leave(message: str, *, code: int) -> None:
    rank = int(os.environ.get('RANK', os.environ.get('SLURM_PROCID', 0)))
    if rank > 0:
        # If the first process met the same, its launcher ends this one before the sentence comes twice.
        time.sleep(5)
        message = f'rank {rank}: {message}'
    print(message, file=sys.stderr, flush=True)
    raise SystemExit(code)


class CfgOptions(DictAction):
    """mmengine's KEY=VALUE arguments, with an error that argparse shows."""

    def __call__(
        self, parser: ArgumentParser, namespace: Namespace, values: Any, option_string: str | None = None
    ) -> None:
        try:
            super().__call__(parser, namespace, values, option_string)
        except (ValueError, AssertionError):
            given = ' '.join(values)
            raise ArgumentError(self, f'takes KEY=VALUE pairs such as train_cfg.max_epochs=3, got {given!r}') from None


class Trust(Action):
    """Lets torch unpickle whatever a file holds, from here on and in all child processes."""

    def __call__(self, *_: Any) -> None:
        os.environ['TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'] = '1'


def add_trust(parser: ArgumentParser) -> None:
    """The flag of all tools that read a checkpoint."""
    parser.add_argument(
        '--trust', nargs=0, action=Trust, help='read checkpoints that hold more than weights, and may run any code'
    )


def add_arguments(parser: ArgumentParser) -> None:
    """The flags that OpenMMLab's tools for training and testing have in common."""
    parser.add_argument('--work-dir', help='where logs and checkpoints go (default: work_dirs/<name of the config>)')
    parser.add_argument('--amp', action='store_true', help='mixed precision: float16 on a GPU, bfloat16 on a CPU')
    parser.add_argument(
        '--cfg-options', nargs='+', action=CfgOptions, metavar='KEY=VALUE', help='override settings of the config'
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by the launcher')


def add_picture_arguments(parser: ArgumentParser) -> None:
    """What the tools that write pictures have in common."""
    parser.add_argument('--out-dir', type=Path, required=True, help='folder for the pictures')
    parser.add_argument(
        '--cfg-options', nargs='+', action=CfgOptions, metavar='KEY=VALUE', help='override settings of the config'
    )
    parser.set_defaults(launcher='none', local_rank=0, work_dir=None)


def load_config(args: Namespace, *, sections: Sequence[str]) -> Config:
    """The config file of a tool, with the common arguments merged in.

    Raises:
        ValueError: A config that cannot be read or lacks a section, or a launch that cannot work.
    """
    install()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    check_launch(args.launcher)
    # A config is Python code and may raise anything.
    with explain(f'cannot read the config {args.config}', errors=Exception):
        config = Config.fromfile(args.config)
    with explain('cannot apply --cfg-options'):
        _require_registered(args.cfg_options or {})
        config.merge_from_dict(args.cfg_options or {})
    missing = [section for section in sections if config.get(section) is None]
    if missing:
        raise ValueError(f'the config {args.config} lacks {", ".join(missing)}: give a config of a whole experiment')
    strategy = (config.get('strategy') or {}).get('type')
    if (config.get('runner_type', 'Runner'), strategy) not in (('Runner', None), SHARDED):
        raise ValueError(
            f'runner_type {config.get("runner_type")!r} with strategy {strategy!r} is not supported: leave both out '
            "or take 'FlexibleRunner' with 'repl_mm.FSDPStrategy'"
        )
    hooks = [*(config.get('custom_hooks') or []), *(config.get('default_hooks') or {}).values()]
    types = [hook.get('type') for hook in hooks if isinstance(hook, Mapping)]
    if strategy is not None and any(getattr(kind, '__name__', str(kind)).endswith('EMAHook') for kind in types):
        raise ValueError("an EMAHook copies the network, and a sharded one can't be: leave out one of the two")
    if strategy is not None and config.get('env_cfg') is None:
        config.env_cfg = dict(dist_cfg=dict(backend='nccl'))  # the other runner's default
    config.launcher = args.launcher
    config.work_dir = args.work_dir or config.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    if config.get('default_scope') == 'mmpretrain':
        _complete_loaders(config)
    return config


def _require_registered(options: Mapping[str, Any]) -> None:
    """Let no option name a function of Python by its path: mmengine would import and call it."""
    scopes = (*SCOPES, *MODELS.children)
    for key, value in options.items():
        last, name = key.rpartition('.')[2], str(value)
        scope, dot, _ = name.rpartition('.')
        is_module = not dot and name.isidentifier() and importlib.util.find_spec(name) is not None
        if (
            (last in CALLED and (is_module or (dot and scope not in scopes)))
            or (last in ('default_scope', '_scope_') and name not in scopes)
            or last in ('imports', 'custom_imports')
        ):
            raise ValueError(
                f'{key} takes the name of a registered class, such as ResNet or mmdet.ResNet, or of a library, got '
                f'{value!r}: what a config shall import stands in the config file'
            )


def load_scoped_config(args: Namespace, *, sections: Sequence[str]) -> Config:
    """As :func:`load_config`, for a tool that needs no runner; the config's library becomes the default scope.

    Raises:
        ValueError: As there, or a config of another library.
    """
    config = load_config(args, sections=('default_scope', *sections))
    scopes = ('mmpretrain', 'mmdet', 'mmseg')
    if config.default_scope not in scopes:
        raise ValueError(f'default_scope is one of {", ".join(scopes)}, got {config.default_scope!r}')
    init_default_scope(config.default_scope)
    return config


def _complete_loaders(config: Config) -> None:
    """Set what mmpretrain's own tools add to its configs."""
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if loader := config.get(name):
            loader.setdefault('pin_memory', get_device() != 'cpu')
            loader.setdefault('persistent_workers', loader.get('num_workers', 0) > 0)
            loader.setdefault('collate_fn', dict(type='default_collate'))


def check_launch(launcher: str) -> None:
    """Make sure that the processes of a distributed run can work on this machine.

    Raises:
        ValueError: No launcher started this process, or there are more processes than GPUs.
    """
    if launcher == 'none':
        return
    if launcher == 'pytorch' and 'RANK' not in os.environ:
        raise ValueError('--launcher pytorch is for processes that torchrun started: use the dist_*.sh scripts')
    if launcher != 'pytorch' and get_device() == 'cpu':
        raise ValueError(f'--launcher {launcher} needs GPUs, and this machine has none: use --launcher pytorch')
    size = dict(pytorch='LOCAL_WORLD_SIZE', slurm='SLURM_NTASKS_PER_NODE', mpi='OMPI_COMM_WORLD_LOCAL_SIZE')[launcher]
    processes, gpus = int(os.environ.get(size, 1)), torch.cuda.device_count()
    if 0 < gpus < processes:
        raise ValueError(
            f'{processes} processes were started on this machine, which has {gpus} GPU(s): start one for each GPU, '
            'or set CUDA_VISIBLE_DEVICES=-1 to run them on the CPU'
        )


def build_runner(config: Config, *, loops: Sequence[str]) -> Runner | FlexibleRunner:
    """The runner of a config, with the data of its loops loaded.

    Args:
        config: As it comes from :func:`load_config`.
        loops: Which of ``'train'``, ``'val'`` and ``'test'``.

    Raises:
        ValueError: Something in the config cannot be built, or a data set is empty.
    """
    with explain(f'cannot build {config.filename}'):
        runner = _runner_type(config).from_cfg(config)
    for loop in loops:
        with explain(f'cannot load the {loop} data, check {loop}_dataloader in the config'):
            loader = getattr(runner, f'{loop}_loop').dataloader
        if len(loader) == 0:
            raise ValueError(
                f'{loop}_dataloader gives no batch, its data set has {len(loader.dataset)} samples: check its paths '
                'and its batch_size'
            )
    if 'train' in loops and isinstance(runner, Runner):  # a strategy builds it behind the model
        with explain('cannot build the optimizer'):
            runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    return runner


def _runner_type(config: Config) -> type[Runner | FlexibleRunner]:
    if config.get('runner_type') == 'FlexibleRunner':
        return FlexibleRunner
    return GlooRunner if config.launcher != 'none' and get_device() == 'cpu' else Runner


def build_model(config: Config) -> BaseModel:
    """The model of a config, as its runner would build it.

    Raises:
        ValueError: It cannot be built.
    """
    with explain(f'cannot build the model of {config.filename}'):
        if 'data_preprocessor' in config:
            config.model.setdefault('data_preprocessor', config.data_preprocessor)
        return MODELS.build(config.model)
