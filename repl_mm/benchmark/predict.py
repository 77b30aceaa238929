"""A training step predicted for a GPU that is not there: a whole step under fake tensors, which hold no data.

Memory is what torch's tracker counts of the tensors; what operators need inside of them and what the allocator keeps in
reserve are not seen. The time is the sum over the operators of the largest of computing, moving bytes and launching.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from mmengine.config import Config

from repl_mm.analysis.tables import Table
from repl_mm.backbones.stochastic_depth import SkippableBlock, disabled_stochastic_depth, identity, skipped_blocks
from repl_mm.benchmark.devices import Device, find_device
from repl_mm.benchmark.fake import FakeStep, OperatorCosts, fake_tensors
from repl_mm.benchmark.timing import format_ratio
from repl_mm.benchmark.training import MIB, measure_memory
from repl_mm.benchmark.variants import PUBLISHED
from repl_mm.engine.errors import HOST_ERRORS, summarise

PREDICTABLE = ('fp32', 'amp')


@dataclass(frozen=True)
class PredictedStep:
    """What a step takes, predicted.

    Attributes:
        memory: Peak memory in MiB and its split, as of :func:`repl_mm.benchmark.training.measure_memory`.
        flops: Floating-point operations, two for each multiplication with addition; like what follows, with
            stochastic depth the mean over its draws.
        bytes_moved: What the operators read and write, each by itself.
        operators: How many are dispatched, the optimizer's too; views and allocations are left out.
        seconds: Time.
        left_out: What of a step is not in it, or empty.
    """

    memory: Mapping[str, float]
    flops: int
    bytes_moved: int
    operators: int
    seconds: float
    left_out: str = ''


def predict_step(
    config: Config, device: Device, *, batch: int, size: tuple[int, ...], backend: str = 'fp32'
) -> PredictedStep:
    """Predict a training step.

    Args:
        config: Config of a classifier, detector, segmenter or language model, with its optimizer.
        device: What to predict for.
        batch: Images or sequences in a batch.
        size: Height and width of the images, or the length of the sequences.
        backend: ``'fp32'``, with TF32 for convolutions, as torch trains by default, or ``'amp'``, which is BF16 by
            autocast's rules.

    Raises:
        ValueError: A batch below 1, a backend that is none of the two or of which the device has no figure, or a
            network whose forward pass needs data.
    """
    if batch < 1:
        raise ValueError(f'a batch has at least 1 image, got {batch}')
    check_predictable(backend, device)
    with fake_tensors():
        step = FakeStep(config, batch=batch, size=size, backend=backend, device=torch.device('cpu'))
        with disabled_stochastic_depth(step.model):  # as in the steps of a run that need most
            step()  # the optimizer's state comes with the first step
            memory = measure_memory(step)
        costs = _expected_costs(step, device)
    return PredictedStep(memory, *costs, step.left_out)


def _expected_costs(step: FakeStep, device: Device) -> tuple[int, int, int, float]:
    """Operations, bytes, operators and seconds of a step, with stochastic depth the mean over its draws.

    A step's costs are the sum over its blocks. So a block that is skipped with probability p takes p times away what
    a step without it saves; blocks with weights of the same shapes save the same, as a stage's do.
    """

    def costs_of() -> np.ndarray:
        with OperatorCosts(device) as costs:
            step()
        return np.array([costs.flops, costs.bytes_moved, costs.operators, costs.seconds])

    alike: dict[tuple[torch.Size, ...], list[SkippableBlock]] = {}
    for block in skipped_blocks(step.model):
        alike.setdefault(tuple(parameter.shape for parameter in block.parameters()), []).append(block)
    rates = {block: block.skip_rate for blocks in alike.values() for block in blocks}
    with disabled_stochastic_depth(step.model):
        full = expected = costs_of()
        for blocks in alike.values():
            with identity(blocks[0]):
                expected = expected - sum(rates[block] for block in blocks) * (full - costs_of())
    return *(round(value) for value in expected[:3]), float(expected[3])


def check_predictable(backend: str, device: Device) -> None:
    """Raise ValueError unless steps with a backend can be predicted for a device."""
    if backend not in PREDICTABLE:
        raise ValueError(f'steps are predicted for {" or ".join(PREDICTABLE)}, got the backend {backend!r}')
    if backend == 'amp' and device.bf16 is None:
        raise ValueError("amp is predicted in BF16, of which the device has no figure: give it 'bf16' in TFLOPS")


@dataclass(frozen=True)
class PredictedRow:
    """A line of the table: what a step of one variant of a model takes, predicted.

    Attributes:
        model: Name of the model, like ``variant``, ``backend``, ``batch`` and ``size`` as of a measured step.
        device: What it is predicted for.
        note: Why there are no figures, or empty.
        left_out: As of :class:`PredictedStep`.
        step_ms: Time of a step.
        time: The same over E2E's.
        published_time: Published time of RepL over E2E.
        memory_mib: Peak memory.
        memory: The same over E2E's.
        published_memory: Published memory of RepL over E2E.
        weights_mib: Of the peak, parameters and buffers.
        gradients_mib: Of the peak, gradients.
        optimizer_mib: Of the peak, the optimizer's state.
        activations_mib: Of the peak, the rest.
        gflops: Operations in 10^9.
        bytes_mib: Moved by the operators.
        operators: Dispatched.
    """

    model: str
    variant: str
    backend: str
    batch: int
    size: str
    device: str
    note: str = ''
    left_out: str = ''
    step_ms: float | None = None
    time: float | None = None
    published_time: float | None = None
    memory_mib: float | None = None
    memory: float | None = None
    published_memory: float | None = None
    weights_mib: float | None = None
    gradients_mib: float | None = None
    optimizer_mib: float | None = None
    activations_mib: float | None = None
    gflops: float | None = None
    bytes_mib: float | None = None
    operators: int | None = None


def predict_steps(
    variants: Mapping[str, Config], device: str, *, model: str, batch: int, size: tuple[int, ...], backend: str = 'fp32'
) -> list[PredictedRow]:
    """Predict a step of each variant of a model; one that cannot be predicted says why.

    Args:
        variants: Configs by name, E2E first.
        device: As for :func:`repl_mm.benchmark.devices.find_device`.
        model: What the rows call the model.
        batch: Images or sequences in a batch.
        size: Height and width of the images, or the length of the sequences.
        backend: As for :func:`predict_step`.

    Raises:
        ValueError: An unknown device.
    """
    rows, reference, figures = [], None, find_device(device)
    for variant, config in variants.items():
        row = PredictedRow(model, variant, backend, batch, ' x '.join(map(str, size)), device)
        try:
            step = predict_step(config, figures, batch=batch, size=size, backend=backend)
        except (*HOST_ERRORS, AttributeError) as error:  # of a model that a library builds and this one cannot train
            rows.append(replace(row, note=summarise(error)))
            if reference is None:  # so nothing of this model can be predicted
                break
            continue
        reference = reference or step
        published = PUBLISHED.get(model, (None, None)) if variant.startswith('RepL') else (None, None)
        parts = ('weights', 'gradients', 'optimizer', 'activations')
        split: dict[str, Any] = {f'{part}_mib': step.memory[part] for part in parts}
        rows.append(replace(
            row,
            left_out=step.left_out,
            step_ms=1e3 * step.seconds,
            time=step.seconds / reference.seconds,
            published_time=published[1],
            memory_mib=step.memory['total'],
            memory=step.memory['total'] / reference.memory['total'],
            published_memory=published[0],
            **split,
            gflops=step.flops / 1e9,
            bytes_mib=step.bytes_moved / MIB,
            operators=step.operators,
        ))  # fmt: skip
    return rows


def as_table(rows: Sequence[PredictedRow]) -> Table:
    """The figures with the published ones beside them."""
    head = [
        'model',
        'variant',
        'backend',
        'batch',
        'size',
        'time / E2E',
        'published',
        'memory / E2E',
        'published',
        'step (ms)',
    ]
    head += ['memory (MiB)', 'activations', 'GFLOP', 'moved (MiB)', 'operators']
    cells = [
        [
            *(row.model, row.variant, row.backend, str(row.batch), row.size, format_ratio(row.time) or row.note),
            *map(format_ratio, (row.published_time, row.memory, row.published_memory)),
            *('' if value is None else f'{value:,.1f}' for value in (row.step_ms, row.memory_mib, row.activations_mib)),
            *('' if value is None else f'{value:,.0f}' for value in (row.gflops, row.bytes_mib, row.operators)),
        ]
        for row in rows
    ]
    return Table(head, 'lllrl' + 10 * 'r', cells)


def conditions(device: str, backends: Collection[str], left_out: str) -> str:
    """What figures assume.

    Args:
        device: As for :func:`repl_mm.benchmark.devices.find_device`.
        backends: As of the rows.
        left_out: What of their steps is not in them; values of ``LEFT_OUT``, joined.
    """
    d = find_device(device)
    formats = dict(
        fp32=f'{d.tf32:g} TFLOPS for convolutions (TF32), {d.fp32:g} for all else (FP32)',
        amp=f'{d.bf16 or 0:g} TFLOPS (BF16) for what autocast casts on a GPU',
    )
    used = '; '.join(f'{name}: {text}' for name, text in formats.items() if name in backends)
    text = (
        f'Predicted for {device}. {used}; x {d.compute_efficiency:g}. {d.bandwidth:,g} GB/s x '
        f'{d.bandwidth_efficiency:g}; {d.launch_us:g} us to launch an operator; each takes the largest of the three. '
        "Loading data, what kernels need inside of them and the allocator's reserve are not in it. Ratios mean more "
        'than milliseconds.'
    )
    if 'losses' in left_out:
        text += ' The backward pass of detectors begins at the sum of the raw outputs: their losses need data.'
    if 'accuracy' in left_out:
        text += " Segmenters' losses are in it, the accuracy that they report is not."
    return text
