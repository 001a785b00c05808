from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mtobal import UsageError
from mtobal.strategies import Step, build

TASKS = ("seg", "depth", "normal")


def draw(seed: int) -> tuple[Tensor, Tensor]:
    """Losses of different sizes, and a representation of two samples, four channels and 3 x 5 places."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.tensor([4.0, 1.0, 0.1], dtype=torch.float64)
    drawn = torch.rand(3, generator=generator, dtype=torch.float64)
    return scales * (0.5 + drawn), torch.randn(2, 4, 3, 5, generator=generator, dtype=torch.float64)


Scaling = Callable[[Tensor, Tensor], Tensor]
FORMS: dict[str, tuple[Scaling, bool]] = {
    "ratio": (lambda losses, first: losses / (first / first.min()), False),
    "raw": (lambda losses, first: losses, True),
    "log": (lambda losses, first: (losses / first).log(), True),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("clamp", [None, [0.32, 0.36]])
def test_weights_and_router_follow_the_objective(form: str, clamp: list[float] | None) -> None:
    """An ordinary module with the same objective, trained by autograd and Adam, goes the same way."""
    scaling, detach_sum = FORMS[form]
    strategy = build({"ldc_mtl": {"form": form, "clamp": clamp, "lr": 0.02, "penalty": 0.3}})
    router = torch.nn.Linear(4, 3).double()
    torch.nn.init.zeros_(router.weight)
    torch.nn.init.zeros_(router.bias)
    optimizer = torch.optim.Adam(router.parameters(), lr=0.02)
    first, clamped = draw(0)[0], False
    for seed in range(25):
        values, representation = draw(seed)
        losses = values.clone().requires_grad_()
        shares = router(representation.mean((0, 2, 3))).softmax(0)
        if clamp is not None:
            clamped |= bool((shares.clamp(*clamp) != shares).any())
            shares = shares.clamp(*clamp)
        scaled = scaling(losses, first)
        total = shares.sum().detach() if detach_sum else shares.sum()
        objective = shares @ scaled / total + 0.3 * (shares * scaled).diff().abs().sum()
        if seed == 0 and form != "raw":
            objective = shares @ scaled / total  # all weighted losses are equal: the derivative of the gap is zero
        optimizer.zero_grad()
        objective.backward()

        step = Step(TASKS, (0, 1, 2), values, representation)
        torch.testing.assert_close(strategy.loss_weights(step), losses.grad, rtol=1e-9, atol=1e-12)
        strategy.update(step)
        optimizer.step()
    assert clamped == (clamp is not None)


def test_the_log_form_takes_new_first_losses_in_every_epoch() -> None:
    strategy = build("ldc_mtl(form=log)")
    for number in range(3):
        values = draw(number)[0]
        weights = strategy.loss_weights(Step(TASKS, (0, 1, 2), values, torch.zeros(2, 4)))
        torch.testing.assert_close(weights * values, torch.full_like(values, 1 / 3))
        strategy.end_epoch()


def test_a_task_that_starts_at_zero_is_measured_by_its_first_other_loss() -> None:
    strategy = build("ldc_mtl(penalty=0)")
    for value, expected in ((0.0, None), (2.0, [1.0, 0.5, 0.25])):
        step = Step(TASKS, (0, 1, 2), torch.tensor([1.0, value, 4.0]), torch.zeros(2, 4))
        weights = strategy.loss_weights(step)
        assert weights.isfinite().all()
        if expected is not None:
            torch.testing.assert_close(weights, torch.tensor(expected) / 3)


def test_bounds_that_leave_no_room_are_refused() -> None:
    step = Step.of(7, torch.ones(7))
    step = Step(step.tasks, step.active, step.losses, torch.ones(2, 4))
    with pytest.raises(UsageError, match=r"equal weights of 7 tasks lie outside of clamp=\[0.2, 0.8\]"):
        build("ldc_mtl").loss_weights(step)
    assert build("ldc_mtl(clamp=none)").loss_weights(step).sum() == pytest.approx(1.0)


def test_it_asks_for_the_representation() -> None:
    with pytest.raises(UsageError, match="ldc_mtl reads the shared representation"):
        build("ldc_mtl").loss_weights(Step.of(2, torch.ones(2)))
    flat = Step(("a", "b"), (0, 1), torch.ones(2), torch.ones(4))
    with pytest.raises(UsageError, match=r"must be \(samples, channels, ...\), not \(4,\)"):
        build("ldc_mtl").loss_weights(flat)
