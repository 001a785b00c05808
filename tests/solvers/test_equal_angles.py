from __future__ import annotations

import numpy as np
import pytest

from mtobal.solvers import equal_angles
from mtobal.solvers.nonnegative import unit_rows
from solvers.jacobians import every_kind, forty_seeds, random_jacobian


@every_kind
@forty_seeds
def test_all_products_are_one_or_as_near_as_can_be(kind: str, seed: int) -> None:
    rows = random_jacobian(kind, seed)
    cosines, norms = unit_rows(rows @ rows.T)
    b = norms * equal_angles(rows @ rows.T)
    # The conditions of least squares; of independent rows they say that the residual itself is zero.
    residual = cosines @ b - 1.0
    scale = 1.0 + np.abs(cosines) @ np.abs(b)
    assert np.abs(cosines @ residual / scale).max() <= 1e-8 * len(rows)
    if kind in ("wide", "ill-conditioned", "aligned", "opposed"):
        assert np.abs(residual / scale).max() <= 1e-8


@pytest.mark.parametrize(
    ("rows", "direction"),
    [
        ([[1.0, 0.0], [0.0, 1.0]], [1.0, 1.0]),
        ([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [1.0, 1.0]),  # a duplicate changes nothing
        ([[1.0, 0.0], [-1.0, 0.0]], [0.0, 0.0]),
        ([[1.0, 0.0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]], [0.0, 0.0]),
        ([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], [0.0, 1.0]),
        ([[3.0, 0.0], [0.0, 0.0], [0.0, 7.0]], [1.0, 1.0]),  # a zero row has no part in it
        ([[3.0, 0.0], [0.0, 0.0], [-7.0, 0.0]], [0.0, 0.0]),
        ([[0.0, 0.0], [0.0, 0.0]], [0.0, 0.0]),
    ],
)
def test_dependent_rows(rows: list[list[float]], direction: list[float]) -> None:
    jacobian = np.array(rows)
    np.testing.assert_allclose(jacobian.T @ equal_angles(jacobian @ jacobian.T), direction, atol=1e-12)
