from __future__ import annotations

import pytest
import torch
from torch import Tensor

import mtobal
from mtobal import UsageError
from mtobal.strategies import build
from mtobal.strategies.gradient.fairgrad import fairgrad_weights


def jacobian(tasks: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(tasks)
    return torch.randn(tasks, 9, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0, 2.0, 10.0])
def test_the_gain_of_a_task_is_a_power_of_its_weight(alpha: float) -> None:
    rows = jacobian()
    found = fairgrad_weights(rows @ rows.T, alpha)
    torch.testing.assert_close(rows @ (found @ rows), found ** (-1 / alpha), rtol=1e-9, atol=0)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 2.0])
def test_no_direction_of_the_same_norm_is_fairer(alpha: float) -> None:
    rows = jacobian()

    def utility(direction: Tensor) -> float:
        gains = rows @ direction
        return (gains.log() if alpha == 1 else gains ** (1 - alpha) / (1 - alpha)).sum().item()

    best = fairgrad_weights(rows @ rows.T, alpha) @ rows
    generator = torch.Generator().manual_seed(0)
    for size in (1e-3, 1e-2):
        for _ in range(20):
            other = best + size * best.norm() * torch.randn(9, generator=generator, dtype=torch.float64)
            other *= best.norm() / other.norm()
            if (rows @ other).min() > 0:
                assert utility(other) < utility(best)


def test_small_alpha_is_the_plain_sum() -> None:
    rows = 1.0 + 0.1 * jacobian()
    torch.testing.assert_close(fairgrad_weights(rows @ rows.T, 0.05), torch.ones(4).double(), rtol=0.2, atol=0)


@pytest.mark.parametrize("max_norm", [1e-3, 0.05, 1.0, 20.0])
@pytest.mark.parametrize("factor", [1.0, 1e3, 1e6])
def test_the_norm_of_the_direction_is_clipped(max_norm: float, factor: float) -> None:
    rows = factor * jacobian()
    direction = mtobal.aggregate(rows, f"fairgrad(alpha=2, max_norm={max_norm})")
    free = mtobal.aggregate(rows, "fairgrad(alpha=2, max_norm=0)")
    torch.testing.assert_close(direction, free * min(1.0, max_norm / free.norm().item()), rtol=1e-12, atol=0)


@pytest.mark.parametrize("alpha", [0.0, -1.0, 21.0, "inf"])
def test_an_alpha_beyond_the_range_of_float64_is_refused(alpha: object) -> None:
    with pytest.raises(UsageError, match=r"alpha must lie between 0\.05 and 20"):
        build(f"fairgrad(alpha={alpha})")
