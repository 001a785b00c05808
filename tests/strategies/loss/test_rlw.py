from __future__ import annotations

import pytest
import torch

from mtobal.strategies import Step, build

TASKS = ("seg", "depth", "normal")


@pytest.mark.parametrize("distribution", ["normal", "dirichlet"])
def test_draws_belong_to_the_names_of_the_tasks(distribution: str) -> None:
    one, two = (build(f"rlw(distribution={distribution}, seed=3)") for _ in range(2))
    for _ in range(5):
        weights = one.loss_weights(Step(TASKS, (0, 1, 2), torch.ones(3)))
        turned = two.loss_weights(Step(TASKS[::-1], (0, 1, 2), torch.ones(3)))
        assert torch.equal(weights, turned.flip(0))


@pytest.mark.parametrize("distribution", ["normal", "dirichlet"])
def test_a_missing_task_leaves_the_others_in_their_proportion(distribution: str) -> None:
    one, two = (build(f"rlw(distribution={distribution}, seed=3)") for _ in range(2))
    for _ in range(5):
        weights = one.loss_weights(Step(TASKS, (0, 1, 2), torch.ones(3)))[[0, 2]]
        fewer = two.loss_weights(Step(TASKS, (0, 2), torch.ones(2)))
        torch.testing.assert_close(fewer, weights / weights.sum())
