"""Properties of dualproj and upgrad beyond those of every strategy."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mtobal
from mtobal import UsageError
from mtobal.strategies import Step, build

both = pytest.mark.parametrize("name", ["dualproj", "upgrad"])


def rows(seed: int, tasks: int = 5, spread: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = 10.0 ** (spread * (2 * torch.rand(tasks, 1, generator=generator, dtype=torch.float64) - 1))
    return scales * torch.randn(tasks, 7, generator=generator, dtype=torch.float64)


@both
@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_smallest_gradient_is_protected_too(name: str, seed: int) -> None:
    jacobian = rows(seed)
    direction = mtobal.aggregate(jacobian, name)
    cosines = (jacobian / jacobian.norm(dim=1, keepdim=True)) @ (direction / direction.norm())
    assert cosines.min() >= -1e-9


@both
def test_without_conflict_it_is_the_preferred_mean(name: str) -> None:
    jacobian = rows(0).abs()
    torch.testing.assert_close(mtobal.aggregate(jacobian, name), jacobian.mean(0))
    found = mtobal.aggregate(jacobian, {name: {"preference": [2.0, 1.0, 1.0, 0.0, 0.0]}})
    torch.testing.assert_close(found, (2 * jacobian[0] + jacobian[1] + jacobian[2]) / 4)


@both
def test_a_task_without_preference_is_still_protected(name: str) -> None:
    jacobian = torch.tensor([[1.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    found = mtobal.aggregate(jacobian, {name: {"preference": [1.0, 0.0]}})
    torch.testing.assert_close(found, torch.tensor([0.5, 0.5], dtype=torch.float64))


@both
def test_preferences_go_by_name_and_among_the_active_tasks(name: str) -> None:
    aggregation = build({name: {"preference": {"a": 1.0, "b": 2.0, "c": 3.0}}}).aggregation
    assert aggregation is not None
    step = Step(("c", "b", "a"), (0, 2))
    weights = aggregation.weights(torch.eye(2, dtype=torch.float64), step)
    torch.testing.assert_close(weights, torch.tensor([0.75, 0.25], dtype=torch.float64))


@both
@pytest.mark.parametrize(
    ("preference", "message"),
    [
        ([1.0, -1.0], "must be finite and at least 0"),
        ([0.0, 0.0], "must not be all zero"),
        ([1.0, float("nan")], "must be finite"),
        ([1.0, 1.0, 1.0], "3 numbers for 2 tasks"),
        ({"x": 1.0, "1": 1.0}, "unknown task in the preference"),
        ({"0": 1.0}, "has no number for '1'"),
    ],
)
def test_a_wrong_preference_is_refused(name: str, preference: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        mtobal.aggregate(torch.eye(2), {name: {"preference": preference}})


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), first=st.floats(0.01, 100.0), second=st.floats(0.01, 100.0))
def test_upgrad_is_linear_in_the_length_of_each_gradient(seed: int, first: float, second: float) -> None:
    """``d(diag(c) J)`` is linear in c, which the projection of the mean is not."""
    jacobian = rows(seed, spread=0.0)

    def direction(length: float) -> torch.Tensor:
        scales = torch.ones(5, 1, dtype=torch.float64)
        scales[2] = length
        return mtobal.aggregate(scales * jacobian, "upgrad")

    middle = (direction(first) + direction(second)) / 2
    torch.testing.assert_close(direction((first + second) / 2), middle, rtol=1e-8, atol=1e-8)


def test_dualproj_is_the_nearest_direction_that_harms_no_task() -> None:
    jacobian = rows(3, spread=0.0)
    mean, found = jacobian.mean(0), mtobal.aggregate(jacobian, "dualproj")
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        other = mtobal.aggregate(jacobian, {"upgrad": {"preference": torch.rand(5, generator=generator).tolist()}})
        for length in (0.5, 1.0, 2.0):
            assert (found - mean).norm() <= (length * other - mean).norm() + 1e-12
