from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtobal.solvers import nonnegative, nonnegative_minimum
from mtobal.solvers.tableau import walk_one, walk_rows


def problem(seed: int, size: int, rank: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """A unit diagonal, and linear terms in the range of H, as they come from projections."""
    generator = np.random.default_rng(seed)
    factor = generator.normal(size=(size, rank))
    factor /= np.linalg.norm(factor, axis=1, keepdims=True)
    return factor @ factor.T, generator.normal(size=(count, rank)) @ factor.T


def assert_optimal(hessian: np.ndarray, linear: np.ndarray, x: np.ndarray) -> None:
    gradient = hessian @ x - linear
    noise = 1e-11 * max(1.0, np.abs(x).max())
    assert x.min() >= 0
    assert gradient.min() >= -noise
    assert np.abs(gradient[x > 0]).max(initial=0) <= noise


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10**9), size=st.integers(1, 20), rank=st.integers(1, 24), count=st.integers(1, 5))
def test_optimality_conditions(seed: int, size: int, rank: int, count: int) -> None:
    hessian, linear = problem(seed, size, rank, count)
    together = nonnegative_minimum(hessian, linear)
    for row, x in zip(linear, together, strict=True):
        assert_optimal(hessian, row, x)
        alone = nonnegative_minimum(hessian, row)
        assert_optimal(hessian, row, alone)
        # The point is unique also where x is not: between two that meet the conditions to within a noise, the
        # distance squared is at most that noise times the length of both.
        noise = 4e-11 * max(1.0, np.abs(x).max(), np.abs(alone).max())
        assert (x - alone) @ hessian @ (x - alone) <= noise * (x + alone).sum()


@pytest.mark.parametrize("rank", [60, 100, 150])
def test_a_hundred_variables(rank: int) -> None:
    hessian, linear = problem(1, 100, rank, 8)
    for row, x in zip(linear, nonnegative_minimum(hessian, linear), strict=True):
        assert_optimal(hessian, row, x)


@pytest.mark.parametrize("rank", [12, 25])
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("lost", ["pivoting", "pivoting and tableaux"])
def test_what_takes_over_finds_the_same(seed: int, rank: int, lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Block pivoting may give up on any problem, and a tableau too; what takes over must not depend on it."""
    hessian, linear = problem(seed, 15, rank, 15)
    expected = nonnegative_minimum(hessian, linear)
    monkeypatch.setattr(nonnegative, "_ROUNDS", 0)
    if lost == "pivoting and tableaux":
        monkeypatch.setattr(nonnegative, "walk_one", lambda hessian, linear: None)
        monkeypatch.setattr(nonnegative, "walk_rows", lambda hessian, linear: (0 * linear, np.full(15, True)))
    for x, alone, row in zip(nonnegative_minimum(hessian, linear), expected, linear, strict=True):
        assert_optimal(hessian, row, x)
        np.testing.assert_allclose(hessian @ x, hessian @ alone, rtol=1e-9, atol=1e-10)
    assert_optimal(hessian, linear[0], nonnegative_minimum(hessian, linear[0]))


@pytest.mark.parametrize("rank", [3, 6, 11, 12, 20])
@pytest.mark.parametrize("seed", range(10))
def test_tableaux_walk_to_the_solution(seed: int, rank: int) -> None:
    """One by one and side by side, also where the rows span few dimensions and H is far from definite."""
    hessian, linear = problem(seed, 12, rank, 9)
    together, failing = walk_rows(hessian, linear)
    assert not failing.any()
    for row, x in zip(linear, together, strict=True):
        alone = walk_one(hessian, row)
        assert alone is not None
        assert_optimal(hessian, row, x)
        assert_optimal(hessian, row, alone)


def test_a_tableau_does_not_answer_where_there_is_no_solution() -> None:
    """Along x = (t, t) the objective falls for ever."""
    hessian, linear = np.array([[1.0, -1.0], [-1.0, 1.0]]), np.array([1.0, 0.5])
    assert walk_one(hessian, linear) is None
    _, failing = walk_rows(hessian, np.vstack([linear, [-1.0, -1.0]]))
    np.testing.assert_array_equal(failing, [True, False])


def test_without_a_positive_linear_term_the_minimum_is_zero() -> None:
    hessian = np.array([[1.0, -0.5], [-0.5, 1.0]])
    np.testing.assert_array_equal(nonnegative_minimum(hessian, np.array([-1.0, 0.0])), [0.0, 0.0])
    np.testing.assert_array_equal(
        nonnegative_minimum(hessian, np.array([[-1.0, 0.0], [2.0, -1.0]])), [[0, 0], [2, 0]]
    )


def test_a_duplicate_row_does_not_enter_twice() -> None:
    hessian = np.ones((3, 3))
    x = nonnegative_minimum(hessian, np.full(3, 2.0))
    assert x.sum() == pytest.approx(2.0)
    assert_optimal(hessian, np.full(3, 2.0), x)
