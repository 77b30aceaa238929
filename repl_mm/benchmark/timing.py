"""Timing in interleaved rounds, and how its results are written down."""

import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import numpy as np
import psutil
import torch
from scipy.stats import bootstrap

from repl_mm import __version__
from repl_mm.benchmark import BACKENDS
from repl_mm.compat import can_compile, torch_too_old


def check_backends(backends: Sequence[str]) -> None:
    """Raise ValueError unless all are names out of ``BACKENDS``, joined by ``+``, that this torch has."""
    names = {name for backend in backends for name in backend.split('+')}
    if unknown := sorted(names - set(BACKENDS)):
        raise ValueError(f'unknown backend {", ".join(unknown)}: choose out of {", ".join(BACKENDS)}, joined by +')
    if 'compile' in names and not can_compile():
        raise torch_too_old('the backend compile', needs='2.6')


def time_interleaved(
    calls: Mapping[str, Callable[[], object]], *, seconds: float, least: int = 10, device: torch.device | None = None
) -> dict[str, list[float]]:
    """Seconds of each call, all called once in a round, for at least ``least`` rounds and ``seconds``.

    Every other round goes backwards, so that no call always follows the same one.

    Args:
        calls: What to time, by name.
        seconds: Time for all rounds.
        least: Rounds at least.
        device: Where the calls compute, by default the CPU: a GPU needs but one of the CPU's cores.

    Raises:
        ValueError: Other processes take the cores; see :func:`undisturbed`.
    """
    cores = 1 if device is not None and device.type != 'cpu' else torch.get_num_threads()
    with undisturbed(cores):
        return _time_rounds(calls, seconds=seconds, least=least)


def _time_rounds(calls: Mapping[str, Callable[[], object]], *, seconds: float, least: int) -> dict[str, list[float]]:
    for call in calls.values():
        for _ in range(3):
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    end, done = time.perf_counter() + seconds, 0
    while done < least or time.perf_counter() < end:
        for name in list(calls)[:: -1 if done % 2 else 1]:
            start = time.perf_counter()
            calls[name]()
            times[name].append(time.perf_counter() - start)
        done += 1
    return times


@contextmanager
def compiled_each(count: int, backend: str) -> Iterator[None]:
    """Have each of so many networks of the same code compiled, where the backend compiles.

    torch compiles the same code 8 times, for whatever networks and sizes, and silently runs it as it is written then.

    Raises:
        torch._dynamo.exc.FailOnRecompileLimitHit: It would for these, as they need more graphs than 8 each.
    """
    if 'compile' not in backend.split('+'):
        yield
        return
    torch.compiler.reset()
    own = torch._dynamo.config
    with own.patch(recompile_limit=count * own.recompile_limit, fail_on_recompile_limit_hit=True):
        yield


def cpu_seconds() -> tuple[float, float]:
    """Seconds that the machine's cores were busy, and that this process took of them, since some time."""
    times, own = psutil.cpu_times(), psutil.Process().cpu_times()
    # Linux counts what guests take among the users' time too.
    idle = sum(getattr(times, name, 0) for name in ('idle', 'iowait', 'guest', 'guest_nice'))
    return sum(times) - idle, own.user + own.system


@contextmanager
def undisturbed(cores: int, *, sample: float = 0.3) -> Iterator[None]:
    """Refuse to time what runs inside while other processes take the cores that it needs.

    Args:
        cores: How many.
        sample: Seconds to look at the machine before; it is looked at again when all is done.

    Raises:
        ValueError: Half a core more is busy than is left.
    """
    spare = psutil.cpu_count() - cores

    def check(since: float, before: tuple[float, float]) -> None:
        busy, own = np.subtract(cpu_seconds(), before) / (time.perf_counter() - since)
        if busy - own > max(spare, 0) + 0.5:
            raise ValueError(
                f'other processes keep {busy - own:.1f} of {psutil.cpu_count()} cores busy, and {cores} of them would '
                'be timed here: wait until they are done, or set OMP_NUM_THREADS lower'
            )

    begin, before = time.perf_counter(), cpu_seconds()
    time.sleep(sample)
    check(begin, before)
    begin, before = time.perf_counter(), cpu_seconds()
    yield
    if time.perf_counter() - begin > sample:  # clocks of processes tick in hundredths of a second
        check(begin, before)


def describe(device: torch.device) -> str:
    """Hardware, versions and date in one line."""
    if device.type == 'cuda':
        hardware = torch.cuda.get_device_name(device)
    else:
        models = [line.split(':')[1] for line in Path('/proc/cpuinfo').read_text().splitlines() if 'model name' in line]
        hardware = f'{(models or [platform.processor()])[0].strip()}, {torch.get_num_threads()} threads'
    return f'{hardware}, torch {torch.__version__}, repl_mm {__version__}, {date.today()}.'


def round_ratio(seconds: Sequence[float], reference: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Median of the ratios within each round, and its bootstrap interval of 95 %, from two rounds on.

    What disturbs the machine for a while disturbs both parts of a ratio.
    """
    ratios = np.divide(seconds, reference)
    found = bootstrap((ratios,), np.median, confidence_level=0.95, method='percentile', batch=500, rng=0)
    low, high = found.confidence_interval
    return float(np.median(ratios)), (float(low), float(high))


def format_ratio(value: float | None, interval: tuple[float, float] | None = None) -> str:
    """A ratio with its interval; empty where there is none."""
    if value is None:
        return ''
    return f'{value:.3f}' + (f' ({interval[0]:.3f} to {interval[1]:.3f})' if interval else '')
