"""Checkpoints from which a run goes on as if nothing had happened."""

import os
import signal
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

import mmengine.hooks
import torch
from mmengine.dist import all_reduce, barrier, gather_object, get_rank, get_world_size, is_main_process
from mmengine.hooks import EarlyStoppingHook, EMAHook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from repl_mm.engine.errors import shorten
from repl_mm.engine.files import remove_parts, use_atomic_files, write_atomic
from repl_mm.engine.finite import tensors_not_finite
from repl_mm.engine.loops import ExactResumeMixin
from repl_mm.engine.resume import NUMBERS, started
from repl_mm.registry import HOOKS


def _bare(model: nn.Module) -> nn.Module:
    return model.module if is_model_wrapper(model) else model


def _weights(runner: Runner) -> dict[str, Any]:
    """The weights of a run and their moving averages, by the names that checkpoints give them."""
    averages = [hook.ema_model for hook in runner.hooks if isinstance(hook, EMAHook)]
    models = dict(zip(('state_dict', 'ema_state_dict'), [_bare(runner.model), *averages], strict=False))
    return {name: model.state_dict() for name, model in models.items()}


def _number_of(schedulers: Any) -> int:
    lists = schedulers.values() if isinstance(schedulers, Mapping) else [schedulers or []]
    return sum(map(len, lists))


