"""What one training step costs in time and memory: end to end, replaced, and with the usual ways to save beside it.

All variants of a model are timed in interleaved rounds of one step each, with the losses, the optimizer and the mixed
precision of the host libraries; each ratio is the median of the ratios within a round.
"""

import gc
import resource
import statistics
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil
import torch
from mmengine.config import Config
from torch import nn
from torch.utils.hooks import RemovableHandle

from repl_mm.backbones.stochastic_depth import disabled_stochastic_depth
from repl_mm.benchmark.step import TrainingStep, check_training_backends
from repl_mm.benchmark.timing import compiled_each, round_ratio, time_interleaved
from repl_mm.benchmark.variants import PUBLISHED
from repl_mm.compat import torch_too_old

try:
    from torch.distributed._tools.mem_tracker import MemTracker
except ImportError:
    raise torch_too_old('the memory of a training step', needs='2.5') from None

MIB = 2**20


@dataclass(frozen=True)
class MeasuredStep:
    """What a step of one variant of a model took, measured.

    Attributes:
        model: Name of the model; see :func:`repl_mm.benchmark.variants.name_of`.
        variant: One of :data:`repl_mm.benchmark.variants.VARIANTS`, or what the caller calls it.
        backend: What it ran with.
        batch: Images in a batch.
        size: Height and width of the images.
        note: Why there are no figures, or empty.
        step_ms: Median time of a step.
        forward_ms: Of it, forward pass and losses.
        backward_ms: Of it, the backward pass.
        optimizer_ms: Of it, the optimizer's step.
        time: Time over E2E's, the median of the rounds' ratios.
        time_interval: 95 % interval of it; see :func:`repl_mm.benchmark.timing.round_ratio`.
        memory_mib: Peak memory of a step; with ``compile``, of the network as it is written.
        memory: The same over E2E's.
        weights_mib: Of the peak, parameters and buffers.
        gradients_mib: Of the peak, gradients.
        optimizer_mib: Of the peak, the optimizer's state.
        activations_mib: Of the peak, the rest: what is kept for the backward pass, and passing tensors.
        published_time: Published time of RepL over E2E.
        published_memory: The same of memory.
        rounds: How often each variant was timed.
        operators: How many operators the forward and the backward pass dispatch; None inside compiled graphs.
    """

    model: str
    variant: str
    backend: str
    batch: int
    size: str
    note: str = ''
    step_ms: float | None = None
    forward_ms: float | None = None
    backward_ms: float | None = None
    optimizer_ms: float | None = None
    time: float | None = None
    time_interval: tuple[float, float] | None = None
    memory_mib: float | None = None
    memory: float | None = None
    weights_mib: float | None = None
    gradients_mib: float | None = None
    optimizer_mib: float | None = None
    activations_mib: float | None = None
    published_time: float | None = None
    published_memory: float | None = None
    rounds: int = 0
    operators: int | None = None


class _Tracker(MemTracker):
    """torch's tracker, for blocks too that run with weights which are computed: those count as activations."""

    def _track_module_params_and_buffers(self, module: nn.Module, **options: bool) -> tuple[int, int]:
        if not all(parameter.is_leaf for parameter in module.parameters()):
            return 0, 0
        return super()._track_module_params_and_buffers(module, **options)


def measure_memory(step: TrainingStep) -> dict[str, float]:
    """Peak memory of one step in MiB: ``total``, and what it was made of at the peak, by torch's tracker.

    On a GPU the total is the allocator's, which counts what operators need inside of them too; it goes to activations.
    """
    tracker = _Tracker()
    for parameter in step.model.parameters():
        if not parameter.requires_grad:
            # The tracker would hook its gradient, which torch refuses.
            tracker._param_to_grad_hook_handles[parameter] = (RemovableHandle(OrderedDict()),) * 2
    tracker.track_external(step.model, step.wrapper.optimizer, step.images)
    resting = tracker.get_tracker_snapshot()[step.device]
    with tracker, warnings.catch_warnings():
        warnings.simplefilter('ignore')  # about modules that die within a step
        step()
    peak = tracker.get_tracker_snapshot('peak')[step.device]
    parts = {str(getattr(key, 'value', key)): value / MIB for key, value in peak.items()}
    total = parts['Total']
    if step.device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        total = resting['Total'] / MIB + (torch.cuda.max_memory_allocated() - before) / MIB
    split = {
        'weights': parts['Parameter'] + parts['Buffer'],
        'gradients': parts['Gradient'],
        'optimizer': parts['Optstate'],
    }
    return split | {'total': total, 'activations': total - sum(split.values())}


