"""What a training run costs in time and memory, measured by one hook.

The borders between the kinds of work are the runner's own calls of its hooks: what lies between the end of
``before_train_iter`` and the start of ``after_train_iter`` is a step, whichever hooks run in them and in which order.
"""

import json
import logging
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import mmengine
import numpy as np
import torch
from mmengine.device import is_cuda_available
from mmengine.dist import all_reduce, get_world_size, is_main_process
from mmengine.hooks import CheckpointHook, Hook, LoggerHook
from mmengine.logging import print_log
from mmengine.runner import BaseLoop, Runner

import repl_mm
from repl_mm.engine.files import write_atomic
from repl_mm.engine.meters import CudaMeter, HostMeter, Stopwatch
from repl_mm.registry import HOOKS

# What the time after a call of the runner's hooks is spent on; after any other call it is what it was before.
_AFTER = {
    'before_train_epoch': 'data',
    'before_train_iter': 'step',
    'after_train_iter': 'data',
    'after_train_epoch': 'other',
    'before_val': 'validation',
}
# What is known before the first step.
_NOTHING = dict(
    first_step=None, resumed_at=[], steps=0, input_shape=None, images_per_step=None, images=0,
    step_s=torch.empty(0), data_s=torch.empty(0), time_s={}, memory_bytes={},
)  # fmt: skip


def _images(batch: Any) -> Sequence[Any] | None:
    """The images of a batch as the data loader gives it, a tensor (N, C, H, W) or N tensors; None for other batches."""
    if isinstance(batch, Mapping) and 'inputs' in batch:
        images = batch['inputs']
        if isinstance(images, Mapping):  # of the branches of semi-supervised training
            return [image for branch in images.values() for image in branch]
        return images
    return batch[0] if isinstance(batch, list | tuple) else None


def _statistics(seconds: Sequence[float]) -> dict[str, float]:
    p50, p90, p99 = np.quantile(seconds, (0.5, 0.9, 0.99)).tolist()
    return {'mean': float(np.mean(seconds)), 'p50': p50, 'p90': p90, 'p99': p99}


def _speed(figures: Mapping[str, Any], dataset: Any) -> dict[str, Any]:
    """Statistics over the steps that are not warm-up."""
    step, data = figures['step_s'].tolist(), figures['data_s'].tolist()
    if not step:
        return dict.fromkeys(('step_time_s', 'data_time_s', 'images_per_s', 's_per_epoch'))
    rate = figures['images'] * get_world_size() / (sum(step) + sum(data))
    return {
        'step_time_s': _statistics(step),
        'data_time_s': _statistics(data),
        'images_per_s': rate or None,
        # A stream of images has no length, so no epochs.
        's_per_epoch': len(dataset) / rate if rate and hasattr(dataset, '__len__') else None,
    }


def _during(name: str, category: str) -> str:
    """What the hooks of stage ``name`` themselves are booked on, when ``category`` was current before."""
    if 'train' in name:
        return 'hooks'
    return 'validation' if 'val' in name else category


