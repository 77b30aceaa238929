"""What makes a computing layer's training leaner: activation recomputation and sampled weight gradients.

Both leave the forward pass as it is.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast computes convolutions in, or None where it is off; tensors without data know no autocast."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if not x.is_meta and torch.is_autocast_enabled(device) else None


def recompute_between(produce: Callable[[Tensor], Tensor], consume: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``consume(produce(x))``; what lies between is computed again in the backward pass instead of being kept.

    ``produce`` must bind the weights that it reads, as a module's may be others by then.

    Checkpointing both (Chen et al. 2016) would run ``consume`` twice too, and a batch norm's running statistics
    would see every batch twice. Inside ``torch.compile`` the compiler decides what is kept.
    """
    between = produce(x)
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return consume(between)
    kept, storage = x.detach(), between.untyped_storage()._cdata
    device, half = 'cpu' if x.is_meta else x.device.type, autocast_dtype(x)

    def again(*view: Any) -> Tensor:
        with torch.no_grad(), torch.autocast(device, half, enabled=half is not None):
            return produce(kept).as_strided(*view)

    def pack(tensor: Tensor) -> Tensor | Callable[[], Tensor]:
        if tensor.untyped_storage()._cdata != storage:
            return tensor
        return partial(again, tensor.size(), tensor.stride(), tensor.storage_offset())

    def unpack(packed: Tensor | Callable[[], Tensor]) -> Tensor:
        return packed if isinstance(packed, Tensor) else packed()

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return consume(between)


def draw(images: int, fraction: float) -> int:
    """How many images of a batch a fraction of it is."""
    return max(1, round(fraction * images))


class _SampledConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, fraction: float, geometry: dict[str, Any]) -> Tensor:
        # On the tensors' own device, so that the CPU need not wait for it.
        chosen = torch.randperm(x.size(0), device=x.device)[: draw(x.size(0), fraction)]
        ctx.save_for_backward(x, weight, chosen)
        ctx.geometry = geometry
        return F.conv2d(x, weight, **geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, chosen = ctx.saved_tensors
        geometry = [ctx.geometry[key] for key in ('stride', 'padding', 'dilation')]

        def gradient(grad: Tensor, x: Tensor, *, of: int) -> Tensor:
            asked = [place == of for place in range(3)]
            return torch.ops.aten.convolution_backward(
                grad, x, weight, None, *geometry, False, [0, 0], ctx.geometry['groups'], asked
            )[of]

        grad_x = gradient(grad, x, of=0) if ctx.needs_input_grad[0] else None
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = gradient(grad[chosen], x[chosen], of=1) * (x.size(0) / chosen.size(0))
        return grad_x, grad_weight, None, None


def sampled_conv2d(x: Tensor, weight: Tensor, *, fraction: float, **geometry: Any) -> Tensor:
    """A convolution whose weight gradient is estimated from a part of the batch, drawn anew each time.

    Every image is equally likely to be drawn, and the sum over those drawn is scaled up: the estimate is unbiased.
    The gradient of the input is exact. So is the weight's where all images would be drawn, as of a single one, and
    inside ``torch.compile``, which would draw twice, once for the inputs and once for the gradients.

    Args:
        x: Input, shape (N, C, H, W).
        weight: Kernel.
        fraction: Part of the N images, above 0 and at most 1; at least one image is drawn.
        **geometry: ``stride``, ``padding``, ``dilation`` and ``groups`` of the convolution, the first three as pairs.
    """
    if torch.compiler.is_compiling() or draw(x.size(0), fraction) >= x.size(0):
        return F.conv2d(x, weight, **geometry)
    if (half := autocast_dtype(x)) is not None:
        # What autocast does to a convolution, but not inside of a function of one's own.
        x, weight = x.to(half), weight.to(half)
    return _SampledConv.apply(x, weight, fraction, geometry)
