from __future__ import annotations

import pytest
import torch

import mtobal
from mtobal import UsageError
from mtobal.strategies import Step, build
from mtobal.strategies.gradient import ParetoMTL
from mtobal.strategies.gradient.pareto_mtl import pareto_mtl_weights


def rows(seed: int) -> torch.Tensor:
    return torch.randn(3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_inside_the_sector_it_is_mgda() -> None:
    jacobian = rows(0)
    found = mtobal.aggregate(jacobian, "pareto_mtl", [1.0, 1.1, 0.9])
    torch.testing.assert_close(found, mtobal.aggregate(jacobian, "mgda"))


@pytest.mark.parametrize("seed", range(20))
def test_outside_of_it_no_loss_and_no_violation_grows(seed: int) -> None:
    jacobian, losses = rows(seed), torch.tensor([0.1, 2.0, 0.5], dtype=torch.float64)
    direction = mtobal.aggregate(jacobian, "pareto_mtl(index=0)", losses)
    assert (jacobian @ direction).min() >= -1e-10
    corners = torch.eye(3, dtype=torch.float64)
    balanced = torch.full((3,), 3**-0.5, dtype=torch.float64)
    for other in (corners[1], corners[2], balanced):
        if (other - corners[0]) @ losses > 0:
            assert (other - corners[0]) @ jacobian @ direction >= -1e-10


@pytest.mark.parametrize("seed", range(5))
def test_the_initial_phase_leads_into_the_sector_alone(seed: int) -> None:
    gramian = rows(seed) @ rows(seed).T
    corners, losses = torch.eye(3, dtype=torch.float64), torch.tensor([0.1, 2.0, 0.05])
    weights = pareto_mtl_weights(gramian, losses, corners, 0, feasibility_only=True)
    torch.testing.assert_close(weights, corners[1] - corners[0])  # the only active constraint


def test_the_initial_phase_ends_in_the_sector_or_after_its_steps() -> None:
    inside, outside = torch.tensor([3.0, 1.0, 1.0]), torch.tensor([1.0, 3.0, 1.0])
    for losses, left in ((outside, [2, 1, 0, 0]), (inside, [0, 0])):
        strategy = ParetoMTL(index=0, initial_steps=3)
        for expected in left:
            mtobal.aggregate(rows(0), strategy, losses)
            assert int(strategy.initial_steps_left) == expected


def test_preferences_are_directions_and_go_by_name() -> None:
    jacobian, losses = rows(1), [0.1, 2.0, 0.5]
    first = mtobal.aggregate(jacobian, {"pareto_mtl": {"preferences": [[1, 0, 0], [1, 1, 1]], "index": 0}}, losses)
    second = mtobal.aggregate(
        jacobian,
        {"pareto_mtl": {"preferences": [{"0": 5, "1": 0, "2": 0}, {"2": 7, "0": 7, "1": 7}], "index": 0}},
        losses,
    )
    torch.testing.assert_close(first, second)


def test_an_absent_task_has_loss_and_gradient_zero() -> None:
    jacobian, losses = rows(2), torch.tensor([0.1, 2.0, 0.0], dtype=torch.float64)
    jacobian[2] = 0
    strategy = ParetoMTL(index=0)
    absent = strategy.weights(jacobian[:2] @ jacobian[:2].T, Step(("a", "b", "c"), (0, 1), losses[:2]))
    present = pareto_mtl_weights(
        jacobian[:2] @ jacobian[:2].T,
        losses[:2],
        torch.cat([torch.eye(3), torch.full((1, 3), 3**-0.5)]).double()[:, :2],
        0,
    )
    torch.testing.assert_close(absent, present)


def test_the_sum_scale_is_that_of_the_official_training_code() -> None:
    losses = [0.1, 2.0, 0.5]
    gramian = rows(4) @ rows(4).T
    native = mtobal.weights(gramian, "pareto_mtl(index=0)", losses)
    scaled = mtobal.weights(gramian, "pareto_mtl(index=0, scale=sum)", losses)
    torch.testing.assert_close(scaled, native * 3 / native.abs().sum())


def test_wrong_use_is_refused() -> None:
    with pytest.raises(UsageError, match="none of the 4 preferences"):
        mtobal.aggregate(torch.eye(3), "pareto_mtl(index=4)", [1.0, 1.0, 1.0])
    with pytest.raises(UsageError, match="must not be all zero"):
        build("pareto_mtl(preferences=[[0, 0]])")
    with pytest.raises(UsageError, match="initial_steps must not be negative"):
        build("pareto_mtl(initial_steps=-1)")
    with pytest.raises(UsageError, match="2 numbers for 3 tasks"):
        mtobal.aggregate(torch.eye(3), "pareto_mtl(preferences=[[1, 0], [0, 1]])", [1.0, 1.0, 1.0])
