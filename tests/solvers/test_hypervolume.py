from __future__ import annotations

import numpy as np
import pytest

from mtobal.solvers import hypervolume, non_dominated


def by_cells(points: np.ndarray) -> float:
    """Sum the cells of the grid through all coordinates whose upper corner some point covers."""
    axes = [np.unique([0.0, *points[:, axis].clip(min=0)]) for axis in range(points.shape[1])]
    corners = np.stack(np.meshgrid(*(axis[1:] for axis in axes), indexing="ij"), axis=-1)
    sizes = np.ones(corners.shape[:-1])
    for number, axis in enumerate(axes):
        sizes *= np.diff(axis).reshape([-1 if place == number else 1 for place in range(len(axes))])
    covered = (points >= corners[..., None, :]).all(axis=-1).any(axis=-1)
    return float(sizes[covered].sum())


@pytest.mark.parametrize("dimensions", [1, 2, 3, 4])
def test_it_is_the_volume_of_the_covered_cells(dimensions: int) -> None:
    random = np.random.default_rng(dimensions)
    for _ in range(20):
        points = random.normal(0.5, 1.0, (random.integers(1, 9), dimensions)).round(1)
        reference = random.normal(size=dimensions)
        assert hypervolume(points + reference, reference) == pytest.approx(by_cells(points), rel=1e-9, abs=1e-12)


def test_dominated_and_equal_points_add_nothing() -> None:
    points = np.array([[3.0, 1.0, 2.0], [1.0, 3.0, 1.0], [2.0, 2.0, 2.0]])
    whole = hypervolume(points, np.zeros(3))
    more = np.concatenate([points, points, points / 2, -points])
    assert hypervolume(more, np.zeros(3)) == pytest.approx(whole, rel=1e-14)
    assert len(non_dominated(more)) == len(points)


def test_no_points_have_no_volume() -> None:
    assert hypervolume(np.zeros((0, 3)), np.zeros(3)) == 0.0
    assert hypervolume(np.array([[-1.0, 2.0]]), np.zeros(2)) == 0.0
