"""Weight-space synthesis: neighbours' weights and a few coefficients in, the weight of a new operator out.

Shapes:
    C, D   output channels (rows) and columns of a weight
    H, d   attention heads, and columns of one head: D = H d
    W      (C, ...) convolution kernel, or (C, D) linear weight

Every source is read through a stop-gradient (Eq. 30): only the coefficients receive gradients. ``stop_gradient=False``
switches that off, for the ablation. ``prev`` and ``next`` are the weights of the left and of the right neighbour, of
one shape; where one of them and its coefficient are None, the other is the only source. One coefficient for both is
given twice.

A GPU that waits for launches takes as long as its operators are many, so mixing is an autograd function of few
operators. It keeps for the backward pass the sources alone, which exist anyway, and can be differentiated once.
"""

from collections.abc import Sequence
from typing import TypeAlias

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


def _row_norms(*weights: Tensor) -> Tensor:
    """:func:`row_norm` of n weights, shape (C, n), in fewer operators."""
    rows = [weight.flatten(1) for weight in weights]
    root = _root(rows[0]).expand(rows[0].size(0), 1)
    joined = torch.cat([column for row in rows for column in (row, root)], dim=1)
    return torch.linalg.vector_norm(joined.view(root.size(0), len(rows), -1), dim=2)


