"""What the cost hook measures with: a stopwatch for the runner's time, and one meter for each kind of device."""

import multiprocessing
import os
import re
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import psutil
import torch

CATEGORIES = ('step', 'data', 'validation', 'logging', 'checkpoint', 'hooks', 'other')


class Stopwatch:
    """Books all time that passes on exactly one category at any moment.

    Attributes:
        category: The current one of ``CATEGORIES``.
    """

    clock: Callable[[], float] = staticmethod(perf_counter)

    def __init__(self) -> None:
        self.category = 'other'
        self._seconds = dict.fromkeys(CATEGORIES, 0.0)
        self._taken = dict(self._seconds)
        self._since = self.clock()

    def switch(self, category: str) -> str:
        """Book what follows on ``category``; returns the category until now."""
        now, previous = self.clock(), self.category
        self._seconds[previous] += now - self._since
        self._since, self.category = now, category
        return previous

    @contextmanager
    def on(self, category: str) -> Iterator[None]:
        """Book what runs inside on ``category``, then go on with the one before."""
        previous = self.switch(category)
        try:
            yield
        finally:
            self.switch(previous)

    def take(self, category: str) -> float:
        """Seconds booked on ``category`` since it was last taken."""
        seconds = self._seconds[category] - self._taken[category]
        self._taken[category] = self._seconds[category]
        return seconds

    def totals(self) -> dict[str, float]:
        """Seconds of every category up to now."""
        self.switch(self.category)
        return dict(self._seconds)


def _resident(pid: int) -> int:
    """Bytes that a process holds in memory, 0 when it has ended."""
    try:
        return psutil.Process(pid).memory_info().rss
    except psutil.Error:
        return 0


def _peak_resident(pid: int) -> int:
    """High-water mark of :func:`_resident` (Linux)."""
    try:
        mark = re.search(r'VmHWM:\s+(\d+) kB', Path(f'/proc/{pid}/status').read_text())
    except OSError:
        return 0
    return int(mark[1]) * 1024 if mark else 0


def _reset_peak_resident() -> bool:
    """Let this process' high-water mark start anew; returns whether that is possible."""
    try:
        Path('/proc/self/clear_refs').write_text('5')
    except OSError:
        return False
    return True


class HostMeter:
    """Step times and resident memory where steps run on the CPU.

    Memory is the sum over the process and its data-loader workers; pages they share count in each of them.

    Attributes:
        device: Name of the hardware.
        seconds: Duration of each finished step.
        memory: Bytes, as in ``cost.json``.
    """

    def __init__(self) -> None:
        self.device = f'CPU, {torch.get_num_threads()} threads'
        self.seconds: list[float] = []
        # The mark would hold what was resident before training too. Where it cannot be reset (another system than
        # Linux, or a container that forbids it), the peak is the largest of the sampled values instead, which may
        # miss a short peak between two samples. A worker's mark starts with the worker.
        self._measure = _peak_resident if _reset_peak_resident() else _resident
        start = self._sum(_resident)
        self.memory = {'peak_resident': start, 'resident_at_start': start}

    @staticmethod
    def _sum(measure: Callable[[int], int]) -> int:
        workers = multiprocessing.active_children()
        return sum(map(measure, [os.getpid(), *(worker.pid for worker in workers)]))

    def sample(self) -> None:
        """Bring the peak up to date."""
        self.memory['peak_resident'] = max(self.memory['peak_resident'], self._sum(self._measure))

    def begin_step(self) -> None:
        """Nothing to do: a step ends when its call returns."""

    end_step = finish = begin_step

    def collect(self, host_seconds: float) -> None:
        """Take in the step that ended; ``host_seconds`` is what the stopwatch says."""
        self.seconds.append(host_seconds)

    def settle(self, totals: dict[str, float]) -> dict[str, float]:
        """The stopwatch's totals, which are right on a CPU."""
        return totals


class CudaMeter:
    """Step times by CUDA events and memory by torch's allocator; attributes as in :class:`HostMeter`."""

    def __init__(self) -> None:
        self.device = torch.cuda.get_device_name()
        self.seconds: list[float] = []
        self.memory = {'peak_allocated': 0, 'peak_reserved': 0}
        self._pending: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        torch.cuda.reset_peak_memory_stats()

    def sample(self) -> None:
        """Bring the peaks up to date; needed before each of mmengine's log lines, which reset torch's."""
        now = {'peak_allocated': torch.cuda.max_memory_allocated(), 'peak_reserved': torch.cuda.max_memory_reserved()}
        self.memory = {name: max(peak, now[name]) for name, peak in self.memory.items()}

    def begin_step(self) -> None:
        """Mark the start of a step on the GPU's own time line."""
        self._begin = self._event()

    def end_step(self) -> None:
        """Mark the end of a step."""
        self._pending.append((self._begin, self._event()))

    def collect(self, host_seconds: float = 0) -> None:
        """Take in the steps that the GPU has finished, without waiting for one."""
        while self._pending and self._pending[0][1].query():
            begin, end = self._pending.popleft()
            self.seconds.append(begin.elapsed_time(end) / 1000)

    def finish(self) -> None:
        """Wait for the last step and take it in."""
        torch.cuda.synchronize()
        self.collect()

    def settle(self, totals: dict[str, float]) -> dict[str, float]:
        """Count as step time what the host waited for the GPU in the hook that reads the losses (RuntimeInfoHook)."""
        wait = min(max(sum(self.seconds) - totals['step'], 0), totals['hooks'])
        return totals | {'step': totals['step'] + wait, 'hooks': totals['hooks'] - wait}

    @staticmethod
    def _event() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
