"""A training step predicted for a GPU that is not there: a whole step under fake tensors, which hold no data.

Memory is what torch's tracker counts of the tensors; what operators need inside of them and what the allocator keeps in
reserve are not seen. The time is the sum over the operators of the largest of computing, moving bytes and launching.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeCopyMode,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from repl_mm.analysis.tables import Table
from repl_mm.backbones.stochastic_depth import disabled_stochastic_depth
from repl_mm.benchmark.devices import Device, find_device
from repl_mm.benchmark.operators import is_launched
from repl_mm.benchmark.step import TrainingStep
from repl_mm.benchmark.timing import format_ratio
from repl_mm.benchmark.training import MIB, measure_memory
from repl_mm.benchmark.variants import PUBLISHED


@dataclass(frozen=True)
class PredictedStep:
    """What a step takes, predicted.

    Attributes:
        memory: Peak memory in MiB and its split, as of :func:`repl_mm.benchmark.training.measure_memory`.
        flops: Floating-point operations, two for each multiplication with addition.
        bytes_moved: What the operators read and write, each by itself.
        operators: How many are dispatched, the optimizer's too; views and allocations are left out.
        seconds: Time.
    """

    memory: Mapping[str, float]
    flops: int
    bytes_moved: int
    operators: int
    seconds: float


class OperatorCosts(TorchDispatchMode):
    """Adds up what the operators that run inside of it cost on a device.

    Attributes:
        flops: As of :class:`PredictedStep`, like ``bytes_moved``, ``operators`` and ``seconds``.
    """

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device
        self.flops, self.bytes_moved, self.operators, self.seconds = 0, 0, 0, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not is_launched(func):
            return out
        count = flop_registry.get(func._overloadpacket)
        flops = count(*args, **kwargs, out_val=out) if count else 0
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
        moved = sum(t.numel() * t.element_size() for t in tensors)
        tflops = self.device.tf32 if 'convolution' in str(func) else self.device.fp32
        self.seconds += max(
            flops / (tflops * 1e12 * self.device.compute_efficiency),
            moved / (self.device.bandwidth * 1e9 * self.device.bandwidth_efficiency),
            self.device.launch_us / 1e6,
        )
        self.flops += flops
        self.bytes_moved += moved
        self.operators += 1
        return out


class _FakeStep(TrainingStep):
    """Built with real weights, since the hosts' constructors read values, and then a copy without data."""

    def _build(self, config: Config, device: torch.device) -> nn.Module:
        with unset_fake_temporarily() as mode:
            model = super()._build(config, device)
            with FakeCopyMode(mode):
                return copy.deepcopy(model)


def predict_step(config: Config, device: Device, *, batch: int, size: tuple[int, int]) -> PredictedStep:
    """Predict a step of a classifier in FP32, with TF32 for convolutions, as torch trains by default.

    Args:
        config: Config of a classifier, with its optimizer.
        device: What to predict for.
        batch: Images in a batch.
        size: Height and width of the images.

    Raises:
        ValueError: A batch below 1, a detector or segmenter, whose losses depend on data, or a network whose forward
            pass does.
    """
    if batch < 1:
        raise ValueError(f'a batch has at least 1 image, got {batch}')
    if config.get('default_scope') != 'mmpretrain':
        raise ValueError('only steps of classifiers can be predicted: losses of detectors and segmenters need data')
    try:
        with FakeTensorMode():
            step = _FakeStep(config, batch=batch, size=size, backend='fp32', device=torch.device('cpu'))
            with disabled_stochastic_depth(step.model):  # as in the steps of a run that need most
                step()  # the optimizer's state comes with the first step
                memory = measure_memory(step)
                with OperatorCosts(device) as costs:
                    step()
    except DataDependentOutputException as error:
        raise ValueError(f'a step that needs data cannot be predicted: {error} asks for values') from error
    return PredictedStep(memory, costs.flops, costs.bytes_moved, costs.operators, costs.seconds)


@dataclass(frozen=True)
class PredictedRow:
    """A line of the table: what a step of one variant of a model takes, predicted.

    Attributes:
        model: Name of the model, like ``variant``, ``batch`` and ``size`` as of a measured step.
        device: What it is predicted for.
        note: Why there are no figures, or empty.
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
    batch: int
    size: str
    device: str
    note: str = ''
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
    variants: Mapping[str, Config], device: str, *, model: str, batch: int, size: tuple[int, int]
) -> list[PredictedRow]:
    """Predict a step of each variant of a model; one that cannot be predicted says why.

    Args:
        variants: Configs by name, E2E first.
        device: As for :func:`repl_mm.benchmark.devices.find_device`.
        model: What the rows call the model.
        batch: Images in a batch.
        size: Height and width of the images.

    Raises:
        ValueError: An unknown device.
    """
    rows, reference, figures = [], None, find_device(device)
    for variant, config in variants.items():
        row = PredictedRow(model, variant, batch, f'{size[0]} x {size[1]}', device)
        try:
            step = predict_step(config, figures, batch=batch, size=size)
        except ValueError as error:
            rows.append(replace(row, note=str(error)))
            if reference is None:  # so nothing of this model can be predicted
                break
            continue
        reference = reference or step
        published = PUBLISHED.get(model, (None, None)) if variant.startswith('RepL') else (None, None)
        rows.append(replace(
            row,
            step_ms=1e3 * step.seconds,
            time=step.seconds / reference.seconds,
            published_time=published[1],
            memory_mib=step.memory['total'],
            memory=step.memory['total'] / reference.memory['total'],
            published_memory=published[0],
            **{f'{part}_mib': step.memory[part] for part in ('weights', 'gradients', 'optimizer', 'activations')},
            gflops=step.flops / 1e9,
            bytes_mib=step.bytes_moved / MIB,
            operators=step.operators,
        ))  # fmt: skip
    return rows


def as_table(rows: Sequence[PredictedRow]) -> Table:
    """The figures with the published ones beside them."""
    head = ['model', 'variant', 'batch', 'size', 'time / E2E', 'published', 'memory / E2E', 'published', 'step (ms)']
    head += ['memory (MiB)', 'activations', 'GFLOP', 'moved (MiB)', 'operators']
    cells = [
        [
            *(row.model, row.variant, str(row.batch), row.size, format_ratio(row.time) or row.note),
            *map(format_ratio, (row.published_time, row.memory, row.published_memory)),
            *('' if value is None else f'{value:,.1f}' for value in (row.step_ms, row.memory_mib, row.activations_mib)),
            *('' if value is None else f'{value:,.0f}' for value in (row.gflops, row.bytes_mib, row.operators)),
        ]
        for row in rows
    ]
    return Table(head, 'llrl' + 10 * 'r', cells)


def conditions(device: str) -> str:
    """What the figures assume."""
    d = find_device(device)
    return (
        f'Predicted for {device}: {d.tf32:g} TFLOPS for convolutions (TF32), {d.fp32:g} for all else (FP32), x '
        f'{d.compute_efficiency:g}; {d.bandwidth:,g} GB/s x {d.bandwidth_efficiency:g}; {d.launch_us:g} us to launch '
        'an operator; each takes the largest of the three. Loading data, what kernels need inside of them and the '
        "allocator's reserve are not in it. Ratios mean more than milliseconds."
    )
