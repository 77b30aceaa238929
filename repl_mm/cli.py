"""What the command-line tools share: their arguments, their config, and errors that a person can read."""

import os
import re
import sys
import time
from argparse import ArgumentError, ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# The seams come before the host libraries.
import repl_mm.compat  # noqa: F401

# isort: split
import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn

from repl_mm.cpu import GlooRunner

# ---------------------------------------------------------------------------------------------- errors


@contextmanager
def friendly(*, on_interrupt: str = '') -> Iterator[None]:
    """End a tool on bad input with one sentence and exit code 2, and on Ctrl-C with 130; other errors pass.

    Use it as a decorator of ``main``.

    Args:
        on_interrupt: What to do after an interruption.
    """
    try:
        yield
    except KeyboardInterrupt:
        _leave(f'interrupted{on_interrupt and ": "}{on_interrupt}', code=130)
    except (ValueError, OSError) as error:
        _leave(f'error: {sentence(error)}', code=2)


def _leave(message: str, *, code: int) -> None:
    rank = int(os.environ.get('RANK', 0))
    if rank > 0:
        # If the first process met the same, its launcher ends this one before the sentence comes twice.
        time.sleep(5)
        message = f'rank {rank}: {message}'
    print(f'\n{message}', file=sys.stderr, flush=True)
    raise SystemExit(code)


@contextmanager
def explain(task: str) -> Iterator[None]:
    """Turn what the host libraries raise on bad input during a task into a ``ValueError`` that says so."""
    try:
        yield
    except (ArithmeticError, AssertionError, ImportError, LookupError, NameError, OSError, RuntimeError, SyntaxError,
            TypeError, ValueError) as error:  # fmt: skip
        raise ValueError(f'{task}: {sentence(error)}') from error


def sentence(error: Exception) -> str:
    """The one line of an error's message that tells most."""
    # str(KeyError) is the repr of its message.
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip()
    if not text:
        return type(error).__name__
    if 'Original Traceback' in text:  # from a data loader's worker
        return text.splitlines()[-1]
    line = text.splitlines()[0]
    if unknown := re.match(r'(\S+) is not in the (\S+) registry', line):
        return f"unknown type '{unknown[1]}': the {unknown[2]} registry has no such name; check its spelling"
    return line.removeprefix('[Errno 2] ')


# ------------------------------------------------------------------------------------- arguments, config


class CfgOptions(DictAction):
    """mmengine's KEY=VALUE arguments, with an error that argparse can show."""

    def __call__(self, parser: ArgumentParser, namespace: Namespace, values: Any, option_string: str | None = None):
        try:
            super().__call__(parser, namespace, values, option_string)
        except (ValueError, AssertionError):
            given = ' '.join(values)
            raise ArgumentError(self, f'takes KEY=VALUE pairs such as train_cfg.max_epochs=3, got {given!r}') from None


