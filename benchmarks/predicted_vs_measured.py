"""Predicted ratios against measured ones, on this machine's CPU: docs/results/predicted_vs_measured.{csv,md}.

    python benchmarks/predicted_vs_measured.py measure OUT.csv     # about 15 minutes on quiet cores
    python benchmarks/predicted_vs_measured.py page OUT.csv PAGE.md

The machine's own TFLOPS, bandwidth and launch time are measured first and described like a GPU's. Then each network's
steps are predicted with them, and timed in interleaved rounds.
"""

import csv
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import MMLogger
from rich.progress import track
from scipy.stats import bootstrap, pearsonr

from repl_mm.analysis.tables import Table, as_csv
from repl_mm.benchmark.devices import Device
from repl_mm.benchmark.predict import predict_step
from repl_mm.benchmark.timing import describe, format_ratio, undisturbed
from repl_mm.benchmark.training import measure_steps
from repl_mm.benchmark.variants import build_variants
from repl_mm.cli.config import SCOPES, load_scoped_config
from repl_mm.engine.files import write_atomic

CONFIGS = Path(__file__).parents[1] / 'configs'
CPU = torch.device('cpu')
VARIANTS = ('drop, interval', 'RepL, interval', 'drop, half', 'RepL, half')


@dataclass(frozen=True)
class Case:
    """A network, and a batch and a size that two cores can train."""

    network: str
    config: str
    batch: int
    size: tuple[int, ...]


CASES = [
    Case('ResNet-32', 'demo/resnet32-repl_digits.py', 64, (32, 32)),
    Case('ViT-T/8', 'demo/vit-tiny-repl_digits.py', 64, (32, 32)),
    Case('ResNet-34', 'classification/resnet34-repl_4xb128-90e_in1k.py', 4, (224, 224)),
    Case('ResNet-101', 'classification/resnet101-repl_4xb128-90e_in1k.py', 2, (160, 160)),
    Case('ViT-S/16', 'classification/vit-small-p16-repl_4xb256-90e_in1k.py', 4, (224, 224)),
    Case('Transformer', 'demo/transformer-lm-repl_topics.py', 16, (64,)),
]


@dataclass(frozen=True)
class Pair:
    """A row of the CSV: a variant's step time over E2E's, predicted and measured with its 95 % interval."""

    network: str
    variant: str
    batch: int
    size: str
    predicted: float
    measured: float
    low: float
    high: float
    rounds: int
    fp32_tflops: float
    convolution_tflops: float
    bandwidth: float
    launch_us: float
    machine: str


def measure_device(*, seconds: float) -> Device:
    """What this machine's CPU reaches: in a product, a 3x3 convolution, a sum of long vectors, and one of one number.

    Args:
        seconds: For each of the four.
    """
    a, images = torch.rand(1024, 1024), torch.rand(8, 64, 56, 56)
    weight, long, short = torch.rand(64, 64, 3, 3), torch.rand(2**25), torch.rand(1)
    out = torch.empty_like(long)
    with undisturbed(torch.get_num_threads()), torch.no_grad():
        product = _seconds_of(lambda: a @ a, seconds)
        convolution = _seconds_of(lambda: torch.conv2d(images, weight, padding=1), seconds)
        moved = _seconds_of(lambda: torch.add(long, 1, out=out), seconds)
        launch = _seconds_of(lambda: short + short, seconds)
    return Device(
        fp32=2 * 1024**3 / product / 1e12,
        tf32=2 * 8 * 64 * 64 * 9 * 56**2 / convolution / 1e12,
        bandwidth=2 * 4 * 2**25 / moved / 1e9,
        compute_efficiency=1,
        bandwidth_efficiency=1,
        launch_us=launch * 1e6,
    )


