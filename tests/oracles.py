"""Each form's forward pass in plain torch, from the papers' equations: tensors in, tensors out.

Nothing of the package is used here, so that what a layer reads, mixes and computes is judged by something else.
Sources are read through a stop-gradient (Eq. 30).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Affine = tuple[Tensor, Tensor | None]
Function = Callable[[Tensor], Tensor]


def rows(weight: Tensor) -> Tensor:
    """``W[c] / sqrt(sum(W[c]^2) + eps)`` (Eq. 9, 22)."""
    flat = weight.detach().flatten(1)
    return (flat / (flat.pow(2).sum(1, keepdim=True) + 1e-8).sqrt()).view(weight.shape)


def channels(alpha: Tensor, prev: Tensor, beta: Tensor, next: Tensor) -> Tensor:
    """Eq. 10 and 14."""
    shape = (-1,) + (1,) * (prev.dim() - 1)
    return alpha.view(shape) * rows(prev) + beta.view(shape) * rows(next)


def heads(alpha: Tensor, prev: Tensor, beta: Tensor, next: Tensor) -> Tensor:
    """Eq. 22: the columns of a head share a coefficient."""
    wide = lambda c: c.repeat_interleave(prev.size(1) // c.numel())  # noqa: E731
    return wide(alpha) * rows(prev) + wide(beta) * rows(next)


def scalars(alpha: Tensor, prev: Tensor, beta: Tensor, next: Tensor) -> Tensor:
    """Eq. 20."""
    return alpha * prev.detach() + beta * next.detach()


def mean(prev: Tensor | None, next: Tensor | None) -> Tensor | None:
    """Eq. 23 and 26."""
    return None if prev is None else (prev.detach() + next.detach()) / 2


def basic_block(
    x: Tensor,
    *,
    alpha: Tensor,
    beta: Tensor,
    prev: Tensor,
    next: Tensor,
    norm: Function,
    activation: Function = torch.relu,
    dilation: int = 1,
) -> Tensor:
    """Eq. 11; ``prev`` is the left neighbour's second kernel, ``next`` the right one's first."""
    kernel = channels(alpha, prev, beta, next)
    return activation(x + norm(F.conv2d(x, kernel, padding=dilation, dilation=dilation)))


def bottleneck(
    x: Tensor,
    *,
    alpha: Tensor,
    beta: Tensor,
    reduce: Tensor,
    prev: Tensor,
    next: Tensor,
    expand: Tensor,
    norm: Function,
    activation: Function = torch.relu,
    dilation: int = 1,
    groups: int = 1,
) -> Tensor:
    """Eq. 13-15; ``prev`` and ``next`` are the neighbours' middle kernels."""
    z = activation(F.conv2d(x, reduce.detach()))
    kernel = channels(alpha, prev, beta, next)
    z = activation(F.conv2d(z, kernel, padding=dilation, dilation=dilation, groups=groups))
    return activation(x + norm(F.conv2d(z, expand.detach())))


def scalar(x: Tensor, *, alpha: Tensor, beta: Tensor, prev: Affine, next: Affine) -> Tensor:
    """Eq. 21."""
    weight = scalars(alpha, prev[0], beta, next[0])
    bias = None if prev[1] is None else scalars(alpha, prev[1], beta, next[1])
    return x + F.linear(x, weight, bias)


def headwise(x: Tensor, *, alpha: Tensor, beta: Tensor, prev: Affine, next: Affine, norm: Function) -> Tensor:
    """Eq. 24; the bias is not scaled."""
    weight = heads(alpha, prev[0], beta, next[0]) / x.size(-1) ** 0.5
    return x + F.linear(norm(x), weight, mean(prev[1], next[1]))


def fused_mlp(
    x: Tensor, *, prev: tuple[Affine, Affine], next: tuple[Affine, Affine], norm: Function, activation: Function
) -> Tensor:
    """Eq. 25-27."""
    (w1, b1), (w2, b2) = (
        (mean(rows(ours), rows(theirs)), mean(our_bias, their_bias))
        for (ours, our_bias), (theirs, their_bias) in zip(prev, next, strict=True)
    )
    return x + F.linear(activation(F.linear(norm(x), w1, b1)), w2, b2)


def layer_norm(x: Tensor, *, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Over the last axis, parameters read through a stop-gradient."""
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt()
    x = x if weight is None else x * weight.detach()
    return x if bias is None else x + bias.detach()


def batch_norm(
    x: Tensor, *, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """By running statistics."""
    wide = lambda t: t.view(1, -1, 1, 1)  # noqa: E731
    x = (x - wide(mean)) / (wide(var) + eps).sqrt()
    x = x if weight is None else x * wide(weight)
    return x if bias is None else x + wide(bias)
