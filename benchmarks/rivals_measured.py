"""Other ways to save, measured on this machine's CPU beside RepL: docs/results/rivals_measured_cpu_*.{csv,md}.

    python benchmarks/rivals_measured.py measure OUT.csv     # about ten minutes on quiet cores
    python benchmarks/rivals_measured.py page OUT.csv PAGE.md

The ways are those of benchmarks/rivals.py, at a batch that two cores can train, beside what is predicted for this CPU.
"""

import csv
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.logging import MMLogger
from predicted_vs_measured import machine_in_words, measure_device
from rich.progress import track
from rivals import BUDGET, CASES, Case, ways
from torch._functorch import config as functorch

from repl_mm.analysis.tables import Table, as_csv
from repl_mm.backbones.stochastic_depth import disabled_stochastic_depth
from repl_mm.benchmark.devices import Device
from repl_mm.benchmark.partition import bytes_saved
from repl_mm.benchmark.step import TrainingStep
from repl_mm.benchmark.timing import compiled_each, describe, format_ratio, round_ratio, time_interleaved
from repl_mm.benchmark.training import MIB, as_written, measure_memory
from repl_mm.engine.files import write_atomic

NETWORKS = ('R32, CIFAR-10', 'ViT-T/8, CIFAR-10')
BATCH = 64
CPU = torch.device('cpu')


@dataclass(frozen=True)
class Measured:
    """A row of the CSV: a way to train a network; ratios over E2E, the measured time with its 95 % interval."""

    network: str
    way: str
    batch: int
    size: str
    predicted_time: float
    time: float
    low: float
    high: float
    predicted_memory: float
    memory: float
    rounds: int
    fp32_tflops: float
    convolution_tflops: float
    bandwidth: float
    launch_us: float
    machine: str


def weigh(step: TrainingStep, backend: str) -> float:
    """Peak memory of a step in MiB, with the optimizer over all tensors at once, as on a GPU and as is predicted."""
    groups = step.wrapper.optimizer.param_groups
    for group in groups:
        group['foreach'] = True
    with disabled_stochastic_depth(step.model), as_written(backend):
        step()  # the optimizer's state comes with the first step
        memory = measure_memory(step)['total']
        kept = bytes_saved(step.model.backbone, step.images)
    for group in groups:
        group['foreach'] = None  # for the times, as torch does on a CPU
    if backend != 'compile':
        return memory
    step()  # is compiled
    return memory - (kept - bytes_saved(step.model.backbone, step.images)) / MIB


def measure_case(case: Case, device: Device, *, seconds: float) -> list[Measured]:
    """Time and weigh a step of each way to train a network.

    Args:
        case: The network.
        device: This machine, for which the steps are predicted too.
        seconds: Time for all rounds.
    """
    found = {way.name: way for way in ways(case)}
    options = dict(batch=BATCH, size=case.size)
    predicted = {name: way.predict(device=device, **options) for name, way in found.items()}
    steps, memory = {}, {}
    with compiled_each(len(found), 'compile'), functorch.patch(activation_memory_budget=BUDGET):
        for name, way in found.items():
            backend = 'fp32' if way.budget is None else 'compile'
            step = steps[name] = TrainingStep(way.config, backend=backend, device=CPU, **options)
            memory[name] = weigh(step, backend)
        times = time_interleaved(steps, seconds=seconds, device=CPU)
    e2e = next(iter(found))
    rows = []
    for name in found:
        time, interval = round_ratio(times[name], times[e2e])
        ratios = predicted[name].memory['total'] / predicted[e2e].memory['total'], memory[name] / memory[e2e]
        rows.append(
            Measured(
                *(case.network, name, BATCH, f'{case.size[0]} x {case.size[1]}'),
                *(predicted[name].seconds / predicted[e2e].seconds, time, *interval),
                *(*ratios, len(times[name])),
                *(device.fp32, device.tf32, device.bandwidth, device.launch_us, describe(CPU)),
            )
        )  # fmt: skip
    return rows


def read(path: Path) -> list[Measured]:
    """The rows of the CSV."""
    kinds = {'batch': int, 'rounds': int} | dict.fromkeys(('network', 'way', 'size', 'machine'), str)
    with path.open(newline='') as file:
        return [
            Measured(**{key: kinds.get(key, float)(value) for key, value in row.items()})
            for row in csv.DictReader(file)
        ]


INTRODUCTION = """# Other ways to save, measured beside RepL, on a CPU

Written by `benchmarks/rivals_measured.py`: a training step of each [way](../rivals.md) over that of end-to-end training
(E2E), predicted from what this machine reaches and measured in interleaved rounds, in float32. Memory is the peak that
torch's tracker counts, with the optimizer over all tensors at once, as on a GPU; under `torch.compile`, with a budget
of half the activations, less what the compiled backbone does not keep of them.

"""


def as_page(rows: list[Measured]) -> str:
    """The page of the rows."""
    text = INTRODUCTION
    for network in dict.fromkeys(row.network for row in rows):
        mine = [row for row in rows if row.network == network]
        cells = [
            [
                *(row.way, format_ratio(row.predicted_time), format_ratio(row.time, (row.low, row.high))),
                *map(format_ratio, (row.predicted_memory, row.memory)),
            ]
            for row in mine
        ]
        head = ['way', 'time, predicted', 'measured (95 % interval)', 'memory, predicted', 'measured']
        text += f'## {network}, {mine[0].batch} of {mine[0].size}\n\n{Table(head, "lrrrr", cells).markdown()}\n'
    counts = sorted({row.rounds for row in rows})
    return f'{text}{" to ".join(map(str, counts))} rounds. {machine_in_words(rows[0])}\n'


def main(what: str, out: str, page: str = '') -> None:
    """Measure the rows, or write the page."""
    if what == 'page':
        write_atomic(Path(page), as_page(read(Path(out))).encode())
        return
    MMLogger.get_instance('mmengine', log_level='ERROR')
    device = measure_device(seconds=5)
    rows: list[Measured] = []
    for case in track([case for case in CASES if case.network in NETWORKS], 'Measuring: '):
        rows += measure_case(case, device, seconds=120)
        write_atomic(Path(out), as_csv(rows).encode())


if __name__ == '__main__':
    main(*sys.argv[1:])
