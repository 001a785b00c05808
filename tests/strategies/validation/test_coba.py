from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mtobal import UsageError
from mtobal.strategies import Validation, build
from mtobal.strategies.validation.coba import coba_weights, slopes

TASKS = ("slow", "fast", "diverging")


def run(curves: list[list[float]], spec: str = "coba(warm_up=4, window=8)") -> torch.Tensor:
    strategy = build(spec)
    for losses in zip(*curves, strict=True):
        strategy.revise(Validation(TASKS[: len(curves)], torch.tensor(losses, dtype=torch.float64)))
    return strategy.revision.revised


def test_slopes_are_those_of_least_squares() -> None:
    series = torch.rand(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = np.polyfit(np.arange(7), series.numpy(), 1)[0]
    torch.testing.assert_close(slopes(series), torch.from_numpy(expected))
    series[[1, 4], 1] = torch.nan
    known = [0, 2, 3, 5, 6]
    expected = np.polyfit(known, series[known, 1].numpy(), 1)[0]
    assert slopes(series)[1].item() == pytest.approx(expected)
    assert slopes(torch.full((3, 1), torch.nan)).item() == 0
    assert slopes(torch.ones(1, 1)).item() == 0


def test_a_task_that_converges_slowly_gets_more() -> None:
    weights = run([[math.exp(-0.02 * t) for t in range(12)], [math.exp(-0.2 * t) for t in range(12)]])
    assert weights[0] > weights[1]


def test_a_task_that_diverges_gets_less_than_those_that_still_converge() -> None:
    curves = [
        [math.exp(-0.05 * t) for t in range(30)],
        [math.exp(-0.08 * t) for t in range(30)],
        [1 - 0.03 * min(t, 14) + 0.06 * max(t - 14, 0) for t in range(30)],
    ]
    weights = run(curves)
    assert weights[2] < weights[0]
    assert weights[2] < weights[1]
    assert weights.sum().item() == pytest.approx(1)


def test_no_weight_falls_below_its_least_value() -> None:
    found = coba_weights(torch.tensor([[-1.0, -1e-9, -1e-9, -1e-9]]), torch.tensor([-1e-9]))
    assert found.weights.min() >= 0.9 / 40
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        recent, steepest = torch.randn(5, 4, generator=generator), torch.randn(9, generator=generator)
        assert coba_weights(recent, steepest).weights.min() >= 1 / 40


def test_the_divergence_factor_can_be_kept_at_one() -> None:
    recent, steepest = torch.tensor([[-0.1, -0.2], [-0.2, -0.3]]), torch.tensor([-0.1, -0.2])
    assert coba_weights(recent, steepest).divergence > 1.9
    clamped = coba_weights(recent, steepest, clamp=True)
    assert clamped.divergence == 1
    torch.testing.assert_close(clamped.weights, (2 * clamped.relative).softmax(0))


def test_losses_that_stand_still_leave_equal_weights() -> None:
    torch.testing.assert_close(run([[1.0] * 12, [3.0] * 12]), torch.tensor([0.5, 0.5], dtype=torch.float64))


def test_a_task_missing_from_some_validations_is_measured_by_the_others() -> None:
    falling = [math.exp(-0.1 * t) for t in range(12)]
    gaps = [math.nan if t in (0, 5, 9) else value for t, value in enumerate(falling)]
    weights = run([falling, gaps])
    assert weights.isfinite().all()
    assert run([[math.nan] * 12, falling]).isfinite().all()


def test_wrong_options() -> None:
    with pytest.raises(UsageError, match="window of at least two"):
        build("coba(window=1)")
