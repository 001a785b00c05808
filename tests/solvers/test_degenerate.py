"""Zero, opposite, duplicate, nearly equal and dependent rows: no input is too degenerate for a finite answer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtobal.solvers import dual_cone, min_norm

ENTRIES = [0.0, 1.0, -1.0, 0.3, 2.0, -0.5, 1e-6, -1e6, 1e-8, 1.0 + 1e-8, 1.0 - 1e-12]


def assert_answered(gramian: np.ndarray) -> None:
    tasks = len(gramian)
    weights = min_norm(gramian)
    assert np.isfinite(weights).all()
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1)
    norms = np.sqrt(gramian.diagonal())
    combinations = np.vstack([np.full(tasks, 1.0 / tasks), np.eye(tasks)])
    for before, after in zip(combinations, dual_cone(gramian, combinations), strict=True):
        assert np.isfinite(after).all()
        assert (after >= before).all()
        # Rows that differ by less than the root of the rounding of G cannot be told apart in it.
        assert (gramian @ after >= -1e-4 * norms * (norms @ after)).all()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(st.sampled_from(ENTRIES), min_size=4, max_size=4), min_size=1, max_size=7))
def test_rows_of_all_sizes(rows: list[list[float]]) -> None:
    jacobian = np.array(rows)
    assert_answered(jacobian @ jacobian.T)


@pytest.mark.parametrize("seed", range(150))
@pytest.mark.parametrize("precision", [np.float32, np.float64])
def test_rows_that_are_copies_of_each_other_up_to_noise(seed: int, precision: type) -> None:
    """In float32 the Gramian is not even positive semi-definite."""
    generator = np.random.default_rng(seed)
    tasks = int(generator.integers(2, 9))
    rows = generator.choice([0.0, 1.0, -1.0, 0.3], size=(tasks, int(generator.integers(1, 7))))
    for _ in range(tasks):
        task, other = generator.integers(0, tasks, 2)
        noise = generator.choice([0.0, 1e-7, 3e-8, 1e-8, 1e-9]) * generator.normal(size=rows.shape[1])
        rows[task] = generator.choice([1.0, -1.0, 2.0]) * rows[other] + noise
    rows = rows.astype(precision)
    assert_answered((rows @ rows.T).astype(np.float64))


@pytest.mark.parametrize(
    "rows",
    [
        [
            [-1.0, -0.5, 0.3],
            [0.3, 1.0, -1e6],
            [-0.5, 1.0 + 1e-8, -0.5],
            [1.0 - 1e-12, 1.0, 0.3],
            [0.3, 1.0 + 1e-8, 0.0],
            [1.0 - 1e-12, 0.3, -1e6],
            [2.0, 1.0 - 1e-12, 0.3],
        ],
        [
            [-1e6, 1.0 - 1e-12, -1e6, 0.3],
            [1e-6, -1.0, -1.0, 1.0],
            [0.0, 0.0, 1e-6, 1.0 + 1e-8],
            [-1.0, 1.0 - 1e-12, 1.0, 1.0 + 1e-8],
            [1e-8, -0.5, 2.0, 0.3],
            [1e-6, 1.0 - 1e-12, 0.3, 0.0],
            [-0.5, 1.0, 2.0, -1e6],
        ],
    ],
)
def test_supports_that_are_singular_to_the_last_digit(rows: list[list[float]]) -> None:
    jacobian = np.array(rows)
    assert_answered(jacobian @ jacobian.T)
