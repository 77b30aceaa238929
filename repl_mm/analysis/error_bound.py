"""How far replaced blocks move a network's features, measured and bounded (Eq. 38-41, 59-60).

The network is the chain of its backbone's blocks: F ends at the last one's output, neck and head are left out.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from repl_mm.analysis.lipschitz import Block, jacobian_norm


@dataclass
class SiteBound:
    """One replaced block, over all samples.

    Attributes:
        error: eps_r of Eq. 41, the largest and
        mean_error: the mean.
        height: H_r, the largest norm of its input in the unreplaced network.
        suffix: Pi_r of Eq. 40, the product of the constants of the blocks behind it.
    """

    error: float = 0.0
    mean_error: float = 0.0
    height: float = 0.0
    suffix: float = 1.0

    @property
    def term(self) -> float:
        """Its part of Eq. 59."""
        return self.suffix * self.error * max(self.height, 1.0)


@dataclass
class ErrorBound:
    """Error and bound of a chain.

    Attributes:
        sites: What is known of each replaced block, by its place in the chain.
        lipschitz: The largest Jacobian norm of each block behind the first replaced one, by place, at the features that
            the two networks visit.
        measured: ||F_RepL(x) - F(x)|| of each sample.
        scale: ||F(x)|| of each sample.
    """

    sites: dict[int, SiteBound] = field(default_factory=dict)
    lipschitz: dict[int, float] = field(default_factory=dict)
    measured: list[float] = field(default_factory=list)
    scale: list[float] = field(default_factory=list)

    @property
    def bound(self) -> float:
        """The right side of Eq. 59."""
        return sum(site.term for site in self.sites.values())

    @property
    def bound_if_contracting(self) -> float:
        """The right side of Eq. 60, which holds where no suffix enlarges: all Pi_r at most 1."""
        worst = max(site.error for site in self.sites.values())
        return len(self.sites) * worst * max(1.0, *(site.height for site in self.sites.values()))


def bound_error(
    original: Sequence[Block], replaced: Sequence[Block], inputs: Iterable[Tensor], *, tolerance: float = 1e-3
) -> ErrorBound:
    """Send samples through both chains, and take the constants of the bound from what they visit.

    Args:
        original: The blocks of the network, each from a batch to a batch.
        replaced: The same objects, but for the replaced ones.
        inputs: Batches that the first block is given.
        tolerance: Of :func:`jacobian_norm`.

    Raises:
        ValueError: Nothing is replaced, there is no batch, or a value is not finite.
    """
    sites = [at for at, (own, other) in enumerate(zip(original, replaced, strict=True)) if own is not other]
    if not sites:
        raise ValueError('no block is replaced: give a network with sites')
    result = ErrorBound({at: SiteBound() for at in sites}, dict.fromkeys(range(sites[0] + 1, len(original)), 0.0))
    for x in inputs:
        _add(result, original, replaced, x, tolerance=tolerance)
    if not result.measured:
        raise ValueError('there is no batch to look at: check the data set and --batches')
    for at, site in result.sites.items():
        site.mean_error /= len(result.measured)
        for place, constant in result.lipschitz.items():
            site.suffix *= constant if place > at else 1.0
    return result


@torch.no_grad()
def _add(result: ErrorBound, original: Sequence[Block], replaced: Sequence[Block], x: Tensor, tolerance: float) -> None:
    ours = theirs = x
    for at, (block, own) in enumerate(zip(original, replaced, strict=True)):
        if at in result.lipschitz:
            # The blocks replaced one by one, from the back: behind a site the chain is the replaced network's.
            visited = torch.cat([theirs, ours])
            result.lipschitz[at] = max(
                result.lipschitz[at], float(jacobian_norm(own, visited, tolerance=tolerance).max())
            )
        after = block(theirs)
        if at in result.sites:
            site, height = result.sites[at], theirs.flatten(1).norm(dim=1)
            errors = (own(theirs) - after).flatten(1).norm(dim=1) / height.clamp_min(1)
            site.error = max(site.error, float(errors.max()))
            site.mean_error += float(errors.sum())
            site.height = max(site.height, float(height.max()))
        ours, theirs = own(ours), after
    measured = (ours - theirs).flatten(1).norm(dim=1)
    if not torch.isfinite(measured).all():
        raise ValueError('the features hold NaN or infinite values: look at the weights and images')
    result.measured += measured.tolist()
    result.scale += theirs.flatten(1).norm(dim=1).tolist()
