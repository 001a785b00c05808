from __future__ import annotations

import copy

import pytest
import torch

from mtobal import UsageError
from mtobal.strategies import Step, build

TASKS = ("seg", "depth", "normal")


def train(strategy, active: tuple[int, ...], losses: torch.Tensor) -> None:
    step = Step(TASKS, active, losses[list(active)], torch.ones(2, 4))
    strategy.loss_weights(step)
    strategy.update(step)
    if strategy.looks_again:
        strategy.look_again(Step(TASKS, active, 0.5 * step.losses.square()))


@pytest.mark.parametrize("spec", ["uw", "imtl_l", "famo(gamma=0.1)", "ldc_mtl", "ldc_mtl(form=raw)"])
def test_a_missing_task_keeps_its_numbers_and_its_momentum(spec: str) -> None:
    strategy = build(spec)
    losses = torch.tensor([2.0, 0.5, 3.0])
    for _ in range(3):
        train(strategy, (0, 1, 2), losses)
        losses = losses * torch.tensor([0.9, 0.8, 1.1])
    weighting = strategy.loss_weighting
    before = copy.deepcopy((weighting.values.data, weighting.optimizer.state[weighting.values]))
    train(strategy, (0, 2), losses)
    values, moments = weighting.values.data, weighting.optimizer.state[weighting.values]
    assert torch.equal(values[1], before[0][1])
    assert not torch.equal(values[0], before[0][0])
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(moments[name][1], before[1][name][1])
        assert not torch.equal(moments[name][2], before[1][name][2])


def test_another_number_of_tasks_is_refused() -> None:
    strategy = build("imtl_l")
    strategy.loss_weights(Step.of(3, torch.ones(3)))
    with pytest.raises(UsageError, match=r"imtl_l holds learned numbers of shape \(3,\).* its 2 tasks"):
        strategy.loss_weights(Step.of(2, torch.ones(2)))


def test_impartial_losses_settle_where_all_weighted_losses_are_one() -> None:
    strategy = build("imtl_l(lr=0.05)")
    losses = torch.tensor([2.0, 0.05, 30.0])
    for _ in range(1500):
        train(strategy, (0, 1, 2), losses)
    weights = strategy.loss_weights(Step(TASKS, (0, 1, 2), losses))
    torch.testing.assert_close(weights * losses, torch.ones(3), rtol=1e-3, atol=0)


def test_impartial_losses_are_twice_uncertainty_weights() -> None:
    one, two = build("imtl_l(optimizer=sgd, lr=0.1)"), build("uw(optimizer=sgd, lr=0.2)")
    for number in range(20):
        losses = torch.tensor([2.0, 0.5, 3.0], dtype=torch.float64) / (number + 1)
        step = Step(TASKS, (0, 1, 2), losses)
        torch.testing.assert_close(one.loss_weights(step), 2 * two.loss_weights(step))
        one.update(step)
        two.update(step)


@pytest.mark.parametrize("spec", ["uw", "imtl_l"])
def test_losses_without_best_weight_stop_at_a_limit(spec: str) -> None:
    strategy = build(f"{spec}(optimizer=sgd, lr=10)")
    losses = torch.tensor([0.0, -1.0, 1e-12])
    for _ in range(20):
        train(strategy, (0, 1, 2), losses)
    weights = strategy.loss_weights(Step(TASKS, (0, 1, 2), losses))
    assert weights.isfinite().all()
    assert weights.max() <= 1.1e13


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("spec", ["uw", "famo", "ldc_mtl", "dwa", "dwa(average=window)", "igb_v1", "go4align"])
def test_state_loaded_on_the_cpu_follows_the_losses_to_their_device(spec: str) -> None:
    losses = torch.tensor([2.0, 0.5, 3.0])
    on_cpu = build(spec)
    for _ in range(3):
        train(on_cpu, (0, 1, 2), losses)
        on_cpu.end_epoch()
    moved = build(spec)
    moved.load_state_dict(copy.deepcopy(on_cpu.state_dict()))
    for number in range(3):
        values = losses * (number + 1)
        step = Step(TASKS, (0, 1, 2), values, torch.ones(2, 4))
        on_device = Step(TASKS, (0, 1, 2), values.cuda(), torch.ones(2, 4).cuda())
        weights = moved.loss_weights(on_device)
        assert weights.device == on_device.losses.device
        torch.testing.assert_close(weights.cpu(), on_cpu.loss_weights(step))
        for strategy, given in ((on_cpu, step), (moved, on_device)):
            strategy.update(given)
            if strategy.looks_again:
                strategy.look_again(given)
            strategy.end_epoch()
