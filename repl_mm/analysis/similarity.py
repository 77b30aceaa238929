"""Linear centred kernel alignment (CKA) of blocks (Kornblith et al. 2019; Fig. 4 of the 2024 paper).

Shapes:
    n        rows: images
    p, q     features of two blocks
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

# Of the products that are held at once. Networks that are too wide for it are gone through several times.
BYTES = 2**30


class CrossProducts:
    """Centred cross-products X^T Y of two streams of features, in float64; of the rows nothing is kept."""

    def __init__(self) -> None:
        self._rows = 0
        self._origin: tuple[Tensor, Tensor] | None = None

    def add(self, left: Tensor, right: Tensor) -> None:
        """One batch of rows, (n, p) and (n, q)."""
        left, right = left.double(), right.double()
        if self._origin is None:
            # Sums about the first batch's mean: those about zero would cancel where means are large.
            self._origin = left.mean(0), right.mean(0)
            self._sums = [torch.zeros_like(mean) for mean in self._origin]
            self._products = left.new_zeros(left.size(1), right.size(1))
        left, right = left - self._origin[0], right - self._origin[1]
        self._rows += len(left)
        self._sums = [self._sums[0] + left.sum(0), self._sums[1] + right.sum(0)]
        self._products += left.T @ right

    def centred(self) -> Tensor:
        """X^T Y with the means of all rows taken off, (p, q)."""
        return self._products - torch.outer(*self._sums) / self._rows


def cka(
    rows: Callable[[], Iterator[tuple[Mapping[str, Tensor], Mapping[str, Tensor]]]],
    left: Mapping[str, int],
    right: Mapping[str, int],
) -> np.ndarray:
    """||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F) of every pair of blocks of two networks.

    Args:
        rows: Goes through the batches anew at each call: the features of both networks by block, (n, p) and (n, q).
        left: Features of each block of the first network, by name: which and how many.
        right: Of the second.

    Returns:
        (blocks of the first, blocks of the second); NaN where a block's features do not vary.
    """
    result = np.full((len(left), len(right)), np.nan)
    own = (
        _norms(lambda: (first for first, _ in rows()), left),
        _norms(lambda: (second for _, second in rows()), right),
    )
    places = {name: at for at, name in enumerate(left)}
    for group in _groups(left, columns=sum(right.values())):
        products = {(one, other): CrossProducts() for one in group for other in right}
        for first, second in rows():
            for (one, other), product in products.items():
                product.add(first[one], second[other])
        for (one, other), product in products.items():
            scale = own[0][one] * own[1][other]
            if scale > 0:
                result[places[one], list(right).index(other)] = float(product.centred().square().sum()) / scale
    return result


def _norms(stream: Callable[[], Iterable[Mapping[str, Tensor]]], sizes: Mapping[str, int]) -> dict[str, float]:
    """||X^T X||_F of each block, zero where rounding is all that varies."""
    found: dict[str, float] = {}
    for group in _groups(sizes, columns=max(sizes.values())):
        products, squares = {name: CrossProducts() for name in group}, dict.fromkeys(group, 0.0)
        for features in stream():
            for name, product in products.items():
                product.add(features[name], features[name])
                squares[name] += float(features[name].double().square().sum())
        for name, product in products.items():
            norm = float(torch.linalg.matrix_norm(product.centred()))
            found[name] = norm if norm > 1e-14 * squares[name] else 0.0
    return found


def _groups(sizes: Mapping[str, int], *, columns: int) -> Iterator[Sequence[str]]:
    """Names of blocks, in groups whose products with so many columns fit into ``BYTES``; at least one a group."""
    group: list[str] = []
    for name, size in sizes.items():
        if group and 8 * columns * (size + sum(sizes[other] for other in group)) > BYTES:
            yield group
            group = []
        group.append(name)
    if group:
        yield group
