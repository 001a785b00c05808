from __future__ import annotations

import pytest
import torch

from mtobal import UsageError
from mtobal.strategies.loss.unreduced import join_losses, task_losses

MODES = ["tokens", "samples", "tasks", "task_samples"]
every_mode = pytest.mark.parametrize("mode", MODES)
LOSSES = torch.rand(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TASKS = torch.tensor([0, 2, 2, 0, 2])
VALID = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]]).bool()


@every_mode
def test_of_equal_losses_the_mean_is_that_loss(mode: str) -> None:
    weights = torch.tensor([0.3, 1.0, 2.5])
    joined = join_losses(torch.full((5, 4), 0.7), TASKS, weights, VALID, mode)
    torch.testing.assert_close(joined, torch.tensor(0.7))


@every_mode
def test_a_factor_on_all_weights_changes_nothing(mode: str) -> None:
    weights = torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64)
    expected = join_losses(LOSSES, TASKS, weights, VALID, mode)
    torch.testing.assert_close(join_losses(LOSSES, TASKS, 7 * weights, VALID, mode), expected)


@every_mode
def test_what_is_not_valid_has_neither_value_nor_gradient(mode: str) -> None:
    losses = LOSSES.clone()
    losses[~VALID] = torch.nan
    losses.requires_grad_()
    joined = join_losses(losses, TASKS, None, VALID, mode)
    torch.testing.assert_close(joined, join_losses(LOSSES, TASKS, None, VALID, mode))
    (gradient,) = torch.autograd.grad(joined, losses)
    assert (gradient[~VALID] == 0).all()
    torch.testing.assert_close(gradient.sum(), torch.tensor(1.0, dtype=torch.float64))


def test_each_mode_by_hand() -> None:
    weights = torch.tensor([0.5, 9.0, 2.0], dtype=torch.float64)
    first, second = LOSSES[[0, 3]][VALID[[0, 3]]], LOSSES[[1, 2]][VALID[[1, 2]]]
    means = [LOSSES[sample][VALID[sample]].mean() for sample in range(4)]
    expected = {
        "tokens": (0.5 * first.sum() + 2 * second.sum()) / (0.5 * 7 + 2 * 3),
        "samples": (0.5 * (means[0] + means[3]) + 2 * (means[1] + means[2])) / 5,
        "tasks": (0.5 * first.mean() + 2 * second.mean()) / 2.5,
        "task_samples": (0.5 * (means[0] + means[3]) / 2 + 2 * (means[1] + means[2]) / 2) / 2.5,
    }
    for mode in MODES:
        torch.testing.assert_close(join_losses(LOSSES, TASKS, weights, VALID, mode), expected[mode])
    found, present = task_losses(LOSSES, TASKS, 3, VALID)
    assert present.tolist() == [True, False, True]
    torch.testing.assert_close(found, torch.stack([first.mean(), torch.zeros_like(means[0]), second.mean()]))


@every_mode
def test_losses_of_samples_need_no_tokens(mode: str) -> None:
    joined = join_losses(LOSSES[:, 0], TASKS, None, None, mode)
    torch.testing.assert_close(joined, join_losses(LOSSES[:, :1], TASKS, None, None, mode))


@every_mode
def test_nothing_valid_is_zero(mode: str) -> None:
    losses = LOSSES.clone().requires_grad_()
    joined = join_losses(losses, TASKS, None, torch.zeros_like(VALID), mode)
    assert joined == 0
    assert (torch.autograd.grad(joined, losses)[0] == 0).all()


def test_unknown_tasks_are_refused() -> None:
    with pytest.raises(UsageError, match="one task id below 2 for each of 5 samples"):
        join_losses(LOSSES, TASKS, torch.ones(2))