def add_arguments(parser: ArgumentParser) -> None:
    """The flags that OpenMMLab's tools for training and testing have in common."""
    parser.add_argument('--work-dir', help='where logs and checkpoints go (default: work_dirs/<name of the config>)')
    parser.add_argument('--amp', action='store_true', help='mixed precision: float16 on a GPU, bfloat16 on a CPU')
    parser.add_argument(
        '--cfg-options', nargs='+', action=CfgOptions, metavar='KEY=VALUE', help='override settings of the config'
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by the launcher')


def load_config(args: Namespace) -> Config:
    """The config file of a tool with its common arguments merged in.

    Raises:
        ValueError: A config that cannot be read, an override that does not fit it, or a launch that cannot work.
    """
    check_launch(args.launcher)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    with explain(f'cannot read the config {args.config}'):
        config = Config.fromfile(args.config)
    for section in ('model', 'default_scope'):
        if section not in config:
            raise ValueError(f"the config {args.config} has no '{section}': give one that trains or tests a model")
    with explain('cannot apply --cfg-options'):
        config.merge_from_dict(args.cfg_options or {})
    config.launcher = args.launcher
    config.work_dir = args.work_dir or config.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    _complete_loaders(config)
    return config


def check_launch(launcher: str) -> None:
    """Make sure that the processes of a distributed run can work on this machine.

    Raises:
        ValueError: They were not started by the launcher, or are more than the GPUs.
    """
    size_key = dict(pytorch='LOCAL_WORLD_SIZE', slurm='SLURM_NTASKS_PER_NODE', mpi='OMPI_COMM_WORLD_LOCAL_SIZE')
    if launcher == 'none':
        return
    if launcher == 'pytorch' and 'RANK' not in os.environ:
        raise ValueError('--launcher pytorch is for processes that torchrun started: use tools/dist_train.sh')
    processes, gpus = int(os.environ.get(size_key[launcher], 1)), torch.cuda.device_count()
    if get_device() == 'cpu' and launcher != 'pytorch':
        raise ValueError(f'--launcher {launcher} needs GPUs: on CPUs use --launcher pytorch')
    if 0 < gpus < processes:
        raise ValueError(
            f'{processes} processes were started on this machine, which has {gpus} GPU(s): start one for each GPU, '
            'or set CUDA_VISIBLE_DEVICES=-1 to run them on the CPU'
        )


def _complete_loaders(config: Config) -> None:
    """What mmpretrain's own tools add to its configs."""
    if config.default_scope != 'mmpretrain':
        return
    for loader in filter(None, map(config.get, ('train_dataloader', 'val_dataloader', 'test_dataloader'))):
        loader.setdefault('pin_memory', get_device() != 'cpu')
        loader.setdefault('persistent_workers', loader.get('num_workers', 0) > 0)
        loader.setdefault('collate_fn', dict(type='default_collate'))


def show_pictures(config: Config, folder: str) -> None:
    """Let the host library's own hook draw every prediction of a test into a folder."""
    folder = os.path.abspath(folder)
    hook, visualizer = {
        'mmpretrain': (dict(type='VisualizationHook', enable=True, interval=1, out_dir=folder), 'UniversalVisualizer'),
        'mmdet': (dict(type='DetVisualizationHook', draw=True, test_out_dir=folder), 'DetLocalVisualizer'),
        'mmseg': (dict(type='SegVisualizationHook', draw=True), 'SegLocalVisualizer'),
    }[config.default_scope]
    config.merge_from_dict({'default_hooks.visualization': config.get('default_hooks', {}).get('visualization', {}) | hook})
    config.setdefault('visualizer', dict(type=visualizer, vis_backends=[dict(type='LocalVisBackend')]))
    if config.default_scope == 'mmseg':
        config.visualizer.save_dir = folder


# ----------------------------------------------------------------------------------------- runner


def build_runner(config: Config, *, loops: tuple[str, ...]) -> Runner:
    """The runner of a config, with the data of its loops loaded.

    Args:
        config: As it comes from :func:`load_config`.
        loops: Which of ``'train'``, ``'val'`` and ``'test'``.

    Raises:
        ValueError: A section is missing, or something in the config cannot be built.
    """
    for section in (f'{loop}_{part}' for loop in loops for part in ('dataloader', 'cfg')):
        if config.get(section) is None:
            raise ValueError(f"the config {config.filename} has no '{section}'")
    with explain(f'cannot build the model of {config.filename}'):
        on_cpus = config.launcher != 'none' and get_device() == 'cpu'
        runner = GlooRunner.from_cfg(config) if on_cpus else RUNNERS.build(config)
    for loop in loops:
        with explain(f'cannot load the data of {loop}_dataloader'):
            loader = getattr(runner, f'{loop}_loop').dataloader
        if len(loader) == 0:
            raise ValueError(f'{loop}_dataloader gives no batch: its data set has {len(loader.dataset)} samples')
    return runner


def read_checkpoint(path: str) -> dict[str, Any]:
    """The content of a checkpoint file.

    Raises:
        ValueError: No such file, or not a checkpoint.
    """
    if os.path.isdir(path):
        raise ValueError(f'the checkpoint {path} is a folder: give a .pth file')
    try:
        checkpoint = CheckpointLoader.load_checkpoint(path, map_location='cpu')
    except FileNotFoundError:
        raise ValueError(f'the checkpoint {path} does not exist') from None
    except Exception:  # whatever unpickling some other file comes to
        checkpoint = None
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f'{path} is not a checkpoint: give a .pth file that training has written')
    return checkpoint


def require_fit(model: nn.Module, state_dict: Mapping[str, Tensor], *, source: str) -> None:
    """Make sure that a checkpoint fits a model key by key, by loading it.

    Raises:
        ValueError: Keys are missing or left over, or tensors have another shape.
    """
    state_dict = {key.removeprefix('module.'): value for key, value in state_dict.items()}
    try:
        missing, unexpected = getattr(model, 'module', model).load_state_dict(state_dict, strict=False)
        reshaped = []
    except RuntimeError as error:
        missing, unexpected, reshaped = [], [], re.findall(r'size mismatch for (\S+):', str(error))
    problems = dict(missing=missing, unexpected=unexpected) | {'of another shape': reshaped}
    counts = [f'{len(keys)} {what} ({", ".join(keys[:3])}{", ..." * (len(keys) > 3)})'
              for what, keys in problems.items() if keys]  # fmt: skip
    if counts:
        raise ValueError(
            f'the checkpoint {source} does not fit the model, keys {" and ".join(counts)}: '
            'give the config that it was trained with'
        )
