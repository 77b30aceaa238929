"""What ends a run of several processes when one of them is stuck."""

import os
import sys
import threading
import time
from typing import Any

import torch.distributed as dist
from mmengine.dist import get_rank, get_world_size, is_distributed
from mmengine.hooks import Hook
from mmengine.runner import Runner

from repl_mm.registry import HOOKS


@HOOKS.register_module()
class WatchdogHook(Hook):
    """Ends all processes when one of them stalls, and says what each of them was doing.

    A process that waits for another one waits inside of a collective, which knows neither whom for nor why. So each has
    a thread that looks whether the training goes on. When it has not for ``timeout`` seconds, the threads tell each
    other through the launcher's key-value store what their processes do; who does not answer is stuck or gone.

    Nothing happens in a run of one process.

    Args:
        timeout: Seconds that a step, the wait for a batch, a checkpoint or a metric may take. Less than the limit of
            the process group (NCCL: 600 s, gloo: 1800 s), which knows no names.

    Raises:
        ValueError: A timeout that is not positive.
    """

    ANSWER = 5  # seconds in which the others answer

    priority = 'VERY_HIGH'

    def __init__(self, *, timeout: float = 540) -> None:
        if timeout <= 0:
            raise ValueError(f'WatchdogHook takes a timeout above 0 seconds, got {timeout}')
        self.timeout = timeout
        self._done = threading.Event()

    def before_train(self, runner: Runner) -> None:
        """Start to watch."""
        self._note('before the first step')
        if is_distributed():
            threading.Thread(target=self._watch, name='watchdog', daemon=True).start()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """A step begins."""
        self._note(f'in step {runner.iter + 1}')

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """A step has ended, hooks and the next batch follow."""
        self._note(f'after step {runner.iter + 1}, in a hook or waiting for a batch')

    def before_val_iter(self, *args: Any, **kwargs: Any) -> None:
        """A batch of the validation begins."""
        self._note('in a batch of the validation')

    def after_val_iter(self, *args: Any, **kwargs: Any) -> None:
        """A batch of the validation has ended."""
        self._note('between batches of the validation, or in its metrics')

    def after_train(self, runner: Runner) -> None:
        """Stop watching."""
        self._done.set()

    def _note(self, what: str) -> None:
        self._doing, self._since = what, time.monotonic()

    def _watch(self) -> None:
        while not self._done.wait(min(1, self.timeout / 4)):
            if time.monotonic() - self._since > self.timeout:
                self._end()

    def _end(self) -> None:
        """Ask the others, print, and leave from within this thread: the main one cannot be woken."""
        store = dist.distributed_c10d._get_default_store()
        store.set(f'stalled/{get_rank()}', self._doing)
        time.sleep(self.ANSWER)
        ranks = range(get_world_size())
        answers = {rank: store.get(f'stalled/{rank}').decode() for rank in ranks if store.check([f'stalled/{rank}'])}
        silent = [rank for rank in ranks if rank not in answers]
        parts = [f'rank {rank} is {what}' for rank, what in answers.items()]
        parts += [f'rank {rank} does not answer' for rank in silent]
        print(
            f'rank {get_rank()}: error: no progress for {self.timeout:g} s, the run ends: {", ".join(parts)}',
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)
