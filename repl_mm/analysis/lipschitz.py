"""How much a block can enlarge a small change of its input: the largest singular value of its Jacobian.

Shapes:
    B        samples of a batch
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Block = Callable[[Tensor], Tensor]


def jacobian_norm(block: Block, x: Tensor, *, tolerance: float = 1e-3, limit: int = 100) -> Tensor:
    """The largest singular value of a block's Jacobian at each sample, by power iteration, (B,).

    Args:
        block: Maps a batch to a batch, each sample by itself (norms in eval mode).
        x: The samples, (B, ...).
        tolerance: The iteration ends when no value grows by more than this part of itself. What it finds lies below
            the true value.
        limit: Iterations at most.

    Raises:
        ValueError: A derivative is NaN or infinite.
    """
    # The same start at each call; a random one is not orthogonal to what is looked for.
    generator = torch.Generator().manual_seed(0)
    direction = _unit(torch.randn(x.shape, generator=generator).to(x))
    before = found = x.new_zeros(len(x))
    # Fused attention cannot be derived twice.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        x = x.detach().requires_grad_()
        out = block(x)
        dual = torch.zeros_like(out, requires_grad=True)
        (pulled,) = torch.autograd.grad(out, x, dual, create_graph=True)  # J^T dual, linear in dual
        for _ in range(limit):
            (pushed,) = torch.autograd.grad(pulled, dual, direction, retain_graph=True)  # J direction
            found = _norm(pushed)
            if not torch.isfinite(found).all():
                raise ValueError('a block has derivatives that are NaN or infinite: look at the weights and images')
            if ((found - before) <= tolerance * found).all():
                break
            before = found
            direction = _unit(torch.autograd.grad(out, x, pushed, retain_graph=True)[0])
    return found


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)


def _unit(x: Tensor) -> Tensor:
    norm = _norm(x).clamp_min(torch.finfo(x.dtype).tiny)
    return x / norm.reshape(-1, *[1] * (x.dim() - 1))
