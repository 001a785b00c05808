from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtobal.solvers import dual_cone
from solvers.jacobians import every_kind, forty_seeds, random_jacobian


def assert_projected(gramian: np.ndarray, before: np.ndarray, after: np.ndarray) -> None:
    """``G v >= 0``, ``v >= u`` and complementary, relative to the terms that cancel in ``g_k . d``."""
    norms = np.sqrt(gramian.diagonal())
    lengths = norms * after
    products = np.divide(gramian @ after, norms, out=np.zeros_like(norms), where=norms > 0)
    noise = 1e-8 * np.abs(lengths).sum()
    assert (after >= before).all()
    assert products.min() >= -noise
    assert np.abs(products[after > before]).max(initial=0.0) <= noise


@every_kind
@forty_seeds
def test_optimality_conditions_for_one_and_for_many(kind: str, seed: int) -> None:
    rows = random_jacobian(kind, seed)
    gramian, tasks = rows @ rows.T, len(rows)
    mean = np.full(tasks, 1.0 / tasks)
    assert_projected(gramian, mean, dual_cone(gramian, mean))
    some = np.diag(mean)[:12]
    for before, after in zip(some, dual_cone(gramian, some), strict=True):
        assert_projected(gramian, before, after)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**9), tasks=st.integers(1, 8), width=st.integers(1, 10), spread=st.floats(0.0, 3.0))
def test_projecting_many_is_projecting_each(seed: int, tasks: int, width: int, spread: float) -> None:
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(tasks, width)) * 10.0 ** generator.uniform(-spread, spread, (tasks, 1))
    gramian, combinations = rows @ rows.T, generator.exponential(size=(5, tasks))
    for before, after in zip(combinations, dual_cone(gramian, combinations), strict=True):
        assert_projected(gramian, before, after)
        np.testing.assert_allclose(
            after @ rows, dual_cone(gramian, before) @ rows, atol=1e-7 * np.abs(before[:, None] * rows).max()
        )


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**9), tasks=st.integers(1, 8))
def test_a_projection_is_nearest_and_lies_in_the_cone(seed: int, tasks: int) -> None:
    """By Moreau: the projection and what was taken away are orthogonal."""
    generator = np.random.default_rng(seed)
    rows, combination = generator.normal(size=(tasks, 9)), generator.exponential(size=tasks)
    projected = dual_cone(rows @ rows.T, combination) @ rows
    assert (rows @ projected).min() >= -1e-10
    assert abs((combination @ rows - projected) @ projected) <= 1e-10
    again = rows @ rows.T
    np.testing.assert_allclose(dual_cone(again, dual_cone(again, combination)) @ rows, projected, atol=1e-10)


@every_kind
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
def test_no_general_solver_finds_a_nearer_direction(kind: str, seed: int) -> None:
    rows = random_jacobian(kind, seed)
    gramian, tasks = rows @ rows.T, len(rows)
    several = np.vstack([np.full(tasks, 1.0 / tasks), np.eye(tasks)[: min(tasks, 4)]])
    ours, theirs = dual_cone(gramian, several), dual_cone(gramian, several, solver="cvxpy")
    for before, mine, other in zip(several, ours, theirs, strict=True):
        noise = 1e-12 * (np.sqrt(gramian.diagonal()) @ before) ** 2
        assert mine @ gramian @ mine <= other @ gramian @ other * (1 + 1e-9) + noise


def test_a_combination_in_the_cone_keeps_its_weights() -> None:
    gramian = np.array([[1.0, 0.5, 0.0], [0.5, 4.0, 0.0], [0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(dual_cone(gramian, np.array([0.2, 0.3, 0.5])), [0.2, 0.3, 0.5])


@pytest.mark.parametrize(
    ("rows", "direction"),
    [
        ([[1.0, 0.0], [-1.0, 0.0]], [0.0, 0.0]),  # opposite
        ([[1.0, 0.0], [-3.0, 0.0]], [0.0, 0.0]),
        ([[1.0, 0.0], [1.0, 0.0], [-1.0, 1.0]], [1 / 3, 1 / 3]),  # a duplicate
        ([[0.0, 0.0], [2.0, 0.0], [-4.0, 2.0]], [0.0, 0.6666666666666666]),  # a zero row has no say
        ([[0.0, 0.0], [0.0, 0.0]], [0.0, 0.0]),
        ([[1.0, 0.0], [-0.5, 0.8], [-0.5, -0.8]], [0.0, 0.0]),  # stationary
        ([[1e-6, 0.0], [-1e6, 1e6]], [0.0, 5e5]),  # the smallest gradient is protected as well
        ([[3.0, 4.0]], [3.0, 4.0]),  # a single task
    ],
)
def test_degenerate_rows(rows: list[list[float]], direction: list[float]) -> None:
    jacobian = np.array(rows)
    tasks = len(jacobian)
    weights = dual_cone(jacobian @ jacobian.T, np.full(tasks, 1.0 / tasks))
    np.testing.assert_allclose(weights @ jacobian, direction, atol=1e-9)


def test_a_zero_row_keeps_its_weight() -> None:
    gramian = np.array([[0.0, 0.0, 0.0], [0.0, 1.0, -2.0], [0.0, -2.0, 9.0]])
    weights = dual_cone(gramian, np.full(3, 1 / 3))
    assert weights[0] == 1 / 3
    assert weights[1] > 1 / 3
