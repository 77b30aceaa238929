"""The config of a tool, and whether this machine can run it."""

import os
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.registry import init_default_scope

from repl_mm.cli._config_checks import check_config
from repl_mm.engine.errors import HOST_ERRORS, explain
from repl_mm.engine.files import require_regular
from repl_mm.engine.install import install
from repl_mm.engine.logs import hide_warnings
from repl_mm.engine.lookup import trust

KEY = re.compile(r'[^\W\d]\w*(\.\w+)*')
IMAGE_SCOPES = ('mmpretrain', 'mmdet', 'mmseg')
SCOPES = (*IMAGE_SCOPES, 'repl_mm')
SHARDED = ('FlexibleRunner', 'repl_mm.FSDPStrategy')


def load_config(args: Namespace, *, sections: Sequence[str]) -> Config:
    """The config file of a tool, with the common arguments merged in.

    Raises:
        ValueError: A config that cannot be read or lacks a section, or a launch that cannot work.
    """
    if not getattr(args, 'verbose', False):
        hide_warnings()
    install()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    check_launch(args.launcher)
    require_regular(args.config)
    # A config is Python code and may raise anything.
    with explain(f'cannot read the config {args.config}', errors=Exception):
        config = Config.fromfile(args.config)
        _leave_our_scope(config._cfg_dict)
    trust(config)
    with explain('cannot apply --cfg-options', errors=(*HOST_ERRORS, AttributeError)):
        options = _parse_options(args.cfg_options or [])
        if bad := [key for key in options if not KEY.fullmatch(key)]:
            raise ValueError(f'a key is names and numbers with dots between them, got {bad[0]!r}')
        if imports := [key for key in options if key.partition('.')[0] == 'custom_imports']:
            raise ValueError(f'{imports[0]} would run code: what a config shall import stands in the config file')
        _merge(config, options)
    check_config(config)
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
    if not str(args.work_dir or '').isprintable():
        raise ValueError(f'--work-dir takes a name of characters that can be shown, got {args.work_dir!r}')
    config.work_dir = args.work_dir or config.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    if config.get('default_scope') == 'mmpretrain':
        _complete_loaders(config)
    return config


def _leave_our_scope(section: Any) -> None:
    """Undo that ``_base_ = 'repl_mm::...'`` puts all sections into our scope: the hosts' classes are not in it.

    Our configs name their library themselves.
    """
    if isinstance(section, dict):
        if section.get('_scope_') == 'repl_mm':
            del section['_scope_']
        section = list(section.values())
    for value in section if isinstance(section, list) else ():
        _leave_our_scope(value)


def _merge(config: Config, options: Mapping[str, Any]) -> None:
    """As mmengine does, which takes an item of a list for a dict to merge into."""
    for key, value in options.items():
        place, _, last = key.rpartition('.')
        if last.isdecimal() and not isinstance(value, Mapping):
            raise ValueError(f'{key} is an item of a list, which takes KEY=VALUE below it: give all of {place}')
        config.merge_from_dict({key: value})


def _parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """The values of KEY=VALUE pairs, as OpenMMLab's tools read them."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument('--cfg-options', nargs='*', action=DictAction, default={})
    try:
        return parser.parse_args(['--cfg-options', *pairs]).cfg_options
    except RecursionError:  # of what ends in a bracket that it does not begin with
        raise ValueError('a value is a number, a word, or a list of them in brackets') from None


def load_scoped_config(args: Namespace, *, sections: Sequence[str], scopes: Sequence[str] = IMAGE_SCOPES) -> Config:
    """As :func:`load_config`, for a tool that needs no runner; the config's library becomes the default scope.

    Args:
        args: The arguments of the tool.
        sections: What the config must have.
        scopes: The libraries that the tool knows; by default those for images.

    Raises:
        ValueError: As there, or a config of another library.
    """
    config = load_config(args, sections=('default_scope', *sections))
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