@contextmanager
def limited_memory() -> Iterator[None]:
    """Have allocations fail where memory ends; by default, Linux silently ends a process that takes too much."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    most = psutil.Process().memory_info().data + psutil.virtual_memory().available
    resource.setrlimit(resource.RLIMIT_DATA, (min([most, *(limit for limit in before if limit >= 0)]), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def as_written(backend: str) -> AbstractContextManager[Any]:
    """Where nothing is compiled yet, whatever the backend.

    Under torch's memory tracker nothing can be, and what the compiler has met there once, it leaves as it is for good.
    """
    return torch.compiler.set_stance('force_eager') if 'compile' in backend.split('+') else nullcontext()


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def measure_steps(
    variants: Mapping[str, Config],
    *,
    model: str,
    backend: str,
    batch: int,
    size: tuple[int, ...],
    device: torch.device,
    seconds: float,
) -> list[MeasuredStep]:
    """Time and weigh a step of each variant; a variant that does not fit into memory gets a row that says so.

    Args:
        variants: Configs by name; the first one is what the others are compared with.
        model: What the rows shall call the model.
        backend: As for :class:`repl_mm.benchmark.step.TrainingStep`.
        batch: Images or sequences in a batch.
        size: Height and width of the images, or the length of the sequences.
        device: Where to train.
        seconds: Time for all rounds; at least five are done.

    Raises:
        ValueError: A backend that does not exist.
    """
    check_training_backends([backend])
    steps: dict[str, TrainingStep] = {}
    memory: dict[str, dict[str, float]] = {}
    notes: dict[str, str] = {}
    with limited_memory() if device.type == 'cpu' else nullcontext(), warnings.catch_warnings():
        # The host libraries leave it to torch how to checkpoint.
        warnings.filterwarnings('ignore', message='.*use_reentrant')
        for name, config in variants.items():
            with _noting_shortage(notes, name):
                steps[name] = TrainingStep(config, batch=batch, size=size, backend=backend, device=device)
                # Without skips, as in the steps of a run that need most.
                with disabled_stochastic_depth(steps[name].model), as_written(backend):
                    steps[name]()  # the optimizer's state comes with the first step
                    memory[name] = measure_memory(steps[name])
                    if 'compile' not in backend:
                        steps[name].count_operators()
            _drop(steps, notes)
        with compiled_each(len(steps), backend):
            times = _time(steps, notes, seconds=seconds, device=device)
    rows = _rows(list(variants), steps, memory, times, notes, model=model, backend=backend, batch=batch, size=size)
    _drop(steps, steps)
    return rows


@contextmanager
def _noting_shortage(notes: dict[str, str], name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        notes[name] = 'out of memory'


def _drop(steps: dict[str, TrainingStep], names: Iterable[str]) -> None:
    """Forget these steps and free what they hold."""
    for name in list(names):
        if name in steps:
            # torch's memory tracker keeps the parameters alive.
            for parameter in steps.pop(name).model.parameters():
                parameter.data = parameter.data.new_empty(0)
    gc.collect()


def _time(
    steps: dict[str, TrainingStep], notes: dict[str, str], *, seconds: float, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each step, in interleaved rounds; where one runs out of memory, the others begin again without it."""
    running = ''

    def run(name: str) -> None:
        nonlocal running
        running = name
        steps[name]()

    while steps:
        try:
            calls = {name: partial(run, name) for name in steps}
            return time_interleaved(calls, seconds=seconds, least=5, device=device)
        except Exception as error:
            if not _is_out_of_memory(error):
                raise
            notes[running] = 'out of memory'
        _drop(steps, notes)
    return {}


def _rows(
    names: Sequence[str],
    steps: Mapping[str, TrainingStep],
    memory: Mapping[str, Mapping[str, float]],
    times: Mapping[str, Sequence[float]],
    notes: Mapping[str, str],
    *,
    model: str,
    backend: str,
    batch: int,
    size: tuple[int, ...],
) -> list[MeasuredStep]:
    published = PUBLISHED.get(model, (None, None))
    reference = names[0]
    rows = []
    for name in names:
        row: dict[str, Any] = dict(model=model, variant=name, backend=backend, batch=batch)
        row |= dict(size=' x '.join(map(str, size)))
        row |= dict(published_memory=published[0], published_time=published[1])
        if name in notes:
            rows.append(MeasuredStep(**row, note=notes[name]))
            continue
        rounds = len(times[name])
        phases = [1000 * statistics.median(phase) for phase in zip(*steps[name].phases[-rounds:], strict=True)]
        row |= dict(zip(('forward_ms', 'backward_ms', 'optimizer_ms'), phases, strict=True))
        row |= {f'{part}_mib': value for part, value in memory[name].items() if part != 'total'}
        row |= dict(step_ms=1000 * statistics.median(times[name]), memory_mib=memory[name]['total'], rounds=rounds)
        row |= dict(operators=steps[name].operators)
        if reference in steps:
            time, interval = round_ratio(times[name], times[reference])
            row |= dict(time=time, time_interval=interval)
            row |= dict(memory=memory[name]['total'] / memory[reference]['total'])
        rows.append(MeasuredStep(**row))
    return rows