def _shield(init: Any, worker: int) -> None:
    """Start a data-loader worker that outlives a signal to the whole job, and still obeys its own process."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    # A handler does not learn who sent a signal, one that waits for it does.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_obey_parent, name='signals', daemon=True).start()
    if init is not None:
        init(worker)


def _obey_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


@HOOKS.register_module()
class CheckpointHook(mmengine.hooks.CheckpointHook):
    """mmengine's ``CheckpointHook`` for runs that are killed, preempted and resumed.

    - A checkpoint also says where in the epoch it was written, and holds gradients that are not yet applied (gradient
      accumulation). With the loops of ``repl_mm.engine.loops`` a run resumed from it ends with the same weights, bit
      for bit.
    - It also says when its run began (``meta.run``), which tells it from those of other runs in the same folder; a
      resumed run is the same run.
    - A checkpoint is there whole or not at all; from the hook's construction on this holds for all local files that
      mmengine writes.
    - Weights, averages and an optimizer's state that hold NaN or infinite values are never saved: they end the run.
      What was infinite when training began, such as a mask, may stay so.
    - With ``max_keep_ckpts`` the oldest file goes when the new one is there, not before.
    - SIGTERM and SIGUSR1 (SLURM: preemption, ``--signal=USR1@120``) let all ranks save a checkpoint after the step
      that runs, or after the validation that runs, and exit with 128 + the number of the signal. With another loop
      the signals do what they do by default.

    Args:
        **kwargs: Those of mmengine's hook.

    Raises:
        ValueError: An interval or a number of files that is no whole number.
        FloatingPointError: When it saves, if a value is not finite.
    """

    SIGNALS: ClassVar = (signal.SIGTERM, signal.SIGUSR1)
    best_ckpt_path: str | None  # the host's, where it keeps a best checkpoint
    best_ckpt_path_dict: dict[str, str | None]

    def __init__(self, **kwargs: Any) -> None:
        for name in ('interval', 'max_keep_ckpts'):
            if not isinstance(kwargs.get(name, 0), int):
                raise ValueError(f'CheckpointHook takes a whole number as {name}, got {kwargs[name]!r}')
        super().__init__(**kwargs)
        use_atomic_files()
        self._run = time.time()
        self._infinite_masks: set[str] = set()
        self._signal = 0
        self._handlers: dict[int, Any] = {}
        self._gradients: list[dict[str, Tensor]] = []
        self._counts: dict[str, int] = {}  # between two steps; the runners believe to be saving within one

    def before_train(self, runner: Runner) -> None:
        """Prepare the folder, and listen to signals from here on."""
        super().before_train(runner)
        self._disown_best()
        if is_main_process():
            remove_parts(Path(self.out_dir))
        self._infinite_masks = set(tensors_not_finite(_weights(runner)))
        if not isinstance(runner.train_loop, ExactResumeMixin):
            return
        self._handlers = {number: signal.signal(number, self._remember) for number in self.SIGNALS}
        loops = (runner.train_loop, runner.val_loop)
        for loader in (loop.dataloader for loop in loops if loop is not None):
            loader.worker_init_fn = partial(_shield, loader.worker_init_fn)

    def between_steps(self, runner: Runner) -> None:
        """Leave if the run is asked to end."""
        if asked := self._asked():
            self._leave(runner, asked)

    def after_train(self, runner: Runner) -> None:
        """Publish the checkpoint if asked to; signals do again what they did before."""
        super().after_train(runner)
        self._restore_handlers()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Say where in the run the checkpoint was written."""
        loop, meta = runner.train_loop, checkpoint['meta']
        meta.update(self._counts, run=self._run, infinite=sorted(self._infinite_masks))
        if isinstance(loop, ExactResumeMixin):
            within_epoch = loop.first_iter is not None and meta['epoch'] == loop.epoch
            meta['place'] = dict(
                done=meta['iter'] - loop.first_iter if within_epoch else 0,
                batches=len(loop.dataloader),
                world_size=get_world_size(),
            )
        checkpoint['gradients'] = self._gradients
        self._require_finite({key: checkpoint.get(key) for key in NUMBERS}, runner)
        checkpoint['early_stopping'] = [
            dict(wait_count=hook.wait_count, best_score=hook.best_score) for hook in self._early_stopping(runner)
        ]

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Go to the place of a checkpoint that the run is resumed from.

        Raises:
            ValueError: It was written in the middle of an epoch that had another number of batches or processes.
        """
        if not runner._resume:
            return
        loop, meta = runner.train_loop, checkpoint['meta']
        self._run = started(meta)
        if not isinstance(loop, ExactResumeMixin):
            return
        for hook, state in zip(self._early_stopping(runner), checkpoint.get('early_stopping', ()), strict=False):
            vars(hook).update(state)
        counts = [_number_of(checkpoint.get('param_schedulers')), _number_of(runner.param_schedulers)]
        if counts[0] != counts[1]:
            raise ValueError('the checkpoint has {} schedulers, and the config {}'.format(*counts))
        own = dict(batches=len(loop.dataloader), world_size=get_world_size())
        place = meta.get('place', dict(done=None, **own))  # mmengine's own hook does not say it
        given = {key: place[key] for key in own}
        if given != own:
            what = 'of {batches} batches an epoch on {world_size} process(es)'
            message = f'the checkpoint is of a run {what.format(**given)}, and this one is {what.format(**own)}'
            if place['done'] or checkpoint.get('gradients'):
                raise ValueError(f'{message}: it was written within an epoch, resume with the batch size of then')
            runner.logger.warning(f'{message}: it goes on, but not as the first would have')
            return
        loop.done = place['done']
        if gradients := checkpoint.get('gradients'):
            self._take_gradients(runner, gradients[get_rank()] if get_rank() < len(gradients) else {})

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        """As the host's, which removes the oldest file before it writes the new one."""
        self._gather_gradients(runner)
        full = self.max_keep_ckpts > 0 and len(self.keep_ckpt_ids) == self.max_keep_ckpts
        oldest = self.keep_ckpt_ids.popleft() if full and self.keep_ckpt_ids[-1] != step else None
        preemption = runner.message_hub.pop_info('preemption_ckpt', None)
        super()._save_checkpoint_with_step(runner, step, meta)
        self._gradients = []
        if is_main_process() and self.max_keep_ckpts > 0:
            outdated = [] if oldest is None else [self.filename_tmpl.format(oldest)]
            for name in [*outdated, *([preemption] if preemption else [])]:
                path = self.file_backend.join_path(self.out_dir, name)
                if self.file_backend.isfile(path):
                    self.file_backend.remove(path)

    def _disown_best(self) -> None:
        """A best file that a better one is to replace, named by the checkpoint, is removed only from the own folder."""

        def own(path: str | None) -> str | None:
            return path if path and Path(path).parent == Path(self.out_dir) else None

        if 'best_ckpt_path' in vars(self):
            self.best_ckpt_path = own(self.best_ckpt_path)
        if 'best_ckpt_path_dict' in vars(self):
            self.best_ckpt_path_dict = {key: own(path) for key, path in self.best_ckpt_path_dict.items()}

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        """As the host's, which removes the best file before it writes the new one."""
        if self.save_best:
            self._require_finite(_weights(runner), runner)
        super()._save_best_checkpoint(runner, metrics)

    def _require_finite(self, content: Mapping[str, Any], runner: Runner) -> None:
        if broken := [key for key in tensors_not_finite(content) if key not in self._infinite_masks]:
            raise FloatingPointError(
                f'the checkpoint would hold NaN or infinite values in {shorten(broken)}: it is not written, what was '
                'there before is as it was'
            )

    def _gather_gradients(self, runner: Runner) -> None:
        """Keep what each rank has accumulated; after a step of the optimizer that is nothing."""
        own = {
            name: parameter.grad.cpu()
            for name, parameter in _bare(runner.model).named_parameters()
            if parameter.grad is not None
        }
        everyones = gather_object(own)
        self._gradients = everyones if everyones and any(everyones) else []

    @staticmethod
    def _take_gradients(runner: Runner, gradients: Mapping[str, Tensor]) -> None:
        for name, parameter in _bare(runner.model).named_parameters():
            if (gradient := gradients.get(name)) is None:
                continue
            if gradient.shape != parameter.shape:
                raise ValueError(
                    f'the accumulated gradient of {name} has the shape {tuple(gradient.shape)}, the parameter '
                    f'{tuple(parameter.shape)}: resume with the config of then'
                )
            parameter.grad = gradient.to(parameter.device)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._signal = number

    def _asked(self) -> int:
        """The signal that any rank got, 0 for none."""
        if get_world_size() == 1:
            return self._signal
        number = torch.tensor(self._signal)
        all_reduce(number, op='max')
        return int(number)

    def _leave(self, runner: Runner, number: int) -> None:
        name = f'iter_{runner.iter}.pth'
        path = self.file_backend.join_path(self.out_dir, name)
        if runner.message_hub.get_info('last_ckpt') != path:  # the step was at the interval
            self._gather_gradients(runner)
            runner.message_hub.update_info('preemption_ckpt', name)
            self._counts = dict(epoch=runner.epoch, iter=runner.iter)
            runner.save_checkpoint(self.out_dir, name, by_epoch=False, backend_args=self.backend_args)
            if is_main_process():
                write_atomic(Path(runner.work_dir, 'last_checkpoint'), path.encode())
        runner.logger.warning(
            f'Asked to end by {signal.Signals(number).name}: saved {name}. The same command with --resume goes on'
        )
        barrier()  # a launcher ends the others when the first one is gone
        self._restore_handlers()
        raise SystemExit(128 + number)

    @staticmethod
    def _early_stopping(runner: Runner) -> list[EarlyStoppingHook]:
        return [hook for hook in runner.hooks if isinstance(hook, EarlyStoppingHook)]

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
