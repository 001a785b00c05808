from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtobal.strategies import Step, build
from mtobal.strategies.loss.go4align import go4align_weights, interval_groups


def spread(values: np.ndarray, labels: np.ndarray) -> float:
    groups = [values[labels == group] for group in np.unique(labels)]
    return sum(((group - group.mean()) ** 2).sum() for group in groups)


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.floats(-10, 10) | st.sampled_from([0.0, 1.0]), min_size=1, max_size=6),
    num_groups=st.integers(1, 3),
)
def test_groups_are_the_best_of_all_partitions(values: list[float], num_groups: int) -> None:
    numbers = np.array(values)
    num_groups = min(num_groups, len(numbers))
    labels = interval_groups(numbers, num_groups)
    assert set(labels) == set(range(num_groups))
    best = min(
        spread(numbers, np.array(other)) for other in itertools.product(range(num_groups), repeat=len(numbers))
    )
    assert spread(numbers, labels) <= best + 1e-9


def test_small_numbers_are_told_apart_beside_a_huge_one() -> None:
    labels = interval_groups(np.array([1e12, 1e-6, 3e-6, 1.1e-6, 3.1e-6]), 3)
    assert labels.tolist() == [2, 0, 1, 0, 1]


def test_a_group_shares_the_mean_of_its_tasks() -> None:
    losses = torch.tensor([1.0, 1.1, 10.0, 9.0], dtype=torch.float64)
    own = go4align_weights(torch.zeros(4), losses, num_groups=4)
    found = go4align_weights(torch.zeros(4), losses, num_groups=2)
    torch.testing.assert_close(found[:2], own[:2].mean().expand(2))
    torch.testing.assert_close(found[2:], own[2:].mean().expand(2))
    torch.testing.assert_close(go4align_weights(torch.zeros(4), losses, num_groups=9), own)


def test_shares_fall_with_the_losses_and_a_missing_task_keeps_its_own() -> None:
    strategy = build("go4align(num_groups=3, step_size=0.1)")
    tasks = ("seg", "depth", "normal")
    step = Step(tasks, (0, 2), torch.tensor([1.0, 3.0], dtype=torch.float64))
    for _ in range(4):
        strategy.loss_weights(step)
        strategy.update(step)
    shares = strategy.loss_weighting.log_shares.exp()
    torch.testing.assert_close(shares.sum(), torch.tensor(1.0, dtype=torch.float64))
    expected = torch.tensor([-0.4, 0.0, -1.2], dtype=torch.float64).softmax(0)
    torch.testing.assert_close(shares, expected)


@pytest.mark.parametrize("num_groups", [1, 2])
def test_a_long_run_stays_in_range(num_groups: int) -> None:
    strategy = build(f"go4align(num_groups={num_groups}, step_size=1.0)")
    step = Step.of(3, torch.tensor([1.0, 100.0, 1e4]))
    for _ in range(50):
        weights = strategy.loss_weights(step)
        assert weights.isfinite().all()
        strategy.update(step)
