from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mtobal.strategies import Composition, Step, build

TASKS = ("seg", "depth", "normal")
NAN = float("nan")


def epoch(strategy: Composition, rows: list[list[float]]) -> list[Tensor]:
    """Run one epoch; NaN stands for a missing task. Return the weights of each step."""
    found = []
    for row in rows:
        values = torch.tensor(row, dtype=torch.float64)
        active = tuple(task for task in range(len(row)) if values[task].isfinite())
        step = Step(TASKS, active, values[list(active)])
        found.append(strategy.loss_weights(step))
        strategy.update(step)
    strategy.end_epoch()
    return found


def near(actual: Tensor, expected: list[float] | Tensor) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=torch.float64))


def test_dynamic_averages_compare_the_last_two_epochs() -> None:
    strategy = build("dwa(temperature=1)")
    for rows in ([[4.0, 1.0, 2.0], [2.0, 1.0, 2.0]], [[1.0, 2.0, 4.0], [2.0, 4.0, 0.0]]):
        for weights in epoch(strategy, rows):
            near(weights, [1.0, 1.0, 1.0])
    ratios = torch.tensor([1.5 / 3.0, 3.0 / 1.0, 2.0 / 2.0], dtype=torch.float64)
    for weights in epoch(strategy, [[9.0, 9.0, 9.0], [1.0, 1.0, 1.0]]):
        near(weights, 3 * ratios.softmax(0))


def test_a_task_that_misses_an_epoch_keeps_its_averages() -> None:
    strategy = build("dwa(temperature=1)")
    epoch(strategy, [[4.0, 1.0, 2.0], [NAN, 3.0, 2.0]])  # averages 4, 2, 2
    epoch(strategy, [[2.0, 1.0, 2.0]])
    epoch(strategy, [[1.0, NAN, 2.0]])
    (weights,) = epoch(strategy, [[1.0, 1.0, 1.0]])
    near(weights, 3 * torch.tensor([0.5, 0.5, 1.0], dtype=torch.float64).softmax(0))


def test_a_task_without_two_averages_has_the_weight_one() -> None:
    strategy = build("dwa(temperature=1)")
    epoch(strategy, [[4.0, NAN, 2.0]])
    epoch(strategy, [[2.0, NAN, 2.0]])
    (weights,) = epoch(strategy, [[1.0, 7.0, 1.0]])
    near(weights, [2 * torch.tensor([0.5, 1.0]).softmax(0)[0].item(), 1.0, weights[2].item()])
    near(weights.sum(), 3.0)


def test_an_average_of_zero_is_a_ratio_of_one() -> None:
    strategy = build("dwa(temperature=1)")
    epoch(strategy, [[0.0, 1.0, 1.0]])
    epoch(strategy, [[0.0, 1.0, 1.0]])
    (weights,) = epoch(strategy, [[0.0, 1.0, 1.0]])
    near(weights, [1.0, 1.0, 1.0])


def test_windows_forget_what_left_them() -> None:
    strategy = build("dwa(average=window, window=2, temperature=1)")
    found = epoch(
        strategy, [[100.0, 7.0, 3.0], [4.0, 1.0, 2.0], [2.0, 1.0, 2.0], [1.0, 2.0, 4.0], [2.0, 4.0, 0.0]]
    )
    ratios = torch.tensor([1.5 / 3.0, 3.0 / 1.0, 2.0 / 2.0], dtype=torch.float64)
    near(found[-1], 3 * ratios.softmax(0))


def test_a_missing_task_does_not_move_its_window() -> None:
    strategy = build("dwa(average=window, window=2, temperature=1)")
    rows = [[4.0, 1.0, 2.0], [2.0, 1.0, 2.0], [1.0, 2.0, 4.0]]
    gaps = [[NAN, 9.0, NAN]]
    with_gaps = epoch(strategy, [rows[0], *rows, *gaps, [2.0, 4.0, 0.0]])[-1]
    assert with_gaps[1] != pytest.approx(1.0)
    alone = epoch(build("dwa(average=window, window=2, temperature=1)"), [rows[0], *rows, [2.0, 4.0, 0.0]])[-1]
    near(with_gaps[0] / with_gaps[2], alone[0] / alone[2])


def test_the_base_is_the_average_of_the_second_epoch() -> None:
    strategy = build("igb_v1")
    for rows in ([[9.0, 9.0, 9.0]], [[1.0, 2.0, 4.0], [3.0, 4.0, NAN]]):
        for row, weights in zip(rows, epoch(strategy, rows), strict=True):
            values = torch.tensor(row, dtype=torch.float64)
            near(weights, 1 / values[values.isfinite()])
    for _ in range(2):  # later epochs leave it
        losses = torch.tensor([1.0, 1.5, 8.0], dtype=torch.float64)
        (weights,) = epoch(strategy, [losses.tolist()])
        near(weights * losses, 3 * (losses / torch.tensor([2.0, 3.0, 4.0])).softmax(0))


def test_a_task_that_misses_the_second_epoch_is_measured_by_a_later_one() -> None:
    strategy = build("igb_v1(base_epoch=0)")
    epoch(strategy, [[2.0, NAN, 4.0]])
    (weights,) = epoch(strategy, [[2.0, 5.0, 4.0]])
    near(weights, [1 / 2.0, 1 / 5.0, 1 / 4.0])
    (weights,) = epoch(strategy, [[2.0, 5.0, 4.0]])
    near(weights, [1 / 2.0, 1 / 5.0, 1 / 4.0])
    near(strategy.loss_weighting.base, [2.0, 5.0, 4.0])


def test_the_smooth_maximum_starts_after_its_warm_up() -> None:
    strategy = build("stch(warmup_epochs=1, mu=0.5)")
    for rows in ([[9.0, 9.0, 9.0]], [[1.0, 2.0, 4.0], [3.0, 4.0, 4.0]]):
        for row, weights in zip(rows, epoch(strategy, rows), strict=True):
            near(weights, 1 / torch.tensor(row, dtype=torch.float64))
    losses = torch.tensor([1.0, 1.5, 8.0], dtype=torch.float64)
    (weights,) = epoch(strategy, [losses.tolist()])
    shares = (losses / torch.tensor([2.0, 3.0, 4.0])).square()
    near(weights, 3 * shares / shares.sum() / losses)
