from __future__ import annotations

import pytest
import torch

import mtobal
from mtobal import UsageError

ROWS = torch.tensor([[1.0, 5.0], [2.0, -900.0], [3.0, 6.0], [400.0, 7.0], [2.5, 7.0]])


@pytest.mark.parametrize(
    ("trim", "expected"), [(0, [81.7, -175.0]), (1, [2.5, 6.0]), (2, [2.5, 6.0]), (9, [2.5, 6.0])]
)
def test_as_many_are_dropped_as_leave_one(trim: int, expected: list[float]) -> None:
    torch.testing.assert_close(mtobal.aggregate(ROWS, f"trimmed_mean(trim={trim})"), torch.tensor(expected))


def test_of_two_tasks_it_is_the_mean() -> None:
    assert torch.equal(mtobal.aggregate(ROWS[:2], "trimmed_mean(trim=3)"), ROWS[:2].mean(0))


def test_one_broken_gradient_of_many_does_no_harm() -> None:
    rows = torch.ones(6, 3)
    rows[2] = torch.tensor([1e20, -1e20, 0.0])
    assert torch.equal(mtobal.aggregate(rows, "trimmed_mean"), torch.ones(3))


def test_options_are_checked() -> None:
    with pytest.raises(UsageError, match="trim must not be negative"):
        mtobal.strategies.build("trimmed_mean(trim=-1)")
