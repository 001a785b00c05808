from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mtobal import UsageError
from mtobal.ops import Jacobian
from mtobal.strategies import Step, build
from mtobal.strategies.gradient import ExcessMTL

TASKS = ("a", "b", "c")


def weigh(strategy: ExcessMTL, rows: Tensor, active: tuple[int, ...] = (0, 1, 2)) -> Tensor:
    parts = rows.split([1, rows.shape[1] - 1], dim=1)
    found = strategy.direct(Jacobian(parts, ("left", "right")), Step(TASKS, active))
    torch.testing.assert_close(torch.cat(found.blocks), found.weights.to(rows) @ rows)
    return found.weights


@pytest.fixture
def rows() -> Tensor:
    return torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_a_task_whose_gradient_stays_gets_ahead_of_one_whose_gradient_shrinks(rows: Tensor) -> None:
    strategy = ExcessMTL(step_size=0.1)
    for number in range(50):
        weights = weigh(strategy, rows * torch.tensor([[1.0], [0.9**number], [1.0]]))
        assert weights.sum().item() == pytest.approx(3.0)
    assert weights[1] < 1 < weights[0]
    torch.testing.assert_close(weights[0], weights[2], rtol=1e-5, atol=0)  # relative to their own start


def test_a_task_without_gradient_has_its_first_step_later(rows: Tensor) -> None:
    strategy = ExcessMTL(step_size=1.0)
    still = rows.clone()
    still[1] = 0.0
    weigh(strategy, still)
    weigh(strategy, still)
    assert strategy.first[1] == 0
    before = strategy.log_weights.clone()
    weigh(strategy, rows)
    assert strategy.first[1] == pytest.approx(rows[1].abs().sum().item(), rel=1e-5)
    moved = strategy.log_weights - before
    assert moved[1] < min(moved[0], moved[2])  # its excess did not count yet


def test_far_apart_excesses_saturate_and_can_come_back(rows: Tensor) -> None:
    strategy = ExcessMTL(step_size=1.0)
    weigh(strategy, rows * torch.tensor([[1.0], [1.0], [1e-6]]))
    weights = weigh(strategy, rows)
    assert torch.isfinite(strategy.log_weights).all()
    torch.testing.assert_close(weights, torch.tensor([0.0, 0.0, 3.0]).double())


def test_a_task_that_sits_out_keeps_its_sums(rows: Tensor) -> None:
    strategy = ExcessMTL()
    weigh(strategy, rows)
    weights = weigh(strategy, rows[:2], active=(0, 1))
    assert weights.shape == (2,)
    torch.testing.assert_close(strategy.squares.blocks["right"][2], rows[2, 1:] ** 2)
    torch.testing.assert_close(strategy.squares.blocks["right"][0], 2 * rows[0, 1:] ** 2)


def test_options_are_checked() -> None:
    with pytest.raises(UsageError, match="step size must be positive"):
        build("excess_mtl(step_size=0)")
