from __future__ import annotations

import copy

import pytest
import torch

from mtobal import UsageError
from mtobal.strategies import Step, build
from mtobal.strategies.loss.tat import (
    SampleUncertainty,
    UncertaintyEstimator,
    balanced_loss,
    restoration_losses,
    uncertainty_weights,
)

TASKS = ("seg", "depth", "normal")


def test_every_uncertainty_weighs_alike_before_it_has_learned() -> None:
    descriptors = torch.rand(5, 3)
    assert torch.equal(UncertaintyEstimator(3)(descriptors), torch.ones(5))
    assert sum(parameter.numel() for parameter in UncertaintyEstimator(3).parameters()) == 8577


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_uncertainty_near_zero_gives_a_bounded_weight_and_is_pushed_away(dtype: torch.dtype) -> None:
    losses = torch.full((5,), 0.3, dtype=dtype)
    near = torch.tensor([0.0, -0.0, 1e-9, -1e-9, 1e-3], dtype=dtype, requires_grad=True)
    weights = uncertainty_weights(near, floor=1e-4)
    assert weights.max() <= 0.5 / 1e-4
    loss = balanced_loss(losses, near, floor=1e-4)
    (gradient,) = torch.autograd.grad(loss, near)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert (gradient * torch.copysign(torch.ones_like(near), near) < 0).all()  # the square grows


def test_above_the_floor_the_slope_is_the_derivative() -> None:
    losses = torch.tensor([0.1, 2.0, 0.4], dtype=torch.float64)
    uncertainties = torch.tensor([0.3, -1.4, 0.8], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(balanced_loss, (losses.requires_grad_(), uncertainties))


@pytest.mark.parametrize("loss", [1e-3, 0.05, 1.0, 20.0])
def test_the_best_uncertainty_of_a_constant_loss(loss: float) -> None:
    best = (loss + (loss**2 + 4 * loss) ** 0.5) / 2
    losses = torch.tensor([loss], dtype=torch.float64)
    values = [balanced_loss(losses, torch.tensor([factor * best**0.5])) for factor in (0.99, 1.0, -1.0, 1.01)]
    assert values[1] == values[2] < min(values[0], values[3])
    assert uncertainty_weights(torch.tensor([best**0.5])).item() == pytest.approx(0.5 / best, rel=1e-5)


def test_no_gradient_reaches_the_images_through_the_descriptors() -> None:
    degraded, target = torch.rand(2, 4, 1, 3, 3, dtype=torch.float64)
    restored = torch.rand(4, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    losses, descriptors = restoration_losses(degraded, restored, target)
    assert not descriptors.requires_grad
    criterion = SampleUncertainty(descriptors=3).double()
    (gradient,) = torch.autograd.grad(criterion(losses, descriptors), restored)
    torch.testing.assert_close(gradient, (restored - target).sign() * 0.5 / 4 / 9, atol=1e-9, rtol=1e-7)


def test_samples_get_uncertainties_of_their_own_after_training() -> None:
    torch.manual_seed(0)
    criterion = SampleUncertainty().double()
    losses = torch.tensor([0.01, 4.0], dtype=torch.float64)
    optimizer = torch.optim.AdamW(criterion.parameters(), lr=3e-3)
    for _ in range(400):
        optimizer.zero_grad()
        criterion(losses).backward()
        optimizer.step()
    found = criterion.estimator(losses[:, None]).square().detach()
    best = (losses + (losses.square() + 4 * losses).sqrt()) / 2
    torch.testing.assert_close(found, best, rtol=0.1, atol=0)


def test_the_strategy_learns_to_weigh_the_larger_loss_less_and_resumes() -> None:
    step = Step(TASKS, (0, 1, 2), torch.tensor([0.01, 1.0, 5.0]))
    strategy = build("tat(lr=0.003)")
    for _ in range(200):
        strategy.update(step)
    weights = strategy.loss_weights(step)
    assert weights[0] > 2 * weights[1] > 4 * weights[2] > 0
    resumed = build("tat(lr=0.003, seed=5)")
    resumed.load_state_dict(copy.deepcopy(strategy.state_dict()))
    for part in (strategy, resumed):
        part.update(step)
    assert torch.equal(strategy.loss_weights(step), resumed.loss_weights(step))


def test_it_can_update_where_gradients_are_off() -> None:
    strategy = build("tat")
    step = Step(TASKS, (1,), torch.tensor([2.0]))
    bias = strategy.loss_weighting.estimator.leave.bias
    before = bias.item()
    random = torch.get_rng_state()
    with torch.no_grad():
        strategy.update(step)
    assert bias.item() != before
    assert torch.equal(random, torch.get_rng_state())


def test_wrong_use() -> None:
    with pytest.raises(UsageError, match="learning rate and floor must be positive"):
        build("tat(floor=0)")
    with pytest.raises(UsageError, match=r"tat needs losses that are not negative.*'depth' \(-1\)"):
        build("tat").loss_weights(Step(TASKS, (0, 1), torch.tensor([1.0, -1.0])))
