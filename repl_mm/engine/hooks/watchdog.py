"""What ends a run of several processes when one of them is stuck."""

import faulthandler
import math
import os
import sys
import threading
import time
from typing import Any, ClassVar

import torch.distributed as dist
from mmengine.dist import get_rank, get_world_size, is_distributed
from mmengine.hooks import Hook
from mmengine.runner import Runner
from typing_extensions import Self

from repl_mm.registry import HOOKS

TIMEOUT = 540.0


class Watchdog:
    """A thread that ends its process when it has not heard of progress for a time.

    Args:
        timeout: Seconds.
        rank: The number of the process, as long as there is no group that knows it.

    Raises:
        ValueError: A timeout that is no positive number.
    """

    ANSWER = 5  # seconds in which the others answer

    running: ClassVar[Self | None] = None  # a process has one

    def __init__(self, timeout: float, *, rank: int = 0) -> None:
        is_number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
        if not is_number or not math.isfinite(timeout) or timeout <= 0:
            raise ValueError(f'WatchdogHook takes a timeout above 0 seconds, got {timeout!r}')
        self.timeout, self.rank = timeout, rank
        self._done = threading.Event()
        self.note('setting up')

    def start(self) -> None:
        """Start to watch."""
        Watchdog.running = self
        threading.Thread(target=self._watch, name='watchdog', daemon=True).start()

    def stop(self) -> None:
        """Watch no more."""
        self._done.set()
        Watchdog.running = None

    def note(self, what: str) -> None:
        """The process begins to do something else."""
        self._doing, self._since = what, time.monotonic()

    def _watch(self) -> None:
        while not self._done.wait(min(1, self.timeout / 4)):
            if time.monotonic() - self._since > self.timeout:
                self._end()

    def _end(self) -> None:
        """Ask the others, print, and leave from within this thread: the main one cannot be woken."""
        # The lines at which the threads stand come first: when the first process leaves, the launcher ends the others.
        faulthandler.dump_traceback(sys.__stderr__)
        if is_distributed():
            self.rank, what = get_rank(), self._ask_others()
        else:
            what = f'rank {self.rank} is {self._doing}'
        print(
            f'rank {self.rank}: error: no progress for {self.timeout:g} s, the run ends: {what}',
            file=sys.__stderr__,
            flush=True,
        )
        os._exit(1)

    def _ask_others(self) -> str:
        store = dist.distributed_c10d._get_default_store()
        store.set(f'stalled/{get_rank()}', self._doing)
        time.sleep(self.ANSWER)
        ranks = range(get_world_size())
        answers = {rank: store.get(f'stalled/{rank}').decode() for rank in ranks if store.check([f'stalled/{rank}'])}
        parts = [f'rank {rank} is {what}' for rank, what in answers.items()]
        parts += [f'rank {rank} does not answer' for rank in ranks if rank not in answers]
        return ', '.join(parts)


@HOOKS.register_module()
class WatchdogHook(Hook):
    """Ends all processes when one of them stalls, and says what each of them was doing.

    A process that waits for another one waits inside of a collective, which knows neither whom for nor why. So each has
    a thread that looks whether the training goes on. When it has not for ``timeout`` seconds, the threads tell each
    other through the launcher's key-value store what their processes do; who does not answer is stuck or gone. Each
    prints the lines of code at which its threads stand.

    ``tools/train.py`` starts the thread before it builds anything, the hook by itself when the run begins. Nothing
    happens in a run of one process.

    Args:
        timeout: Seconds that setting up, a step, the wait for a batch, a checkpoint or a metric may take. Less than the
            limit of the process group (NCCL: 600 s, gloo: 1800 s), which knows no names.

    Raises:
        ValueError: A timeout that is no positive number.
    """

    priority = 'VERY_HIGH'

    def __init__(self, *, timeout: float = TIMEOUT) -> None:
        self._watchdog = Watchdog.running or Watchdog(timeout)

    def before_run(self, runner: Runner) -> None:
        """Start to watch, if the tool has not."""
        self._watchdog.note('beginning the run')
        if is_distributed() and Watchdog.running is None:
            self._watchdog.start()

    def before_train(self, runner: Runner) -> None:
        """All is loaded."""
        self._watchdog.note('before the first step')

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """A step begins."""
        self._watchdog.note(f'in step {runner.iter + 1}')

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """A step has ended, hooks and the next batch follow."""
        self._watchdog.note(f'after step {runner.iter + 1}, in a hook or waiting for a batch')

    def before_val_iter(self, *args: Any, **kwargs: Any) -> None:
        """A batch of the validation begins."""
        self._watchdog.note('in a batch of the validation')

    def after_val_iter(self, *args: Any, **kwargs: Any) -> None:
        """A batch of the validation has ended."""
        self._watchdog.note('between batches of the validation, or in its metrics')

    def after_train(self, runner: Runner) -> None:
        """Stop watching."""
        self._watchdog.stop()
