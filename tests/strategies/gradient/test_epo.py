from __future__ import annotations

import pytest
import torch

import mtobal
from mtobal import UsageError
from mtobal.strategies import Step, build
from mtobal.strategies.gradient.epo import epo_weights


def test_the_loss_that_is_behind_gets_the_weight() -> None:
    jacobian = torch.eye(2, 3, dtype=torch.float64)
    assert mtobal.weights(jacobian @ jacobian.T, "epo", [4.0, 1.0]).tolist() == [1.0, 0.0]
    assert mtobal.weights(jacobian @ jacobian.T, "epo(preference=[0.1, 0.9])", [4.0, 1.0]).tolist() == [0.0, 1.0]


def test_it_finds_the_point_of_the_front_that_the_preference_asks_for() -> None:
    """Two parabolas: on the front, at t between their minima, the losses are t^2 and (1 - t)^2."""
    point = torch.tensor([0.9, 0.7], dtype=torch.float64)
    for _ in range(400):
        losses = torch.stack([point.square().sum(), (point[0] - 1).square() + point[1].square()])
        jacobian = torch.stack([2 * point, 2 * (point - torch.tensor([1.0, 0.0], dtype=torch.float64))])
        point = point - 0.02 * mtobal.aggregate(jacobian, "epo(preference=[4, 1])", losses)
    assert 4 * losses[0] == pytest.approx(losses[1].item(), rel=0.15)
    assert losses.sqrt().sum() == pytest.approx(1.0, rel=0.02)


def test_only_the_ratios_of_a_preference_count() -> None:
    generator = torch.Generator().manual_seed(0)
    jacobian = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    first = mtobal.aggregate(jacobian, "epo(preference=[1, 2, 3])", [1.0, 2.0, 0.5])
    second = mtobal.aggregate(jacobian, "epo(preference=[10, 20, 30])", [1.0, 2.0, 0.5])
    torch.testing.assert_close(first, second)


def test_gradients_of_zero_get_the_preference() -> None:
    weights = mtobal.weights(torch.zeros(2, 2, dtype=torch.float64), "epo(preference=[1, 3])", [1.0, 1.0])
    assert weights.tolist() == [0.25, 0.75]


def test_the_preference_that_stands_in_for_a_solution_has_sum_one() -> None:
    nothing, losses = torch.zeros(2, 2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    assert epo_weights(nothing, losses, torch.tensor([2.0, 6.0])).tolist() == [0.25, 0.75]


def test_a_preference_for_absent_tasks_alone_is_uniform() -> None:
    aggregation = build("epo(preference={a: 0, b: 0, c: 1})").aggregation
    assert aggregation is not None
    step = Step(("a", "b", "c"), (0, 1), torch.ones(2))
    assert torch.isfinite(aggregation.weights(torch.eye(2, dtype=torch.float64), step)).all()


def test_wrong_use_is_refused() -> None:
    with pytest.raises(UsageError, match="reads the losses"):
        mtobal.aggregate(torch.eye(2), "epo")
    with pytest.raises(UsageError, match="not negative"):
        mtobal.aggregate(torch.eye(2), "epo", [1.0, -1.0])
    with pytest.raises(UsageError, match="eps must be positive"):
        build("epo(eps=0)")
