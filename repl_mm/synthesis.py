"""Weight-space synthesis: neighbours' weights and a few coefficients in, the weight of a new operator out.

Shapes:
    C, D   output channels (rows) and columns of a weight
    H, d   attention heads, and columns of one head: D = H d
    W      (C, ...) convolution kernel, or (C, D) linear weight

Every source is read through a stop-gradient (Eq. 30): only the coefficients receive gradients. ``prev`` and
``next`` are the weights of the left and of the right neighbour, of one shape.

A GPU that waits for launches takes as long as its operators are many, so mixing is an autograd function of few
operators. It keeps for the backward pass the sources alone, which exist anyway, and can be differentiated once.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

EPS = 1e-8
# As one more column of a row it takes part in the row's norm, in float16 too, where EPS itself would be 0.
ROOT_OF_EPS = EPS**0.5


def row_norm(weight: Tensor) -> Tensor:
    """Euclidean norm of each output channel, ``sqrt(sum(W[c]**2) + eps)`` (Eq. 9, 22), shape (C, 1)."""
    return torch.linalg.vector_norm(F.pad(weight.flatten(1), (0, 1), value=ROOT_OF_EPS), dim=1, keepdim=True)


_ROOTS: dict[tuple[torch.dtype, torch.device], Tensor] = {}


def _root(like: Tensor) -> Tensor:
    """``ROOT_OF_EPS`` as a tensor, made once for each kind of weight."""
    # Tensors of other kinds, without data or traced ones, do not outlive what made them.
    if type(like) is not Tensor:
        return like.new_full((1, 1), ROOT_OF_EPS)
    kind = like.dtype, like.device
    if kind not in _ROOTS:
        _ROOTS[kind] = like.new_full((1, 1), ROOT_OF_EPS)
    return _ROOTS[kind]


def _row_norms(prev: Tensor, next: Tensor) -> Tensor:
    """:func:`row_norm` of two weights, shape (C, 2), in fewer operators."""
    prev, next = prev.flatten(1), next.flatten(1)
    root = _root(prev).expand(prev.size(0), 1)
    both = torch.cat((prev, root, next, root), dim=1)
    return torch.linalg.vector_norm(both.view(prev.size(0), 2, -1), dim=2)


class _MixRows(torch.autograd.Function):
    """``alpha prev / |prev| + beta next / |next|`` of weights as (C, H, d).

    ``shape`` is that of the coefficients beside a weight: (C, 1) for one per row, (1, H) for one per head.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, alpha: Tensor, prev: Tensor, beta: Tensor, next: Tensor, shape: tuple[int, int]
    ) -> Tensor:
        norms = _row_norms(prev, next)
        scales = torch.stack((alpha, beta), dim=-1).view(*shape, 2) / norms.unsqueeze(1)  # (C, H, 2)
        a, b = scales.unsqueeze(2).unbind(-1)
        ctx.save_for_backward(prev, next, norms)
        ctx.shape = shape
        blocks = (prev.size(0), shape[1], -1)
        return torch.mul(prev.reshape(blocks), a).addcmul_(next.reshape(blocks), b).view(prev.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        prev, next, norms = ctx.saved_tensors
        blocks = (2, prev.size(0), ctx.shape[1], -1)
        products = torch.stack((prev, next)).view(blocks).mul_(grad.reshape(blocks[1:])).sum(-1)  # (2, C, H)
        grads = (products / norms.t().unsqueeze(-1)).sum_to_size(2, *ctx.shape)
        return grads[0].flatten(), None, grads[1].flatten(), None, None


def _mix_rows(alpha: Tensor, prev: Tensor, beta: Tensor, next: Tensor, shape: tuple[int, int]) -> Tensor:
    prev, next = prev.detach(), next.detach()
    if not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
        return _MixRows.apply(alpha, prev, beta, next, shape)
    # Compilers and exporters fuse for themselves.
    blocks = (prev.size(0), shape[1], -1)
    a, b = (
        (coefficients.view(shape) / row_norm(source)).unsqueeze(2)
        for coefficients, source in ((alpha, prev), (beta, next))
    )
    return (a * prev.reshape(blocks) + b * next.reshape(blocks)).view(prev.shape)


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
    if not prev.is_contiguous() and prev.is_contiguous(memory_format=torch.channels_last):
        # As rows of contiguous numbers nothing is copied, and the mix has the format of the sources.
        prev, next = (source.permute(0, 2, 3, 1) for source in (prev, next))
        return _mix_rows(alpha, prev, beta, next, (alpha.numel(), 1)).permute(0, 3, 1, 2)
    return _mix_rows(alpha, prev, beta, next, (alpha.numel(), 1))


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
    return _mix_rows(alpha, prev, beta, next, (1, alpha.numel()))


class _Mix(torch.autograd.Function):
    """``alpha prev + beta next`` of several pairs of tensors; those of ``prev`` come first."""

    @staticmethod
    def forward(ctx: FunctionCtx, alpha: Tensor, beta: Tensor, *sources: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*sources)
        half = len(sources) // 2
        return tuple(
            torch.mul(prev, alpha).addcmul_(next, beta)
            for prev, next in zip(sources[:half], sources[half:], strict=True)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        sources = ctx.saved_tensors
        flat = torch.cat([source.flatten() for source in sources]).view(2, -1)
        products = flat.mul_(torch.cat([grad.flatten() for grad in grads])).sum(1, keepdim=True)
        return (*products, *[None] * len(sources))


def mix(alpha: Tensor, prev: tuple[Tensor, ...], beta: Tensor, next: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """``alpha prev + beta next`` of each pair for scalars of shape (1,), the sources as they are (Eq. 20)."""
    prev, next = ([source.detach() for source in sources] for sources in (prev, next))
    if not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
        return _Mix.apply(alpha, beta, *prev, *next)
    return tuple(alpha * p + beta * n for p, n in zip(prev, next, strict=True))


@torch.no_grad()
def average(prev: Tensor, next: Tensor) -> Tensor:
    """Mean of two tensors, without coefficients and without gradients (Eq. 23, 26)."""
    return torch.lerp(prev, next, 0.5)


@torch.no_grad()
def average_normalised(prev: Tensor, next: Tensor) -> Tensor:
    """Mean of two row-normalised linear weights, without coefficients and without gradients (Eq. 25)."""
    left, right = _row_norms(prev.detach(), next.detach()).mul_(2).unsqueeze(-1).unbind(1)  # (C, 1)
    return torch.div(prev, left).addcdiv_(next, right)
