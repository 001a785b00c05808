from __future__ import annotations

import sys

import cvxpy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtobal.solvers import SolverError, equilibrium, min_norm
from solvers.jacobians import every_kind, forty_seeds, random_jacobian

ALPHAS = (0.5, 1.0, 2.0)


def distance_of_hull(gramian: np.ndarray) -> float:
    """Distance of the origin from the hull of the unit rows: zero where no equilibrium exists."""
    norms = np.sqrt(gramian.diagonal())
    if not norms.all():
        return 0.0
    cosines = gramian / norms[:, None] / norms
    weights = min_norm(cosines)
    return float(np.sqrt(max(weights @ cosines @ weights, 0.0)))


def assert_equilibrium(gramian: np.ndarray, weights: np.ndarray, alpha: float) -> None:
    """``(G w)_k = w_k^(-1/alpha)``, relative to the terms that cancel in ``(G w)_k``; or the fallback."""
    assert np.isfinite(weights).all()
    if np.array_equal(weights, min_norm(gramian)):
        assert len(weights) == 1 or distance_of_hull(gramian) < 3e-6
        return
    assert distance_of_hull(gramian) > 3e-7
    assert weights.min() > 0
    residuals = np.abs(gramian @ weights - weights ** (-1.0 / alpha)) / (np.abs(gramian) @ weights)
    assert residuals.max() <= 1e-8


@every_kind
@forty_seeds
@pytest.mark.parametrize("alpha", ALPHAS)
def test_optimality_conditions(kind: str, seed: int, alpha: float) -> None:
    rows = random_jacobian(kind, seed)
    assert_equilibrium(rows @ rows.T, equilibrium(rows @ rows.T, alpha), alpha)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**9),
    tasks=st.integers(1, 12),
    width=st.integers(1, 14),
    spread=st.floats(0.0, 3.0),
    alpha=st.floats(0.05, 20.0),
)
def test_optimality_conditions_for_any_alpha(
    seed: int, tasks: int, width: int, spread: float, alpha: float
) -> None:
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(tasks, width)) * 10.0 ** generator.uniform(-spread, spread, (tasks, 1))
    assert_equilibrium(rows @ rows.T, equilibrium(rows @ rows.T, alpha), alpha)


def potential(gramian: np.ndarray, weights: np.ndarray, alpha: float) -> float:
    utility = np.log(weights) if alpha == 1 else weights ** (1 - 1 / alpha) / (1 - 1 / alpha)
    return float(weights @ gramian @ weights / 2 - utility.sum())


@pytest.mark.parametrize("kind", ["wide", "ill-conditioned", "rank-deficient", "aligned", "opposed"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
def test_no_general_solver_finds_a_lower_potential(kind: str, seed: int, alpha: float) -> None:
    rows = random_jacobian(kind, seed)
    rows = rows[: max(2, np.linalg.matrix_rank(rows) - 1)]  # fewer tasks than dimensions have an equilibrium
    gramian = rows @ rows.T
    ours = equilibrium(gramian, alpha)
    try:
        theirs = equilibrium(gramian, alpha, solver="cvxpy")
    except cvxpy.SolverError:
        assert kind != "wide"  # it gives up on some of the others
        return
    best = potential(gramian, ours, alpha)
    assert best <= potential(gramian, theirs, alpha) + 1e-9 * max(1.0, abs(best))
    if kind == "wide":
        np.testing.assert_allclose(theirs, ours, rtol=1e-3)


@pytest.mark.parametrize("tasks", [3, 10, 40, 100])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_handful_of_newton_steps_is_enough(tasks: int, alpha: float, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    solve = np.linalg.solve
    monkeypatch.setattr(np.linalg, "solve", lambda *arguments: steps.append(1) or solve(*arguments))
    rows = np.random.default_rng(tasks).normal(size=(tasks, 2 * tasks))
    equilibrium(rows @ rows.T, alpha)
    assert len(steps) <= 12


@pytest.mark.parametrize(
    "rows",
    [
        [[1.0, 2.0], [-1.0, -2.0]],  # opposite
        [[1.0, 2.0], [-3.0, -6.0]],
        [[0.0, 0.0], [1.0, 2.0]],  # zero
        [[0.0, 0.0], [0.0, 0.0]],
        [[1.0, 0.0], [-0.5, 0.8], [-0.5, -0.8]],  # the origin inside of the hull
        [[1.0, 0.0, 0.0], [-1.0, 1.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, 1.0]],  # and on its boundary
    ],
)
@pytest.mark.parametrize("alpha", [0.05, *ALPHAS, 20.0])
def test_without_an_equilibrium_the_answer_is_the_min_norm_point(rows: list[list[float]], alpha: float) -> None:
    jacobian = np.array(rows)
    weights = equilibrium(jacobian @ jacobian.T, alpha)
    np.testing.assert_array_equal(weights, min_norm(jacobian @ jacobian.T))
    np.testing.assert_allclose(jacobian.T @ weights, 0.0, atol=1e-7)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_duplicate_and_dependent_rows_have_an_equilibrium(alpha: float) -> None:
    jacobian = np.array([[1.0, 2.0], [1.0, 2.0], [2.0, 4.0], [-1.0, 3.0], [0.5, 0.5]])
    weights = equilibrium(jacobian @ jacobian.T, alpha)
    assert_equilibrium(jacobian @ jacobian.T, weights, alpha)
    assert weights[0] == pytest.approx(weights[1], rel=1e-12)


def test_tiny_and_huge_rows_keep_their_accuracy() -> None:
    jacobian = np.diag([1e-60, 1.0, 1e60])
    np.testing.assert_allclose(equilibrium(jacobian @ jacobian.T) * jacobian.diagonal(), 1.0, rtol=1e-12)


def test_an_iteration_that_does_not_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["mtobal.solvers.equilibrium"], "_STEPS", 2)
    rows = np.random.default_rng(0).normal(size=(5, 8))
    with pytest.raises(SolverError, match="no equilibrium of 5 tasks was found for alpha=2"):
        equilibrium(rows @ rows.T, 2.0)
