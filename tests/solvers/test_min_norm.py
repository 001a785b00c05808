from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtobal.solvers import min_norm, nonnegative_minimum


def jacobian(seed: int, tasks: int, width: int, spread: float) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(tasks, width)) * 10.0 ** generator.uniform(-spread, spread, (tasks, 1))


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 10**9), tasks=st.integers(1, 40), width=st.integers(1, 60), spread=st.floats(0.0, 3.0))
def test_optimality_conditions(seed: int, tasks: int, width: int, spread: float) -> None:
    rows = jacobian(seed, tasks, width, spread)
    weights = min_norm(rows @ rows.T)
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1)
    point = rows.T @ weights
    products = rows @ point
    # Relative to the size of the terms that cancel in a product, for each row its own.
    scale = np.linalg.norm(rows, axis=1) * np.linalg.norm(rows.T * weights, axis=0).sum()
    assert (products - point @ point >= -1e-8 * scale).all()
    assert (np.abs(products - point @ point)[weights > 0] <= 1e-8 * scale[weights > 0]).all()


@pytest.mark.parametrize(
    ("rows", "point"),
    [
        ([[1.0, 2.0], [-1.0, -2.0]], [0.0, 0.0]),  # opposite
        ([[1.0, 2.0], [1.0, 2.0]], [1.0, 2.0]),  # duplicate
        ([[0.0, 0.0], [1.0, 2.0]], [0.0, 0.0]),  # zero
        ([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]], [0.0, 0.0]),
        ([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]], [1.0, 0.0]),  # dependent
        ([[1.0, 0.0], [-0.5, 0.8], [-0.5, -0.8]], [0.0, 0.0]),  # stationary
        ([[1e-9, 0.0], [0.0, 1e9]], [1e-9, 0.0]),
        ([[1e-160, 0.0], [0.0, 1e-160]], [5e-161, 5e-161]),
    ],
)
def test_degenerate_rows(rows: list[list[float]], point: list[float]) -> None:
    jacobian = np.array(rows)
    weights = min_norm(jacobian @ jacobian.T)
    assert np.isfinite(weights).all()
    np.testing.assert_allclose(jacobian.T @ weights, point, rtol=1e-6, atol=1e-12)


def test_zero_rows_share_the_weight() -> None:
    np.testing.assert_array_equal(min_norm(np.diag([0.0, 4.0, 0.0])), [0.5, 0.0, 0.5])


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**9), size=st.integers(1, 20))
def test_nonnegative_programme_meets_its_conditions(seed: int, size: int) -> None:
    generator = np.random.default_rng(seed)
    factor = generator.normal(size=(size, size + 2))
    factor /= np.linalg.norm(factor, axis=1, keepdims=True)
    hessian, linear = factor @ factor.T, generator.normal(size=size)
    x = nonnegative_minimum(hessian, linear)
    gradient = hessian @ x - linear
    scale = max(1.0, np.abs(x).max())
    assert x.min() >= 0
    assert gradient.min() >= -1e-10 * scale
    assert np.abs(gradient[x > 0]).max(initial=0) <= 1e-10 * scale
