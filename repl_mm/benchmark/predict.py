"""A training step predicted for a GPU that is not there: a whole step under fake tensors, which hold no data.

Memory is what torch's tracker counts of the tensors; what operators need inside of them and what the allocator keeps in
reserve are not seen. The time is the sum over the operators of the largest of computing, moving bytes and launching.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
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

from repl_mm.backbones.stochastic_depth import disabled_stochastic_depth
from repl_mm.benchmark.devices import Device
from repl_mm.benchmark.operators import is_launched
from repl_mm.benchmark.step import TrainingStep
from repl_mm.benchmark.training import measure_memory


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
