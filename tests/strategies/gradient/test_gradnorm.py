from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mtobal import UsageError
from mtobal.ops import Jacobian
from mtobal.strategies import Direction, Step, build
from mtobal.strategies.gradient import GradNorm
from mtobal.strategies.gradient.gradnorm import gradnorm_gradient

TASKS = ("a", "b", "c")
NAMES = ("stem.weight", "body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias")


def float64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def take_step(strategy: GradNorm, rows: Tensor, losses: Tensor, active: tuple[int, ...] = (0, 1, 2)) -> Direction:
    step = Step(TASKS, active, losses)
    found = strategy.direct(Jacobian((rows,), ("layer.weight",)), step)
    strategy.update(step)
    return found


@pytest.mark.parametrize("form", ["paper", "softmax"])
def test_gradients_come_to_one_length_where_the_losses_fall_alike(form: str) -> None:
    norms = float64(1.0, 2.0, 4.0)
    strategy = GradNorm(lr=0.003, form=form)
    for number in range(800):
        weights = take_step(strategy, torch.diag(norms), float64(1.0, 3.0, 0.2) / (number + 1)).weights
        torch.testing.assert_close(weights.sum(), float64(3.0).squeeze())
    lengths = weights * norms
    torch.testing.assert_close(lengths / lengths.mean(), torch.ones(3).double(), rtol=0.05, atol=0)


@pytest.mark.parametrize("form", ["paper", "softmax"])
def test_a_task_that_lags_gets_a_longer_gradient(form: str) -> None:
    strategy = GradNorm(lr=0.003, form=form)
    for number in range(500):
        fallen = 1.0 if number == 0 else 0.5
        weights = take_step(strategy, torch.eye(3).double(), float64(fallen, fallen, 1.0)).weights
    # The sum of the targets is not quite that of the lengths, so they are met up to a few percent.
    expected = float64(0.75, 0.75, 1.5) ** 1.5
    torch.testing.assert_close(weights / weights.mean(), expected / expected.mean(), rtol=0.1, atol=0)


def test_the_gradient_is_that_of_the_objective() -> None:
    weights = float64(0.5, 1.5, 1.0).requires_grad_()
    norms, losses, initial = float64(2.0, 1.0, 3.0), float64(1.0, 0.5, 2.0), float64(2.0, 2.0, 2.0)
    rates = losses / initial / (losses / initial).mean()
    targets = ((weights * norms).mean() * rates**1.5).detach()
    (weights * norms - targets).abs().sum().backward()
    assert torch.equal(gradnorm_gradient(weights.detach(), norms, losses, initial, 1.5), weights.grad)


@pytest.mark.parametrize(
    ("layer", "inside"),
    [(None, (3, 4)), ("body.1", (3, 4)), ("body", (1, 2, 3, 4)), ("stem.weight", (0,)), ("body.0.bias", (2,))],
)
def test_norms_are_measured_at_the_layer(layer: str | None, inside: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = [torch.randn(3, 4, generator=generator, dtype=torch.float64) for _ in NAMES]
    changed = [block if index in inside else 100 * block for index, block in enumerate(blocks)]
    moved = []
    for tensors in (blocks, changed):
        strategy = GradNorm(layer=layer)
        step = Step(TASKS, (0, 1, 2), float64(1.0, 1.0, 1.0))
        strategy.direct(Jacobian(tuple(tensors), NAMES), step)
        strategy.update(step)
        moved.append(strategy.learned)
    assert torch.equal(*moved)
    assert not torch.equal(moved[0], torch.ones(3).double())


def test_an_unknown_layer_is_refused() -> None:
    strategy = GradNorm(layer="bodi.1")
    with pytest.raises(UsageError, match=r"unknown layer of gradnorm .* 'bodi.1': did you mean 'body.1'"):
        strategy.direct(Jacobian(tuple(torch.ones(3, 1) for _ in NAMES), NAMES), Step.of(3, float64(1, 1, 1)))


def test_huge_gradients_leave_every_weight_positive() -> None:
    strategy = GradNorm()
    for _ in range(20):
        weights = take_step(strategy, torch.diag(float64(1e8, 1.0, 1e-8)), float64(1.0, 1.0, 1.0)).weights
        assert (weights > 0).all()
        assert weights.sum().item() == pytest.approx(3.0)


def test_a_first_loss_of_zero_waits_for_a_better_one() -> None:
    strategy = GradNorm()
    take_step(strategy, torch.eye(3).double(), float64(0.0, 0.0, 0.0))
    take_step(strategy, torch.eye(3).double(), float64(0.0, 2.0, 3.0))
    take_step(strategy, torch.eye(3).double(), float64(5.0, 1.0, 1.0))
    assert strategy.initial.tolist() == [5.0, 2.0, 3.0]
    assert torch.isfinite(strategy.learned).all()


@pytest.mark.parametrize("form", ["paper", "softmax"])
def test_a_task_that_sits_out_keeps_its_share(form: str) -> None:
    strategy = GradNorm(form=form)
    take_step(strategy, torch.diag(float64(1.0, 5.0)), float64(1.0, 1.0), active=(0, 1))
    assert strategy.initial.tolist() == [1.0, 1.0, 0.0]
    assert strategy.learned[1] < strategy.learned[2] < strategy.learned[0]
    assert strategy.learned[2].item() == pytest.approx(1.0, abs=0.05)  # others may be brought to the sum with it


def test_options_and_losses_are_checked() -> None:
    with pytest.raises(UsageError, match="alpha must not be negative"):
        build("gradnorm(alpha=-1)")
    with pytest.raises(UsageError, match="learning rate must be positive"):
        build("gradnorm(lr=0)")
    with pytest.raises(UsageError, match="gradnorm needs losses that are not negative"):
        take_step(GradNorm(), torch.eye(3).double(), float64(1.0, -1.0, 1.0))
