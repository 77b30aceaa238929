"""Timing in turns, and how its results are written down."""

import csv
import io
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from datetime import date
from pathlib import Path
from typing import Any

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
    """Seconds of each call, all called once in a turn, for at least ``least`` turns and ``seconds``.

    Every other turn goes backwards, so that no call always follows the same one.
    """
    for call in calls.values():
        for _ in range(3):
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    end, turn = time.perf_counter() + seconds, 0
    while turn < least or time.perf_counter() < end:
        for name in list(calls)[:: -1 if turn % 2 else 1]:
            start = time.perf_counter()
            calls[name]()
            times[name].append(time.perf_counter() - start)
        turn += 1
    return times


def describe(device: torch.device) -> str:
    """Hardware, versions and date in one line."""
    if device.type == 'cuda':
        hardware = torch.cuda.get_device_name(device)
    else:
        models = [line.split(':')[1] for line in Path('/proc/cpuinfo').read_text().splitlines() if 'model name' in line]
        hardware = f'{(models or [platform.processor()])[0].strip()}, {torch.get_num_threads()} threads'
    return f'{hardware}, torch {torch.__version__}, repl_mm {__version__}, {date.today()}.'


def as_csv(rows: Sequence[Any]) -> str:
    """Records, which are dataclasses of one kind, one line each."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [field.name for field in fields(rows[0])], lineterminator='\n')
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return buffer.getvalue()


def as_markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """A head, its alignments and the rows as a table in Markdown."""
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines) + '\n'


def format_ratio(value: float | None, quartiles: tuple[float, float] | None = None) -> str:
    """A ratio with the quartiles of the turns; empty where there is none."""
    if value is None:
        return ''
    return f'{value:.3f}' + (f' ({quartiles[0]:.2f} to {quartiles[1]:.2f})' if quartiles else '')
