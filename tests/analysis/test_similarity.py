"""Contract: streamed CKA is the textbook's, whatever the batches are, and knows nothing of rotation and scale.

Oracles: a 3 x 2 case by hand, the dense formula in NumPy, and the package ckatorch.
"""

import numpy as np
import pytest
import torch
from ckatorch.core import cka_base

from repl_mm.analysis import similarity
from repl_mm.analysis.similarity import cka


def dense(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    return np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def streamed(left: dict, right: dict, *, size: int) -> np.ndarray:
    def rows():
        number = len(next(iter(left.values())))
        for start in range(0, number, size):
            yield tuple({k: torch.tensor(v[start : start + size]) for k, v in f.items()} for f in (left, right))

    return cka(rows, *({name: value.shape[1] for name, value in f.items()} for f in (left, right)))


def test_three_rows_by_hand():
    # Centred: X = [(-1, 0), (0, 0), (1, 0)], Y = [(0, -1), (1, 2), (-1, -1)].
    # X'X has 2 alone, norm 2. Y'Y = [[2, 3], [3, 6]], norm sqrt(58). Y'X = [[-1, 0], [0, 0]], square 1.
    x = np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])
    y = np.array([[1.0, 0.0], [2.0, 3.0], [0.0, 0.0]])
    assert streamed({'x': x}, {'y': y}, size=1)[0, 0] == pytest.approx(1 / (2 * 58**0.5), rel=1e-12)


@pytest.mark.parametrize('limit', [2**30, 8 * 12 * 7])
@pytest.mark.parametrize('size', [1, 7, 100])
def test_streamed_is_dense(size, limit, monkeypatch):
    """In one pass, and in one for each block where the products do not fit; means far from zero cancel nothing."""
    monkeypatch.setattr(similarity, 'BYTES', limit)
    rng = np.random.default_rng(0)
    left = {'a': rng.normal(size=(50, 4)) + 1e5, 'b': rng.normal(size=(50, 7)) @ rng.normal(size=(7, 7))}
    right = {'c': left['b'][:, :5] + rng.normal(size=(50, 5)), 'd': rng.normal(size=(50, 3)), 'e': left['a'] ** 2}
    expected = [[dense(x, y) for y in right.values()] for x in left.values()]
    np.testing.assert_allclose(streamed(left, right, size=size), expected, rtol=1e-6)


def test_streamed_is_that_of_another_package():
    rng = np.random.default_rng(3)
    left = {'a': rng.normal(size=(60, 9)), 'b': rng.gamma(2, size=(60, 31))}
    right = {'c': left['a'] @ rng.normal(size=(9, 20)), 'd': rng.normal(size=(60, 4)) + left['b'][:, :4]}
    expected = [[cka_base(torch.tensor(x), torch.tensor(y)).item() for y in right.values()] for x in left.values()]
    np.testing.assert_allclose(streamed(left, right, size=17), expected, rtol=1e-10)


def test_rotation_and_scale_change_nothing():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(40, 6)), rng.normal(size=(40, 5)) ** 3
    rotation, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    values = streamed({'x': x, 'rotated': 7 * x @ rotation - 3}, {'y': y, 'x': x}, size=16)
    np.testing.assert_allclose(values[0], values[1], rtol=1e-10)
    assert values[0, 1] == pytest.approx(1)
    stretched = streamed({'x': x * [9, 1, 1, 1, 1, 1]}, {'y': y}, size=16)
    assert abs(stretched[0, 0] - values[0, 0]) > 1e-3  # it is not blind to all linear maps


def test_constant_features_are_like_nothing():
    x = np.random.default_rng(2).normal(size=(20, 3))
    values = streamed({'constant': np.full((20, 2), 0.1)}, {'x': x}, size=6)
    assert np.isnan(values).all()
