from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtobal.solvers import min_norm
from solvers.jacobians import every_kind, forty_seeds, random_jacobian


def assert_optimal(gramian: np.ndarray, weights: np.ndarray) -> None:
    """``g_k . d >= ||d||^2``, with equality on the support, relative to the terms that cancel in ``g_k . d``."""
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1, rel=1e-12)
    norms = np.sqrt(gramian.diagonal())
    residuals = (gramian @ weights - weights @ gramian @ weights) / (norms * np.abs(norms * weights).sum())
    assert residuals.min() >= -1e-8
    assert np.abs(residuals[weights > 0]).max() <= 1e-8


@every_kind
@forty_seeds
def test_optimality_conditions(kind: str, seed: int) -> None:
    rows = random_jacobian(kind, seed)
    assert_optimal(rows @ rows.T, min_norm(rows @ rows.T))


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**9), tasks=st.integers(1, 12), width=st.integers(1, 14), spread=st.floats(0.0, 3.0))
def test_optimality_conditions_of_small_problems(seed: int, tasks: int, width: int, spread: float) -> None:
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(tasks, width)) * 10.0 ** generator.uniform(-spread, spread, (tasks, 1))
    assert_optimal(rows @ rows.T, min_norm(rows @ rows.T))


@every_kind
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
def test_no_general_solver_finds_a_shorter_point(kind: str, seed: int) -> None:
    rows = random_jacobian(kind, seed)
    gramian = rows @ rows.T
    ours, theirs = min_norm(gramian), min_norm(gramian, solver="cvxpy")
    theirs = np.maximum(theirs, 0.0) / np.maximum(theirs, 0.0).sum()  # it is feasible to its tolerance only
    noise = 1e-12 * (np.sqrt(gramian.diagonal()) @ ours) ** 2
    assert ours @ gramian @ ours <= theirs @ gramian @ theirs * (1 + 1e-9) + noise


@pytest.mark.parametrize(
    ("rows", "point"),
    [
        ([[1.0, 2.0], [-1.0, -2.0]], [0.0, 0.0]),  # opposite
        ([[1.0, 2.0], [1.0, 2.0]], [1.0, 2.0]),  # duplicate
        ([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]], [1.0, 2.0]),
        ([[0.0, 0.0], [1.0, 2.0]], [0.0, 0.0]),  # zero
        ([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]], [0.0, 0.0]),
        ([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]], [1.0, 0.0]),  # dependent
        ([[1.0, 0.0], [-0.5, 0.8], [-0.5, -0.8]], [0.0, 0.0]),  # stationary
        ([[1e-9, 0.0], [0.0, 1e9]], [1e-9, 0.0]),
        ([[1e-160, 0.0], [0.0, 1e-160]], [5e-161, 5e-161]),
        ([[3.0, 4.0]], [3.0, 4.0]),  # a single task
    ],
)
def test_degenerate_rows(rows: list[list[float]], point: list[float]) -> None:
    jacobian = np.array(rows)
    weights = min_norm(jacobian @ jacobian.T)
    assert np.isfinite(weights).all()
    np.testing.assert_allclose(jacobian.T @ weights, point, rtol=1e-6, atol=1e-12)


def test_zero_rows_share_the_weight() -> None:
    np.testing.assert_array_equal(min_norm(np.diag([0.0, 4.0, 0.0])), [0.5, 0.0, 0.5])


def test_the_stationary_point_is_found_among_rows_of_all_sizes() -> None:
    """The hull of three large rows contains the origin; the small row is no part of it."""
    rows = np.array([[1e3, 0.0], [-500.0, 800.0], [-500.0, -800.0], [1e-3, 0.0]])
    assert np.linalg.norm(min_norm(rows @ rows.T) @ rows) < 1e-8 * 1e3
