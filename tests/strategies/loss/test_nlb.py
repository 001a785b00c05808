"""Normalization loss balance, and the temperatures that go with it."""

from __future__ import annotations

import pytest
import torch

from mtobal import UsageError
from mtobal.strategies import Step, build
from mtobal.strategies.loss.ebb import (
    EntropyBalancedTemperature,
    balanced_temperatures,
    distillation_loss,
    teacher_entropy,
)
from mtobal.strategies.loss.nlb import normalized_targets

TASKS = ("a", "b", "c")


def test_weights_approach_the_shares_of_what_is_left() -> None:
    strategy = build("nlb(rate=0.5)")
    first = torch.tensor([1.0, 10.0, 4.0], dtype=torch.float64)
    for losses in (first, *[first * torch.tensor([0.1, 0.5, 1.0])] * 60):
        step = Step(TASKS, (0, 1, 2), losses)
        strategy.loss_weights(step)
        strategy.update(step)
    expected = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64) / 1.6
    torch.testing.assert_close(strategy.loss_weights(step), expected)


def test_weights_do_not_depend_on_the_units_of_the_losses() -> None:
    one, two = build("nlb"), build("nlb")
    units = torch.tensor([1.0, 1e3, 1e-3], dtype=torch.float64)
    for number in range(5):
        losses = torch.rand(3, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        steps = [Step(TASKS, (0, 1, 2), losses), Step(TASKS, (0, 1, 2), units * losses)]
        torch.testing.assert_close(one.loss_weights(steps[0]), two.loss_weights(steps[1]))
        one.update(steps[0])
        two.update(steps[1])


def test_a_task_that_joins_late_is_measured_by_its_own_first_loss() -> None:
    strategy = build("nlb(rate=1)")
    strategy.update(Step(TASKS, (0, 1), torch.tensor([1.0, 1.0])))
    step = Step(TASKS, (0, 1, 2), torch.tensor([1.0, 1.0, 50.0]))
    torch.testing.assert_close(strategy.loss_weights(step), torch.full((3,), 1 / 3))


def test_absent_tasks_keep_their_weight() -> None:
    strategy = build("nlb(rate=0.5)")
    strategy.update(Step(TASKS, (0, 1, 2), torch.ones(3)))
    strategy.update(Step(TASKS, (0, 2), torch.tensor([0.1, 1.0])))
    shares = strategy.loss_weighting.shares
    assert shares[1] == pytest.approx(1 / 3)
    assert shares.sum().item() == pytest.approx(1)
    assert shares[2] > shares[0]


def test_targets_of_vanished_losses_are_finite() -> None:
    for losses, first in (([0.0, 0.0], [0.0, 1.0]), ([0.0, 1.0], [1.0, 0.0]), ([1e6, 0.0], [0.0, 0.0])):
        targets = normalized_targets(torch.tensor(losses), torch.tensor(first))
        assert targets.isfinite().all()
        assert targets.sum().item() == pytest.approx(1)


def test_wrong_rate() -> None:
    with pytest.raises(UsageError, match="rate must lie between 0 and 1"):
        build("nlb(rate=2)")


def test_temperatures_bring_entropies_together() -> None:
    generator = torch.Generator().manual_seed(0)
    sure = 4 * torch.randn(16, 10, generator=generator, dtype=torch.float64)
    vague = 2 * torch.randn(16, 10, generator=generator, dtype=torch.float64)
    temperature = EntropyBalancedTemperature(2, rate=0.01)
    gap = teacher_entropy(vague) - teacher_entropy(sure)
    for _ in range(300):
        temperature.update([sure, vague])
    heated, kept = temperature.values
    assert heated > 1.5
    assert kept == 1  # the lower bound
    left = teacher_entropy(vague, kept) - teacher_entropy(sure, heated)
    assert left.abs() < 0.02 * gap


def test_temperatures_stay_within_bounds_and_in_the_state() -> None:
    entropies = torch.tensor([0.1, 0.2, 0.9])
    moved = balanced_temperatures(torch.tensor([9.9999, 5.0, 1.0]), entropies)
    torch.testing.assert_close(moved, torch.tensor([10.0, 5.001, 1.0]))
    one, two = EntropyBalancedTemperature(3), EntropyBalancedTemperature(3)
    one.update([torch.randn(4, 5) * factor for factor in (1, 2, 9)])
    two.load_state_dict(one.state_dict())
    assert torch.equal(one.values, two.values)
    with pytest.raises(UsageError, match="two or more teachers"):
        EntropyBalancedTemperature(1)


def test_a_student_like_its_teacher_has_nothing_to_learn() -> None:
    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(distillation_loss(logits, logits.detach()), logits)
    assert gradient.abs().max() < 1e-12