@HOOKS.register_module()
class CostHook(Hook):
    """Measures what training costs; writes ``cost.json`` into the work directory and scalars to the visualizer.

    Times and images are those of rank 0 (its images times the number of ranks, which all get batches of one size);
    memory is the maximum over the ranks. Every second is booked on one of ``repl_mm.engine.meters.CATEGORIES``, so
    validation, log lines and checkpoints are no part of a step's data time, and the priorities of hooks do not matter.
    Checkpoints hold the figures, so those of a resumed run are of all its steps from the first one; ``resumed_at``
    says where it was interrupted. Steps that an interruption lost are not counted.

    While the run lasts, and when it ends by an exception or Ctrl-C, the file says ``"complete": false`` and holds
    rank 0's own memory. It is brought up to date after every epoch and validation.

    Args:
        interval: Steps between two points of the curves in the visualizer, and between two looks at the memory.
        warmup: Steps at the start, and after each resumption, that the statistics leave out. Without a step beyond them
            the statistics are null.

    Raises:
        ValueError: An interval below 1 or a negative warm-up.
    """

    def __init__(self, *, interval: int = 50, warmup: int = 10) -> None:
        if interval < 1 or warmup < 0:
            raise ValueError(
                f'CostHook got interval={interval} and warmup={warmup}; use an interval of at least 1 step and a '
                'warm-up of at least 0 steps.'
            )
        self.interval = interval
        self.warmup = warmup
        self._earlier: Mapping[str, Any] = _NOTHING  # what a checkpoint says of the steps before it
        self._is_measuring = False

    def before_run(self, runner: Runner) -> None:
        """Stand around the training loop, the only place that sees its end in every case."""
        loop = runner._train_loop  # The property would build the loop of a runner that only validates.
        if isinstance(loop, BaseLoop):
            loop.run = partial(self._measure, runner, loop, loop.run)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Let a resumed run know what its steps have cost until now."""
        if self._is_measuring:
            checkpoint['cost'] = self._figures()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Go on with the figures of a checkpoint."""
        if runner._resume:
            self._earlier = checkpoint.get('cost', _NOTHING)

    def _measure(self, runner: Runner, loop: BaseLoop, run: Callable[[], Any]) -> Any:
        loop.run = run
        with ExitStack() as stack:
            self._start(runner)
            stack.callback(setattr, self, '_is_measuring', False)
            self._attach(runner, stack)
            try:
                result = run()
            except BaseException:
                # The other ranks may be gone, and the GPU in an error: ask neither.
                self._write(runner, complete=False)
                raise
            self._meter.finish()
            self._write(runner, complete=True)
        return result

    def _start(self, runner: Runner) -> None:
        self._is_measuring = True
        self._begin = runner.iter + 1
        self._input_shape: list[int] | None = self._earlier['input_shape']
        self._data_seconds: list[float] = []
        self._images: list[int] = []  # on this rank, of each step
        self._shown = 0  # steps that are in the visualizer
        self._meter = CudaMeter() if is_cuda_available() else HostMeter()
        self._watch = Stopwatch()

    def _attach(self, runner: Runner, stack: ExitStack) -> None:
        """Follow the runner's calls until the stack is closed."""

        def override(target: Any, name: str, replacement: Callable) -> None:
            stack.callback(setattr, target, name, getattr(target, name))
            setattr(target, name, replacement)

        def log_line(*args: Any, **kwargs: Any) -> Any:
            self._meter.sample()
            return get_log(*args, **kwargs)

        get_log = runner.log_processor.get_log_after_iter
        override(runner.log_processor, 'get_log_after_iter', log_line)
        override(runner, 'call_hook', partial(self._call_hook, runner, runner.call_hook))
        for kind, category in ((LoggerHook, 'logging'), (CheckpointHook, 'checkpoint')):
            for hook in runner.hooks:
                for stage in hook.get_triggered_stages() if isinstance(hook, kind) else ():
                    override(hook, stage, self._watch.on(category)(getattr(hook, stage)))

    def _call_hook(self, runner: Runner, call_hook: Callable, fn_name: str, **kwargs: Any) -> None:
        """Stands in for ``runner.call_hook`` while the run lasts."""
        if fn_name == 'after_train_iter':
            self._meter.end_step()
        previous = self._watch.category
        self._watch.switch(_during(fn_name, previous))
        if fn_name == 'after_train_iter':
            self._count_step(kwargs['data_batch'])  # before a hook saves a checkpoint
        call_hook(fn_name, **kwargs)
        self._follow(runner, fn_name, kwargs)
        if fn_name == 'before_val':
            self._validated_in = previous
        self._watch.switch(self._validated_in if fn_name == 'after_val' else _AFTER.get(fn_name, previous))
        if fn_name == 'before_train_iter':
            self._meter.begin_step()

    def _follow(self, runner: Runner, fn_name: str, kwargs: dict[str, Any]) -> None:
        """This hook's own work at a stage."""
        if fn_name == 'after_train_iter' and self.every_n_train_iters(runner, self.interval):
            with self._watch.on('logging'):
                self._show(runner)
        if fn_name in ('after_train_iter', 'after_val_iter') and kwargs['batch_idx'] % self.interval == 0:
            self._meter.sample()
        if fn_name in ('after_train_epoch', 'after_val'):
            self._write(runner, complete=False)

    def _count_step(self, batch: Any) -> None:
        self._meter.collect(self._watch.take('step'))
        self._data_seconds.append(self._watch.take('data'))
        images = _images(batch)
        if images is None and not self._images:
            print_log(
                'CostHook cannot tell the number of images in the batches, and counts time and memory alone. Let the '
                "data loader give a dictionary with the images under 'inputs', or a tuple that begins with them.",
                logger='current', level=logging.WARNING,
            )  # fmt: skip
        self._images.append(0 if images is None else len(images))
        if self._input_shape is None and images is not None:
            self._input_shape = list(images[0].shape)

    def _show(self, runner: Runner) -> None:
        """Add the means since the last time to the curves."""
        new = slice(self._shown, len(self._meter.seconds))
        count = new.stop - new.start
        if count == 0:  # the GPU has not finished one
            return
        self._meter.sample()
        step, data = sum(self._meter.seconds[new]), sum(self._data_seconds[new])
        scalars = {
            'cost/step_time_s': step / count,
            'cost/data_time_s': data / count,
            'cost/images_per_s': sum(self._images[new]) * get_world_size() / (step + data),
            'cost/peak_memory_bytes': next(iter(self._meter.memory.values())),
        }
        runner.visualizer.add_scalars(scalars, step=runner.iter + 1)
        self._shown = new.stop

    def _write(self, runner: Runner, *, complete: bool) -> None:
        record = self._record(runner, complete=complete)
        if complete and record['step_time_s'] is None:
            runner.logger.warning(
                f'cost.json has no step time: {record["steps"]} steps ran, and the first {self.warmup} are warm-up.'
            )
        if is_main_process():
            write_atomic(Path(runner.work_dir, 'cost.json'), f'{json.dumps(record, indent=2)}\n'.encode())

    def _figures(self) -> dict[str, Any]:
        """What this run and those before it, up to the checkpoint, have measured."""
        own = slice(self.warmup, len(self._meter.seconds))  # the steps whose duration is known
        before, steps = self._earlier, len(self._images)
        resumed = before['first_step'] is not None
        times = self._meter.settle(self._watch.totals())
        return {
            'first_step': before['first_step'] if resumed else self._begin,
            'resumed_at': [*before['resumed_at'], *([self._begin] if resumed and steps else [])],
            'steps': before['steps'] + steps,
            'input_shape': self._input_shape,
            'images_per_step': self._images[0] * get_world_size() or None if steps else before['images_per_step'],
            'step_s': torch.cat([before['step_s'], torch.tensor(self._meter.seconds[own], dtype=torch.float64)]),
            'data_s': torch.cat([before['data_s'], torch.tensor(self._data_seconds[own], dtype=torch.float64)]),
            'images': before['images'] + sum(self._images[own]),
            'time_s': {key: seconds + before['time_s'].get(key, 0) for key, seconds in times.items()},
            # On another device the peaks are of other kinds.
            'memory_bytes': {
                key: max(peak, before['memory_bytes'].get(key, 0)) for key, peak in self._meter.memory.items()
            },
        }

    def _record(self, runner: Runner, *, complete: bool) -> dict[str, Any]:
        """What ``cost.json`` says; all ranks have to call it together when the run is complete."""
        self._meter.sample()
        figures = self._figures()
        memory = figures['memory_bytes']
        if complete:
            peaks = torch.tensor(list(memory.values()))
            all_reduce(peaks, op='max')
            memory = dict(zip(memory, peaks.tolist(), strict=True))
        return {
            'complete': complete,
            'device': self._meter.device,
            'world_size': get_world_size(),
            'versions': {
                'python': platform.python_version(),
                'torch': torch.__version__,
                'mmengine': mmengine.__version__,
                'repl_mm': repl_mm.__version__,
            },
            'date': date.today().isoformat(),
            **{key: figures[key] for key in ('input_shape', 'images_per_step', 'first_step', 'resumed_at', 'steps')},
            'warmup': self.warmup,
            **_speed(figures, runner.train_dataloader.dataset),
            'time_s': figures['time_s'],
            'memory_bytes': memory,
        }
