from __future__ import annotations

import copy

import pytest
import torch

from mtobal import UsageError
from mtobal.strategies import Step, build
from mtobal.strategies.loss.loss_reweight import SampleReweighting, loss_reweights, loss_scores

LOSSES = torch.tensor([0.4, 1.1, 2.0, 3.2, 0.9, 5.0], dtype=torch.float64)
every_curve = pytest.mark.parametrize("curve", ["linupper", "mid", "upper", "extremes"])


@every_curve
@pytest.mark.parametrize("losses", [[0.0, 0.0, 0.0], [2.0, 2.0, 2.0], [0.0, 1e6, 3.0], [-1.0, 4.0, 0.0], [7.0]])
def test_weights_are_on_the_simplex(curve: str, losses: list[float]) -> None:
    weights = loss_reweights(torch.tensor(losses), curve)
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
    assert (weights > 0).all()
    if len(set(losses)) == 1:
        torch.testing.assert_close(weights, torch.full_like(weights, 1 / len(losses)))


@every_curve
def test_weights_do_not_depend_on_unit_and_origin_of_the_losses(curve: str) -> None:
    torch.testing.assert_close(loss_reweights(3 * LOSSES + 7, curve), loss_reweights(LOSSES, curve))


def test_linupper_counts_all_above_the_middle_alike() -> None:
    scores = loss_scores(LOSSES, "linupper")
    middle = (LOSSES.min() + LOSSES.max()) / 2
    assert (scores[middle <= LOSSES] == 1).all()
    assert (scores[middle > LOSSES] < 1).all()


def test_during_burn_in_the_loss_is_the_mean_over_tokens() -> None:
    criterion = SampleReweighting(burn_in=2)
    counts = torch.tensor([4, 2, 3, 1, 5, 1])
    plain = (counts * LOSSES).sum() / counts.sum()
    for _ in range(2):
        torch.testing.assert_close(criterion(LOSSES, counts), plain)
    resumed = SampleReweighting(burn_in=2)
    resumed.load_state_dict(criterion.state_dict())
    assert not torch.isclose(resumed(LOSSES, counts), plain)


def test_no_gradient_goes_through_the_weights() -> None:
    losses = LOSSES.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(SampleReweighting(burn_in=0)(losses), losses)
    torch.testing.assert_close(gradient, loss_reweights(LOSSES))


def test_the_strategy_weighs_tasks_after_its_burn_in() -> None:
    strategy = build("loss_reweight(burn_in=2)")
    step = Step(("a", "b", "c"), (0, 2), torch.tensor([1.0, 2.0], dtype=torch.float64))
    for _ in range(2):
        assert strategy.loss_weights(step).tolist() == [0.5, 0.5]
        strategy.update(step)
    resumed = build("loss_reweight(burn_in=2)")
    resumed.load_state_dict(copy.deepcopy(strategy.state_dict()))
    torch.testing.assert_close(resumed.loss_weights(step), loss_reweights(step.losses))


def test_wrong_use() -> None:
    with pytest.raises(UsageError, match="temperature must be positive"):
        build("loss_reweight(temperature=0)")