class _MixRows(torch.autograd.Function):
    """The sum of ``alpha W / |W|`` over n weights as (C, H, d); their n coefficients come first.

    ``shape`` is that of the coefficients beside a weight: (C, 1) for one per row, (1, H) for one per head.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, shape: tuple[int, int], *terms: Tensor) -> Tensor:
        number = len(terms) // 2
        sources = terms[number:]
        norms = _row_norms(*sources)
        scales = torch.stack(terms[:number], dim=-1).view(*shape, number) / norms.unsqueeze(1)  # (C, H, n)
        ctx.save_for_backward(*sources, norms)
        ctx.shape = shape
        blocks = (norms.size(0), shape[1], -1)
        first, *others = zip(sources, scales.unsqueeze(2).unbind(-1), strict=True)
        weight = torch.mul(first[0].reshape(blocks), first[1])
        for source, scale in others:
            weight.addcmul_(source.reshape(blocks), scale)
        return weight.view(sources[0].shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        *sources, norms = ctx.saved_tensors
        number = len(sources)
        blocks = (number, norms.size(0), ctx.shape[1], -1)
        products = torch.stack(sources).view(blocks).mul_(grad.reshape(blocks[1:])).sum(-1)  # (n, C, H)
        grads = (products / norms.t().unsqueeze(-1)).sum_to_size(number, *ctx.shape)
        return None, *grads.view(number, -1).unbind(), *[None] * number


# None for a neighbour that is left out.
Coefficient: TypeAlias = Tensor | None
Source: TypeAlias = Tensor | None


def _mix_rows(
    alpha: Coefficient, prev: Source, beta: Coefficient, next: Source, shape: tuple[int, int], stop_gradient: bool
) -> Tensor:
    terms = [(alpha, prev), (beta, next)]
    terms = [(c, w.detach() if stop_gradient else w) for c, w in terms if c is not None and w is not None]
    if stop_gradient and not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
        coefficients, sources = zip(*terms, strict=True)
        return _MixRows.apply(shape, *coefficients, *sources)
    # Compilers and exporters fuse for themselves.
    blocks = (terms[0][1].size(0), shape[1], -1)
    scaled = [(c.view(shape) / row_norm(w)).unsqueeze(2) * w.reshape(blocks) for c, w in terms]
    return sum(scaled[1:], scaled[0]).view(terms[0][1].shape)


def mix_channels(
    alpha: Coefficient, prev: Source, beta: Coefficient, next: Source, *, stop_gradient: bool = True
) -> Tensor:
    """Mix row-normalised weights channel by channel (Eq. 10, 14).

    Args:
        alpha: Coefficients of ``prev``, shape (C,).
        prev: Weight of the left neighbour, shape (C, ...).
        beta: Coefficients of ``next``, shape (C,).
        next: Weight of the right neighbour, shape (C, ...).
        stop_gradient: Whether the weights get no gradients.

    Returns:
        ``alpha[c] prev[c] / |prev[c]| + beta[c] next[c] / |next[c]|``, shape (C, ...).
    """
    one = next if prev is None else prev
    shape = (one.size(0), 1)
    if not one.is_contiguous() and one.is_contiguous(memory_format=torch.channels_last):
        # As rows of contiguous numbers nothing is copied, and the mix has the format of the sources.
        prev, next = (None if source is None else source.permute(0, 2, 3, 1) for source in (prev, next))
        return _mix_rows(alpha, prev, beta, next, shape, stop_gradient).permute(0, 3, 1, 2)
    return _mix_rows(alpha, prev, beta, next, shape, stop_gradient)


def mix_heads(
    alpha: Coefficient, prev: Source, beta: Coefficient, next: Source, *, stop_gradient: bool = True
) -> Tensor:
    """Mix row-normalised linear weights, one coefficient per block of columns that a head owns (Eq. 22-23).

    Args:
        alpha: Coefficients of ``prev``, shape (H,).
        prev: Projection weight of the left neighbour, shape (C, H d).
        beta: Coefficients of ``next``, shape (H,).
        next: Projection weight of the right neighbour, shape (C, H d).
        stop_gradient: Whether the weights get no gradients.

    Returns:
        The mixed weight, shape (C, H d).
    """
    heads = (beta if alpha is None else alpha).numel()
    return _mix_rows(alpha, prev, beta, next, (1, heads), stop_gradient)


class _Mix(torch.autograd.Function):
    """The sum of ``alpha W`` over n sources of several tensors each; their n coefficients come first."""

    @staticmethod
    def forward(ctx: FunctionCtx, number: int, *terms: Tensor) -> tuple[Tensor, ...]:
        coefficients, tensors = terms[:number], terms[number:]
        ctx.save_for_backward(*tensors)
        ctx.number = number
        each = len(tensors) // number
        mixed = tuple(torch.mul(tensor, coefficients[0]) for tensor in tensors[:each])
        for place, coefficient in enumerate(coefficients[1:], start=1):
            for out, tensor in zip(mixed, tensors[each * place :], strict=False):
                out.addcmul_(tensor, coefficient)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        flat = torch.cat([tensor.flatten() for tensor in tensors]).view(ctx.number, -1)
        products = flat.mul_(torch.cat([grad.flatten() for grad in grads])).sum(1, keepdim=True)
        return None, *products, *[None] * len(tensors)


def mix(
    alpha: Coefficient,
    prev: Sequence[Tensor] | None,
    beta: Coefficient,
    next: Sequence[Tensor] | None,
    *,
    stop_gradient: bool = True,
) -> tuple[Tensor, ...]:
    """``alpha prev + beta next`` of each pair for scalars of shape (1,), the sources as they are (Eq. 20)."""
    terms = [(alpha, prev), (beta, next)]
    terms = [
        (c, [w.detach() if stop_gradient else w for w in weights])
        for c, weights in terms
        if c is not None and weights is not None
    ]
    if stop_gradient and not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
        coefficients, sources = zip(*terms, strict=True)
        return _Mix.apply(len(terms), *coefficients, *(w for weights in sources for w in weights))
    scaled = [[c * w for w in weights] for c, weights in terms]
    return tuple(sum(group[1:], group[0]) for group in zip(*scaled, strict=True))


def _gradients_unless(stop_gradient: bool) -> torch.set_grad_enabled:
    return torch.set_grad_enabled(torch.is_grad_enabled() and not stop_gradient)


def average(*sources: Tensor, stop_gradient: bool = True) -> Tensor:
    """Mean of one or two tensors, without coefficients and, by default, without gradients (Eq. 23, 26)."""
    with _gradients_unless(stop_gradient):
        return torch.lerp(*sources, 0.5) if len(sources) == 2 else sources[0].view_as(sources[0])


def average_normalised(*sources: Tensor, stop_gradient: bool = True) -> Tensor:
    """Mean of one or two row-normalised linear weights, otherwise as :func:`average` (Eq. 25)."""
    with _gradients_unless(stop_gradient):
        if not stop_gradient or len(sources) == 1:
            return sum(source / row_norm(source) for source in sources) / len(sources)
        left, right = _row_norms(*(source.detach() for source in sources)).mul_(2).unsqueeze(-1).unbind(1)  # (C, 1)
        return torch.div(sources[0], left).addcdiv_(sources[1], right)