def _seconds_of(call: Callable[[], object], seconds: float) -> float:
    """Median time of a call."""
    call()
    times, end = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def compare(case: Case, device: Device, *, seconds: float) -> list[Pair]:
    """Predict and time the variants of a network.

    Args:
        case: The network.
        device: This machine.
        seconds: Time for all rounds; at least five are done.
    """
    args = Namespace(config=str(CONFIGS / case.config), cfg_options=None, launcher='none', local_rank=0, work_dir=None)
    config = load_scoped_config(args, sections=('model', 'optim_wrapper'), scopes=SCOPES)
    variants = build_variants(config, ('E2E', *VARIANTS))
    predicted = {
        name: predict_step(variant, device, batch=case.batch, size=case.size).seconds
        for name, variant in variants.items()
    }
    measured = measure_steps(
        variants, model=case.network, backend='fp32', batch=case.batch, size=case.size, device=CPU, seconds=seconds
    )
    machine = (device.fp32, device.tf32, device.bandwidth, device.launch_us, describe(CPU))
    return [
        Pair(
            *(case.network, row.variant, case.batch, row.size, predicted[row.variant] / predicted['E2E']),
            *(row.time, *row.time_interval, row.rounds, *machine),
        )
        for row in measured
        if row.variant != 'E2E' and row.time is not None
    ]


def correlation(predicted: Sequence[float], measured: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Pearson's correlation of pairs, and its bootstrap interval of 95 %."""
    found = bootstrap(
        (predicted, measured), lambda x, y: pearsonr(x, y).statistic, paired=True, vectorized=False,
        n_resamples=2000, confidence_level=0.95, method='percentile', rng=0,
    )  # fmt: skip
    low, high = found.confidence_interval
    return float(pearsonr(predicted, measured).statistic), (float(low), float(high))


def read(path: Path) -> list[Pair]:
    """The rows of the CSV."""
    kinds = {'batch': int, 'rounds': int} | dict.fromkeys(('network', 'variant', 'size', 'machine'), str)
    with path.open() as file:
        return [
            Pair(**{key: kinds.get(key, float)(value) for key, value in row.items()}) for row in csv.DictReader(file)
        ]


def as_page(pairs: Sequence[Pair]) -> str:
    """The page of the rows."""
    head = ['network', 'batch', 'variant', 'predicted', 'measured (95 % interval)', 'rounds']
    cells = [
        [
            *(pair.network, f'{pair.batch} of {pair.size}', pair.variant, format_ratio(pair.predicted)),
            *(format_ratio(pair.measured, (pair.low, pair.high)), str(pair.rounds)),
        ]
        for pair in pairs
    ]
    r, interval = correlation([pair.predicted for pair in pairs], [pair.measured for pair in pairs])
    error = np.median([abs(pair.predicted - pair.measured) for pair in pairs])
    return (
        '# Predicted ratios against measured ones, on a CPU\n\n'
        'Written by `benchmarks/predicted_vs_measured.py`: step times over E2E, predicted from what this machine '
        'reaches, and measured in interleaved rounds.\n\n'
        f'{Table(head, "lllrrr", cells).markdown()}\n'
        f"Pearson's correlation over the {len(pairs)} rows is {r:.2f} (bootstrap interval of 95 %: "
        f'{interval[0]:.2f} to {interval[1]:.2f}), the median distance {error:.3f}. Rows of one network are not '
        'independent, so the interval is narrower than it should be.\n\n'
        f'{machine_in_words(pairs[0])}\n'
    )


def machine_in_words(row: Any) -> str:
    """What was measured of the machine of a row, and what it is."""
    return (
        f'Measured of the machine: {row.fp32_tflops:.3f} TFLOPS in a product of 1024 x 1024, '
        f'{row.convolution_tflops:.3f} in a convolution, {row.bandwidth:.1f} GB/s, {row.launch_us:.1f} us for an '
        f'operator of one number. {row.machine}'
    )


def main(what: str, out: str, page: str = '') -> None:
    """Measure the rows, or write the page."""
    if what == 'page':
        write_atomic(Path(page), as_page(read(Path(out))).encode())
        return
    MMLogger.get_instance('mmengine', log_level='ERROR')
    device = measure_device(seconds=5)
    pairs: list[Pair] = []
    for case in track(CASES, 'Measuring: '):
        pairs += compare(case, device, seconds=90)
        write_atomic(Path(out), as_csv(pairs).encode())


if __name__ == '__main__':
    main(*sys.argv[1:])
