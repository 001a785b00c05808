from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mtobal.solvers import simplex_projection

points = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30).map(np.array)


@settings(max_examples=300, deadline=None)
@given(point=points)
def test_optimality_conditions(point: np.ndarray) -> None:
    """On the simplex, with ``w - v`` equal on the support and nowhere less."""
    weights = simplex_projection(point)
    assert weights.min() >= 0
    assert abs(weights.sum() - 1) <= 1e-9
    shifts = weights - point
    noise = 1e-9 * max(1.0, np.abs(point).max())
    assert (np.abs(shifts[weights > 0] - shifts[weights > 0][0]) <= noise).all()
    assert (shifts >= shifts[weights > 0][0] - noise).all()


@settings(max_examples=100, deadline=None)
@given(point=points, shift=st.floats(-1e6, 1e6))
def test_a_common_shift_changes_nothing(point: np.ndarray, shift: float) -> None:
    np.testing.assert_allclose(simplex_projection(point + shift), simplex_projection(point), atol=1e-8)


def test_a_point_of_the_simplex_stays() -> None:
    for point in (np.array([1.0]), np.array([0.25, 0.75]), np.array([0.0, 1.0, 0.0])):
        np.testing.assert_array_equal(simplex_projection(point), point)
