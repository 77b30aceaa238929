"""A training step on fake tensors, which hold no data: its operators and memory, and what they cost on a GPU."""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmpretrain.models.losses import LabelSmoothLoss
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeCopyMode,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry, shape_wrapper

from repl_mm.analysis.cost import convolution_backward_flops
from repl_mm.benchmark.devices import Device
from repl_mm.benchmark.operators import is_launched
from repl_mm.benchmark.step import TrainingStep

HALF = torch.bfloat16
# What autocast computes in FP32 on a GPU and not on a CPU, by torch's page on mixed precision; of what networks have.
FP32_ON_GPU = {'layer_norm', 'group_norm', 'softmax', 'log_softmax', 'softplus', 'sum', 'prod', 'cumsum', 'norm'} | {
    *('exp', 'log', 'pow', '__pow__', 'reciprocal', 'rsqrt', 'normalize', 'cross_entropy', 'nll_loss', 'mse_loss'),
    *('l1_loss', 'smooth_l1_loss', 'binary_cross_entropy_with_logits', 'cosine_similarity'),
}

FLOPS = flop_registry | {torch.ops.aten.convolution_backward: shape_wrapper(convolution_backward_flops)}
# What of a step of each library's models needs data, and so is not in it.
LEFT_OUT = dict(mmpretrain='', mmdet='losses', mmseg='accuracy', repl_mm='')


class OperatorCosts(TorchDispatchMode):
    """Adds up what the operators that run inside of it cost on a device.

    Attributes:
        flops: Floating-point operations, two for each multiplication with addition.
        bytes_moved: What the operators read and write, each by itself.
        operators: How many are dispatched; views and allocations are left out.
        seconds: Time, the sum over the operators of the largest of computing, moving bytes and launching.
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
        count = FLOPS.get(func._overloadpacket)
        flops = count(*args, **kwargs, out_val=out) if count else 0
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
        moved = sum(t.numel() * t.element_size() for t in tensors)
        self.seconds += max(
            flops / (self._tflops(func, tensors) * 1e12 * self.device.compute_efficiency) if flops else 0,
            moved / (self.device.bandwidth * 1e9 * self.device.bandwidth_efficiency),
            self.device.launch_us / 1e6,
        )
        self.flops += flops
        self.bytes_moved += moved
        self.operators += 1
        return out

    def _tflops(self, func: Any, tensors: list[Tensor]) -> float:
        if any(tensor.dtype == HALF for tensor in tensors):
            return self.device.bf16
        return self.device.tf32 if 'convolution' in str(func) else self.device.fp32


class CastsOfGPU(TorchFunctionMode):
    """What autocast casts to FP32 on a GPU beside what it does on a CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, '__name__', '') in FP32_ON_GPU:
            args, kwargs = tree_map_only(
                Tensor, lambda tensor: tensor.float() if tensor.dtype == HALF else tensor, (args, kwargs)
            )
        return func(*args, **kwargs)


@contextmanager
def autocast_of_gpu() -> Iterator[None]:
    """Mixed precision in BF16 by the rules for a GPU, on CPU tensors."""
    with torch.autocast('cpu', HALF), CastsOfGPU():
        yield


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Have torch make tensors without data.

    Raises:
        ValueError: What runs inside asks for data.
    """
    try:
        with FakeTensorMode():
            yield
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise ValueError(f'a step that needs data cannot be predicted: {error} asks for values') from error
    except RuntimeError as error:
        if not any(word in str(error) for word in ('FakeTensor', 'data pointer', 'tensor subclasses')):
            raise
        raise ValueError(f'a step that needs data cannot be predicted: {str(error).splitlines()[0]}') from error


class FakeStep(TrainingStep):
    """A step on tensors without data, for within :func:`fake_tensors`.

    The network is built with real weights, since the hosts' constructors read values, and is then copied without data.
    The optimizer updates all its tensors at once, as torch does by default on a GPU only. Losses of detectors need
    data: their place is taken by the sum of the raw outputs; segmenters' lack the accuracy that they report.

    Args:
        config: As of :class:`repl_mm.benchmark.step.TrainingStep`, like ``batch``, ``size`` and ``device``.
        backend: ``'fp32'`` or ``'amp'``, which is BF16 by autocast's rules for a GPU.

    Attributes:
        left_out: What of a step is not in it, or empty.
    """

    def __init__(
        self, config: Config, *, batch: int, size: tuple[int, ...], backend: str, device: torch.device
    ) -> None:
        super().__init__(config, batch=batch, size=size, backend='fp32', device=device)
        self.amp = backend == 'amp'
        self.left_out = LEFT_OUT[config.default_scope]
        if self.left_out == 'accuracy' and not self._heads():
            self.left_out = 'losses'
        if not self.left_out and isinstance(getattr(self.model.head, 'loss_module', None), LabelSmoothLoss):
            # It looks into labels that are numbers; mixup and the like hand it scores.
            for sample in self.samples:
                sample.set_gt_score(torch.rand(self.model.head.num_classes))
        for group in self.wrapper.optimizer.param_groups:
            if 'foreach' in group:
                group['foreach'] = True
        _forget_norm(self.wrapper)

    def _build(self, config: Config, device: torch.device) -> nn.Module:
        with unset_fake_temporarily() as mode:
            model = super()._build(config, device)
            with FakeCopyMode(mode):
                return copy.deepcopy(model)

    def precision(self) -> AbstractContextManager[None]:
        return autocast_of_gpu() if self.amp else nullcontext()

    def _forward(self) -> Tensor:
        if not self.left_out:
            return super()._forward()
        with self.precision():
            if self.left_out == 'accuracy':
                return self._segmentation_loss()
            raw = self.model(self.images, mode='tensor')
            return sum(out.float().sum() for out in tree_leaves(raw) if isinstance(out, Tensor))

    def _heads(self) -> list[BaseDecodeHead]:
        """A segmenter's heads, if their losses are those of all pixels."""
        auxiliary = getattr(self.model, 'auxiliary_head', None)
        heads = [self.model.decode_head, *(auxiliary if isinstance(auxiliary, nn.ModuleList) else [auxiliary])]
        heads = [head for head in heads if head is not None]
        plain = BaseDecodeHead.loss_by_feat
        return heads if all(getattr(type(head), 'loss_by_feat', None) is plain for head in heads) else []

    def _segmentation_loss(self) -> Tensor:
        """As ``BaseDecodeHead.loss_by_feat`` has it."""
        features = self.model.extract_feat(self.images)
        labels = torch.stack([sample.gt_sem_seg.data for sample in self.samples])
        total = 0
        for head in self._heads():
            logits = F.interpolate(
                head.forward(features), labels.shape[2:], mode='bilinear', align_corners=head.align_corners
            )
            losses = head.loss_decode if isinstance(head.loss_decode, nn.ModuleList) else [head.loss_decode]
            for loss in losses:
                if hasattr(loss, 'class_weight'):
                    loss.class_weight = None
                total = total + loss(logits, labels.squeeze(1), weight=None, ignore_index=head.ignore_index)
        return total


def _forget_norm(wrapper: OptimWrapper) -> None:
    """Clip gradients without reporting their norm, which is a value."""
    if wrapper.clip_grad_kwargs:
        clip = wrapper.clip_func
        wrapper.clip_func = lambda *args, **kwargs: [clip(*args, **kwargs), None][1]
