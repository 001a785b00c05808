from __future__ import annotations

import pytest
import torch

import mtobal
from mtobal import UsageError
from mtobal.ops import Jacobian
from mtobal.strategies import Step
from mtobal.strategies.gradient import GradDrop

CONFLICT = torch.tensor([[1.0], [-1.0]]).repeat(1, 4000)


def test_the_mean_of_the_steps_is_the_plain_sum() -> None:
    rows = torch.randn(3, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    strategy = GradDrop()
    draws = torch.stack([mtobal.aggregate(rows, strategy) for _ in range(2000)])
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - rows.sum(0)).abs() <= 5 * error + 1e-12).all()


def test_every_parameter_and_every_step_has_draws_of_its_own() -> None:
    strategy = GradDrop()
    jacobian = Jacobian((CONFLICT, CONFLICT), ("left", "right"))
    first = strategy.direct(jacobian, Step.of(2)).blocks
    second = strategy.direct(jacobian, Step.of(2)).blocks
    for other in (first[1], second[0], second[1]):
        assert 0.45 < (first[0] == other).double().mean() < 0.55


def test_a_leak_lets_a_part_of_the_sum_through() -> None:
    rows = torch.randn(3, 500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    dropped = mtobal.aggregate(rows, "graddrop(seed=4)")
    leaky = mtobal.aggregate(rows, "graddrop(seed=4, leak=0.25)")
    torch.testing.assert_close(leaky, 0.25 * rows.sum(0) + 0.75 * dropped)
    torch.testing.assert_close(mtobal.aggregate(rows, "graddrop(leak=1)"), rows.sum(0))


def test_options_are_checked() -> None:
    for leak in (-0.1, 1.1):
        with pytest.raises(UsageError, match="leak must lie between 0 and 1"):
            GradDrop(leak=leak)
    with pytest.raises(UsageError, match="no task weights that the heads could get"):
        GradDrop(heads="weighted")
