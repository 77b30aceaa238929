"""Weight-space synthesis: neighbours' weights and a few coefficients in, the weight of a new operator out.

Shapes:
    C, D   output channels (rows) and columns of a weight
    H, d   attention heads, and columns of one head: D = H d
    W      (C, ...) convolution kernel, or (C, D) linear weight

Every source is read through a stop-gradient (Eq. 30): only the coefficients receive gradients. ``prev`` and
``next`` are the weights of the left and of the right neighbour, of one shape.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

EPS = 1e-8
# Numbers of a weight from which a pass over it takes longer than Python's part of an autograd function, on two cores.
LARGE = 2**18


class _LargeMix(torch.autograd.Function):
    """``a * prev + b * next`` in fewer passes over the weights than autograd would make, forward or backward.

    It can be differentiated once.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, a: Tensor, prev: Tensor, b: Tensor, next: Tensor) -> Tensor:
        ctx.save_for_backward(prev, next)
        ctx.shape = a.shape
        return torch.mul(prev, a).addcmul_(next, b)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[::2]
        grad_a, grad_b = (
            torch.mul(grad, source).sum_to_size(ctx.shape) if is_wanted else None
            for source, is_wanted in zip(ctx.saved_tensors, wanted, strict=True)
        )
        return grad_a, None, grad_b, None


def _mix(a: Tensor, prev: Tensor, b: Tensor, next: Tensor) -> Tensor:
    """``a * prev + b * next`` for scales a and b of one shape that broadcasts to the weights'.

    Only the sources themselves are kept, which exist anyway, and the gradient of a scale is one contraction. Were the
    sources normalised first, autograd would keep copies.
    """
    if prev.numel() >= LARGE and not torch.compiler.is_compiling():
        return _LargeMix.apply(a, prev, b, next)
    return torch.mul(prev, a).add_(torch.mul(next, b))


def row_norm(weight: Tensor) -> Tensor:
    """Euclidean norm of each output channel, ``sqrt(sum(W[c]**2) + eps)`` (Eq. 9, 22), shape (C, 1, ...)."""
    norm = torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.dim())), keepdim=True)
    # Not hypot, which exporters do not know.
    return norm.square_().add_(EPS).sqrt_()


def mix_channels(alpha: Tensor, prev: Tensor, beta: Tensor, next: Tensor) -> Tensor:
    """Mix row-normalised weights channel by channel (Eq. 10, 14).

    Args:
        alpha: Coefficients of ``prev``, shape (C,).
        prev: Weight of the left neighbour, shape (C, ...).
        beta: Coefficients of ``next``, shape (C,).
        next: Weight of the right neighbour, shape (C, ...).

    Returns:
        ``alpha[c] prev[c] / |prev[c]| + beta[c] next[c] / |next[c]|``, shape (C, ...).
    """
    prev, next = prev.detach(), next.detach()
    column = (-1,) + (1,) * (prev.dim() - 1)
    return _mix(alpha.view(column) / row_norm(prev), prev, beta.view(column) / row_norm(next), next)


def mix_outputs(
    alpha: Tensor, prev: Tensor, beta: Tensor, next: Tensor, convolve: Callable[[Tensor], Tensor]
) -> Tensor:
    """``convolve(mix_channels(...))`` without mixing kernels, as a convolution is linear in its kernel.

    It convolves twice, but passes over the weights for their norms alone, and needs no gradient of a weight: those of
    the coefficients are contractions of the outputs. Where outputs are small beside weights, that is cheaper.

    Args:
        alpha: Coefficients of ``prev``, shape (C,).
        prev: Kernel of the left neighbour, shape (C, ...).
        beta: Coefficients of ``next``, shape (C,).
        next: Kernel of the right neighbour, shape (C, ...).
        convolve: The convolution as a function of its kernel; it gives (N, C, H, W).
    """
    prev, next = prev.detach(), next.detach()

    def scale(coefficients: Tensor, source: Tensor) -> Tensor:
        return (coefficients / row_norm(source).flatten()).view(-1, 1, 1)

    # Not by _mix: what is mixed has gradients here.
    return torch.mul(convolve(prev), scale(alpha, prev)).add_(torch.mul(convolve(next), scale(beta, next)))


def mix_heads(alpha: Tensor, prev: Tensor, beta: Tensor, next: Tensor) -> Tensor:
    """Mix row-normalised linear weights, one coefficient per block of columns that a head owns (Eq. 22-23).

    Args:
        alpha: Coefficients of ``prev``, shape (H,).
        prev: Projection weight of the left neighbour, shape (C, H d).
        beta: Coefficients of ``next``, shape (H,).
        next: Projection weight of the right neighbour, shape (C, H d).

    Returns:
        The mixed weight, shape (C, H d).
    """
    prev, next = prev.detach(), next.detach()
    by_head = (prev.size(0), alpha.numel(), -1)  # (C, H, d)
    a = (alpha / row_norm(prev)).unsqueeze(-1)  # (C, H, 1)
    b = (beta / row_norm(next)).unsqueeze(-1)
    return _mix(a, prev.view(by_head), b, next.view(by_head)).view(prev.shape)


def mix(alpha: Tensor, prev: Tensor, beta: Tensor, next: Tensor) -> Tensor:
    """``alpha prev + beta next`` for scalars of shape (1,), the sources as they are (Eq. 20)."""
    return _mix(alpha, prev.detach(), beta, next.detach())


@torch.no_grad()
def average(prev: Tensor, next: Tensor) -> Tensor:
    """Mean of two tensors, without coefficients and without gradients (Eq. 23, 26)."""
    return torch.lerp(prev, next, 0.5)


@torch.no_grad()
def average_normalised(prev: Tensor, next: Tensor) -> Tensor:
    """Mean of two row-normalised weights, without coefficients and without gradients (Eq. 25)."""
    return torch.mul(prev, 0.5 / row_norm(prev)).addcmul_(next, 0.5 / row_norm(next))
