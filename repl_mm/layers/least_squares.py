"""Least squares over a stream of rows: sums in, slopes out.

Shapes:
    G    groups, each fitted by itself
    k    regressors of a group
    n    rows
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Of what a group's regressors measure, squared: what varies less is constant, and a direction less is none. Features
# come in float32, whose rounding is that large.
SINGULAR = 1e-12


@dataclass(frozen=True)
class Solution:
    """What came out.

    Attributes:
        slopes: One for each regressor, (G, k), of minimum norm where several are as good.
        intercept: (G,); zero where none was asked for.
        mean: The regressors' means over a batch, averaged over batches, (G, k).
        covariance: Their unbiased covariance within a batch, averaged over batches, (G, k, k). Both are what a batch
            norm with a cumulative average finds.
        unexplained: Sum of the squared residuals over that of the target, about its mean where there is an intercept.
        batches: How many there were.
    """

    slopes: Tensor
    intercept: Tensor
    mean: Tensor
    covariance: Tensor
    unexplained: float
    batches: int


class LeastSquares:
    """Accumulates rows and solves; of the rows it keeps the first two moments alone, in float64."""

    def __init__(self) -> None:
        self._total = _Moments()
        self._batches = 0
        self._mean: Any = 0.0  # then tensors
        self._covariance: Any = 0.0

    def add(self, pieces: Iterable[Tensor]) -> None:
        """One batch, as pieces of shape (G, k + 1, n): the regressors of each row, then its target."""
        batch = _Moments()
        for piece in pieces:
            batch.add(piece.double())
        self._total.merge(batch)
        self._batches += 1
        self._mean = self._mean + batch.mean
        self._covariance = self._covariance + batch.products / max(batch.number - 1, 1)

    def solve(self, *, intercept: bool) -> Solution:
        """Fit the target by the regressors, and a constant if there shall be one.

        Raises:
            ValueError: The rows hold NaN or infinity.
        """
        total = self._total
        if not bool(torch.isfinite(total.products).all() and torch.isfinite(total.mean).all()):
            raise ValueError('the features hold NaN or infinite values: look at the batches and at the weights')
        raw = total.products + total.number * total.mean.unsqueeze(-1) * total.mean.unsqueeze(-2)
        products = total.products if intercept else raw
        gram, moment, square = products[:, :-1, :-1], products[:, :-1, -1], products[:, -1, -1]
        tolerance = SINGULAR * raw[:, :-1, :-1].diagonal(dim1=-2, dim2=-1).sum(-1)
        inverse = torch.linalg.pinv(gram, atol=tolerance, rtol=torch.zeros_like(tolerance), hermitian=True)
        slopes = (inverse @ moment.unsqueeze(-1)).squeeze(-1)
        residual = square - 2 * (slopes * moment).sum(-1) + torch.einsum('gi,gij,gj->g', slopes, gram, slopes)
        constant = total.mean[:, -1] - (slopes * total.mean[:, :-1]).sum(-1)
        return Solution(
            slopes,
            constant if intercept else torch.zeros_like(constant),
            self._mean[:, :-1] / self._batches,
            self._covariance[:, :-1, :-1] / self._batches,
            float(residual.clamp_min(0).sum() / square.sum().clamp_min(1e-300)),
            self._batches,
        )


class _Moments:
    """Number, mean (G, k) and centred products (G, k, k) of rows, merged as by Chan, Golub and LeVeque (1979)."""

    def __init__(self) -> None:
        self.number = 0
        self.mean: Any = 0.0  # then tensors
        self.products: Any = 0.0

    def add(self, rows: Tensor) -> None:
        other = _Moments()
        other.number, other.mean = rows.size(-1), rows.mean(-1)
        centred = rows - other.mean.unsqueeze(-1)
        other.products = centred @ centred.mT
        self.merge(other)

    def merge(self, other: '_Moments') -> None:
        if not self.number:
            self.number, self.mean, self.products = other.number, other.mean, other.products
            return
        number, apart = self.number + other.number, other.mean - self.mean
        between = apart.unsqueeze(-1) * apart.unsqueeze(-2)
        self.products = self.products + other.products + between * (self.number * other.number / number)
        self.mean = self.mean + apart * (other.number / number)
        self.number = number
