"""Timing in interleaved rounds, and how its results are written down."""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path

import numpy as np
import torch

from repl_mm import __version__
from repl_mm.benchmark import BACKENDS


def check_backends(backends: Sequence[str]) -> None:
    """Raise ValueError unless all are names out of ``BACKENDS``, joined by ``+``."""
    if unknown := sorted({name for backend in backends for name in backend.split('+')} - set(BACKENDS)):
        raise ValueError(f'unknown backend {", ".join(unknown)}: choose out of {", ".join(BACKENDS)}, joined by +')


def time_interleaved(
    calls: Mapping[str, Callable[[], object]], *, seconds: float, least: int = 10
) -> dict[str, list[float]]:
    """Seconds of each call, all called once in a round, for at least ``least`` rounds and ``seconds``.

    Every other round goes backwards, so that no call always follows the same one.
    """
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


def describe(device: torch.device) -> str:
    """Hardware, versions and date in one line."""
    if device.type == 'cuda':
        hardware = torch.cuda.get_device_name(device)
    else:
        models = [line.split(':')[1] for line in Path('/proc/cpuinfo').read_text().splitlines() if 'model name' in line]
        hardware = f'{(models or [platform.processor()])[0].strip()}, {torch.get_num_threads()} threads'
    return f'{hardware}, torch {torch.__version__}, repl_mm {__version__}, {date.today()}.'


def round_ratio(seconds: Sequence[float], reference: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Median and quartiles of the ratios within each round: what disturbs the machine for a while disturbs both."""
    low, middle, high = np.quantile(np.divide(seconds, reference), (0.25, 0.5, 0.75)).tolist()
    return middle, (low, high)


def format_ratio(value: float | None, quartiles: tuple[float, float] | None = None) -> str:
    """A ratio with the quartiles over the rounds; empty where there is none."""
    if value is None:
        return ''
    return f'{value:.3f}' + (f' ({quartiles[0]:.2f} to {quartiles[1]:.2f})' if quartiles else '')
