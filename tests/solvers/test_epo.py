from __future__ import annotations

import cvxpy
import numpy as np
import pytest

from mtobal.solvers import SolverError, epo
from mtobal.solvers.epo import epo_adjustment, epo_weights


def random_case(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    tasks = int(generator.integers(2, 11))
    rows = generator.normal(size=(tasks, tasks + 3)) + 0.5 * generator.normal(size=tasks + 3)
    if seed % 3 == 0:
        rows *= 10.0 ** generator.uniform(-1.5, 1.5, size=(tasks, 1))
    losses, preference = generator.uniform(0.1, 4.0, tasks), generator.dirichlet(np.full(tasks, 3.0))
    return rows @ rows.T, losses, preference


def conditions(gramian: np.ndarray, losses: np.ndarray, preference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is maximised away from the ray, and the smallest admissible products, -inf where a loss is free."""
    adjustment, _ = epo_adjustment(losses, preference)
    toward = gramian @ adjustment
    if not (toward > 0).any():
        return toward, np.zeros(len(toward))
    lower = np.where(toward > 0, -np.inf, toward)
    lower[np.argmax(preference * losses)] = 0.0
    return toward, lower


def highest_value(gramian: np.ndarray, objective: np.ndarray, lower: np.ndarray) -> float | None:
    w = cvxpy.Variable(len(objective), nonneg=True)
    bound = np.isfinite(lower)
    constraints = [cvxpy.sum(w) == 1, gramian[bound] @ w >= lower[bound]]
    problem = cvxpy.Problem(cvxpy.Maximize(objective @ w), constraints)
    problem.solve(solver=cvxpy.CLARABEL)
    return None if problem.status == cvxpy.INFEASIBLE else float(problem.value)


@pytest.mark.parametrize("seed", range(60))
def test_balancing_is_feasible_and_as_good_as_any(seed: int) -> None:
    gramian, losses, preference = random_case(seed)
    objective, lower = conditions(gramian, losses, preference)
    weights = epo_weights(gramian, losses, preference, threshold=0.0)
    best = highest_value(gramian, objective, lower)
    if weights is None:
        assert best is None
        return
    assert best is not None
    norms = np.sqrt(gramian.diagonal())
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1, rel=1e-12)
    assert ((gramian @ weights - lower) / (norms * norms.max())).min() >= -1e-9
    assert objective @ weights >= best - 1e-6 * np.abs(objective).max()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("relaxed", [False, True])
def test_descending_lets_no_loss_grow(seed: int, relaxed: bool) -> None:
    gramian, _, preference = random_case(seed)
    losses = 0.7 / preference  # on the ray
    weights = epo_weights(gramian, losses, preference, relaxed=relaxed)
    assert weights is not None  # the min-norm point is always feasible
    norms = np.sqrt(gramian.diagonal())
    assert (gramian @ weights / (norms * norms.max())).min() >= -1e-9
    best = highest_value(gramian, gramian.sum(0), np.zeros(len(gramian)))
    assert best is not None
    assert gramian.sum(0) @ weights == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("seed", range(15))
def test_the_solver_that_stands_in_finds_the_same(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    gramian, losses, preference = random_case(seed)
    expected = epo_weights(gramian, losses, preference, threshold=0.0)

    def lost(*arguments: object) -> None:
        raise SolverError("lost its way")

    monkeypatch.setattr(epo, "_optimal_basis", lost)
    found = epo_weights(gramian, losses, preference, threshold=0.0)
    assert (found is None) == (expected is None)
    if found is not None:
        np.testing.assert_allclose(found, expected, atol=1e-7)


@pytest.mark.parametrize("relaxed", [False, True])
def test_degenerate_gradients_have_an_answer(relaxed: bool) -> None:
    """Duplicates, opposite rows, zero rows: vertices at which many conditions meet."""
    for rows in ([[1, 0], [1, 0], [1, 0]], [[1, 0], [-1, 0], [0, 0]], [[0, 0], [0, 0], [0, 1]]):
        gramian = np.array(rows, dtype=float) @ np.array(rows, dtype=float).T
        for losses in ([1.0, 1.0, 1.0], [3.0, 1.0, 1.0], [3.0, 3.0, 1.0]):
            weights = epo_weights(gramian, np.array(losses), np.full(3, 1 / 3), relaxed=relaxed)
            assert weights is None or weights.sum() == pytest.approx(1)


def test_leaving_the_ray_slightly_restricts_the_descent() -> None:
    """One step may not undo the balance, unless it is relaxed."""
    gramian = np.array([[1.0, -0.4], [-0.4, 4.0]])
    losses, preference = np.array([1.01, 1.0]), np.array([0.5, 0.5])
    adjustment, non_uniformity = epo_adjustment(losses, preference)
    assert 0 < non_uniformity < 1e-4
    toward = gramian @ adjustment
    strict = epo_weights(gramian, losses, preference)
    relaxed = epo_weights(gramian, losses, preference, relaxed=True)
    assert strict is not None
    assert relaxed is not None
    assert toward @ strict >= min(toward.max(), 0.0) - 1e-9
    assert toward @ relaxed < toward @ strict


def test_the_adjustment_is_zero_on_the_ray_alone() -> None:
    preference = np.array([0.5, 0.3, 0.2])
    adjustment, non_uniformity = epo_adjustment(2.0 / preference, preference)
    np.testing.assert_allclose(adjustment, 0.0, atol=1e-15)
    assert non_uniformity == pytest.approx(0.0, abs=1e-15)
    assert epo_adjustment(np.array([1.0, 1.0, 1.0]), preference)[1] > 0.01


@pytest.mark.parametrize(
    ("losses", "preference"),
    [
        ([0.0, 0.0], [0.5, 0.5]),
        ([0.0, 1.0], [0.5, 0.5]),
        ([1e-300, 1e300], [0.5, 0.5]),
        ([1.0, 1.0], [1.0, 0.0]),
    ],
)
def test_degenerate_losses_have_a_finite_answer(losses: list[float], preference: list[float]) -> None:
    adjustment, non_uniformity = epo_adjustment(np.array(losses), np.array(preference))
    assert np.isfinite(adjustment).all()
    assert np.isfinite(non_uniformity)
    gramian = np.array([[1.0, -0.5], [-0.5, 2.0]])
    weights = epo_weights(gramian, np.array(losses), np.array(preference))
    assert weights is None or np.isfinite(weights).all()


def test_without_a_gradient_there_is_nothing_to_weigh() -> None:
    assert epo_weights(np.zeros((2, 2)), np.ones(2), np.ones(2)) is None
