from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtobal.solvers import cagrad, conflict_averse, dual_cone, min_norm
from solvers.jacobians import every_kind, forty_seeds, random_jacobian

RADII = (0.1, 0.5, 0.9, 2.0)


def assert_optimal(rows: np.ndarray, c: float, v: np.ndarray) -> None:
    """``g_k . d`` least and equal on the support, ``||d - g_0|| = c ||g_0||``, relative to the terms that cancel.

    Within the ball, d is optimal only where no direction helps all tasks: the level is zero then.
    """
    gramian, tasks = rows @ rows.T, len(rows)
    assert np.isfinite(v).all()
    assert v.min() >= 0
    norms = np.sqrt(gramian.diagonal())
    weights = v + 1.0 / tasks
    terms = norms @ weights
    products = np.divide(gramian @ weights, norms, out=np.zeros_like(norms), where=norms > 0)
    radius = c * np.sqrt(max(gramian.sum(), 0.0)) / tasks
    length = np.sqrt(max(v @ gramian @ v, 0.0))
    assert length <= radius + 1e-8 * terms
    if not v.any():
        assert radius <= 1e-7 * terms or products.min() >= -1e-8 * terms
        return
    supporting = v > 0
    shortest = norms[supporting].argmin()
    level = (products * norms)[supporting][shortest] if length >= radius - 1e-8 * terms else 0.0
    gaps = np.divide(products * norms - level, norms, out=np.zeros_like(norms), where=norms > 0)
    assert gaps.min() >= -1e-8 * terms
    assert np.abs(gaps[supporting]).max() <= 1e-8 * terms


@every_kind
@forty_seeds
@pytest.mark.parametrize("c", RADII)
def test_optimality_conditions(kind: str, seed: int, c: float) -> None:
    rows = random_jacobian(kind, seed)
    assert_optimal(rows, c, conflict_averse(rows @ rows.T, c))


@every_kind
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("c", RADII)
def test_the_search_for_the_level_finds_the_same(
    kind: str, seed: int, c: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the way of the few inputs on which block pivoting runs in circles."""
    rows = random_jacobian(kind, seed)
    expected = rows.T @ conflict_averse(rows @ rows.T, c)
    monkeypatch.setattr(cagrad, "_pivot", lambda *_: None)
    v = conflict_averse(rows @ rows.T, c)
    assert_optimal(rows, c, v)
    scale = np.linalg.norm(rows, axis=1) @ (v + 1.0 / len(rows))
    np.testing.assert_allclose(rows.T @ v, expected, atol=1e-6 * scale)


@settings(max_examples=200, deadline=None)
@given(
    rows=st.integers(1, 6).flatmap(
        lambda width: st.lists(
            st.lists(st.sampled_from([0.0, 1.0, -1.0, 2.0, -3.0, 1e-6, 1e6]), min_size=width, max_size=width),
            min_size=1,
            max_size=6,
        )
    ),
    c=st.sampled_from([0.0, *RADII, 30.0]),
)
def test_optimality_conditions_of_degenerate_rows(rows: list[list[float]], c: float) -> None:
    """Zero, opposite, duplicate and dependent rows, and ties."""
    jacobian = np.array(rows)
    assert_optimal(jacobian, c, conflict_averse(jacobian @ jacobian.T, c))


def dual(gramian: np.ndarray, weights: np.ndarray, c: float) -> float:
    """The level that no d in the ball exceeds, for any w on the simplex."""
    mean = gramian.mean(1)
    return float(weights @ mean + c * np.sqrt(mean.mean()) * np.sqrt(max(weights @ gramian @ weights, 0.0)))


@every_kind
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("c", [0.5, 0.9])
@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
def test_no_general_solver_finds_a_lower_bound(kind: str, seed: int, c: float) -> None:
    rows = random_jacobian(kind, seed)
    gramian = rows @ rows.T
    ours, theirs = conflict_averse(gramian, c), conflict_averse(gramian, c, solver="cvxpy")
    theirs = np.maximum(theirs, 0.0)  # it is feasible to its tolerance only
    noise = 1e-9 * gramian.diagonal().max()
    if ours @ gramian @ ours < 0.99 * c**2 * gramian.mean():  # within the ball: no level above zero
        assert dual(gramian, theirs / theirs.sum(), c) >= -noise
        return
    assert dual(gramian, ours / ours.sum(), c) <= dual(gramian, theirs / theirs.sum(), c) + noise
    if kind == "wide":
        np.testing.assert_allclose(rows.T @ theirs, rows.T @ ours, atol=1e-4 * np.linalg.norm(rows.T @ ours))


def test_a_large_radius_gives_the_direction_of_the_min_norm_point() -> None:
    rows = np.random.default_rng(0).normal(size=(6, 20))
    direction = rows.T @ conflict_averse(rows @ rows.T, 1e9)
    shortest = rows.T @ min_norm(rows @ rows.T)
    np.testing.assert_allclose(
        direction / np.linalg.norm(direction), shortest / np.linalg.norm(shortest), atol=1e-7
    )


@pytest.mark.parametrize(
    "rows",
    [
        [[1.0, 2.0, 0.0], [0.0, 0.0, 0.0], [-0.5, -1.0, 1.0]],  # a zero row
        [[3.0, 1.0, 0.0], [3.0, -1.0, 0.0], [-1.0, 0.0, 0.0]],  # the origin in the hull
        [[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],  # two opposite rows
    ],
)
def test_where_no_direction_helps_all_tasks_the_nearest_harmless_one_is_taken(rows: list[list[float]]) -> None:
    jacobian = np.array(rows)
    gramian, uniform = jacobian @ jacobian.T, np.full(3, 1.0 / 3.0)
    direction = jacobian.T @ (uniform + conflict_averse(gramian, 1.0))
    np.testing.assert_allclose(direction, jacobian.T @ dual_cone(gramian, uniform), atol=1e-12)


def test_without_a_mean_gradient_there_is_no_ball() -> None:
    jacobian = np.array([[1.0, 2.0, 0.0], [-1.0, -2.0, 0.0]])
    np.testing.assert_array_equal(conflict_averse(jacobian @ jacobian.T, 0.5), 0.0)
    np.testing.assert_array_equal(conflict_averse(np.zeros((3, 3)), 0.5), 0.0)
