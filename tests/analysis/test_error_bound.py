"""Contract: Jacobian norms are largest singular values, and Eq. 59 bounds the error where its constants are exact.

Oracles: dense SVD; chains of matrices in NumPy.
"""

import numpy as np
import pytest
import torch
from helpers import randomise
from torch import nn

from repl_mm.analysis.error_bound import bound_error
from repl_mm.analysis.lipschitz import jacobian_norm


def test_jacobian_norm_is_the_dense_one():
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 3, padding=1))
    block = randomise(block).double().eval()
    x = torch.randn(4, 2, 5, 4, dtype=torch.float64)
    found = jacobian_norm(lambda h: h + block(h), x, tolerance=1e-9, limit=2000)
    for sample, value in zip(x, found, strict=True):
        dense = torch.autograd.functional.jacobian(lambda h: (h + block(h[None])[0]).flatten(), sample).flatten(1)
        assert float(value) == pytest.approx(float(torch.linalg.matrix_norm(dense, 2)), rel=1e-6)


def test_of_attention_too():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True).double().eval()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    found = jacobian_norm(layer, x, tolerance=1e-9, limit=2000)
    for sample, value in zip(x, found, strict=True):
        dense = torch.autograd.functional.jacobian(lambda h: layer(h[None]).flatten(), sample).flatten(1)
        assert float(value) == pytest.approx(float(torch.linalg.matrix_norm(dense, 2)), rel=1e-6)


class Residual(nn.Module):
    """h + A h."""

    def __init__(self, matrix: np.ndarray) -> None:
        super().__init__()
        self.matrix = torch.tensor(matrix)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x @ self.matrix.T


@pytest.mark.parametrize('start', range(0, 100, 10))
def test_the_bound_is_never_below_the_error(start):
    for seed in range(start, start + 10):
        rng = np.random.default_rng(seed)
        width, depth = int(rng.integers(2, 5)), int(rng.integers(3, 6))
        scale = 10 ** rng.uniform(-2, 0.5)
        matrices = [scale * rng.normal(size=(width, width)) for _ in range(depth)]
        sites = sorted(rng.choice(depth, size=int(rng.integers(1, depth)), replace=False))
        others = {at: matrices[at] + scale * rng.normal(size=(width, width)) for at in sites}
        original = [Residual(matrix) for matrix in matrices]
        replaced = [Residual(others[at]) if at in others else block for at, block in enumerate(original)]
        x = rng.normal(size=(5, width)) * 10 ** rng.uniform(-1, 1)
        batches = [torch.tensor(x[:1]), torch.tensor(x[1:])]
        found = bound_error(original, replaced, batches, tolerance=1e-6)

        identity = np.eye(width)
        h, z, terms = x.T, x.T, []
        for at, matrix in enumerate(matrices):
            own = others.get(at, matrix)
            if at in others:
                norms = np.linalg.norm(h, axis=0)
                epsilon = (np.linalg.norm((own - matrix) @ h, axis=0) / np.maximum(norms, 1)).max()
                rest = [np.linalg.norm(identity + others.get(i, matrices[i]), 2) for i in range(at + 1, depth)]
                terms.append(np.prod(rest) * epsilon * max(norms.max(), 1))
            h, z = h + matrix @ h, z + own @ z
        error = np.linalg.norm(z - h, axis=0)
        np.testing.assert_allclose(found.measured, error, rtol=1e-9)
        np.testing.assert_allclose([site.term for site in found.sites.values()], terms, rtol=2e-3)
        assert found.bound * (1 + 2e-3) >= max(found.measured)


def test_one_site_at_the_end_meets_its_bound():
    """Of one sample there is nothing between the error and the bound."""
    original = [Residual(np.eye(2)), Residual(np.zeros((2, 2)))]
    found = bound_error(original, [original[0], Residual(np.diag([0.5, 0.0]))], [torch.tensor([[3.0, 4.0]]).double()])
    (site,) = found.sites.values()
    assert (site.height, site.suffix, site.error) == (10, 1, pytest.approx(0.3))
    assert found.measured == [pytest.approx(3)]
    assert found.bound == found.bound_if_contracting == pytest.approx(3)


BAD = [
    ([0], [torch.ones(1, 2).double()], 'no block is replaced'),
    ([1], [], 'there is no batch'),
    ([1], [torch.tensor([[float('nan'), 1.0]]).double()], 'NaN or infinite'),
]


@pytest.mark.parametrize(('sites', 'batches', 'expected'), BAD)
def test_bad_input_is_refused(sites, batches, expected):
    original = [Residual(np.eye(2)), Residual(np.eye(2))]
    replaced = [original[0], Residual(np.zeros((2, 2))) if sites == [1] else original[1]]
    with pytest.raises(ValueError, match=expected):
        bound_error(original, replaced, batches)
