from __future__ import annotations

import pytest
import torch
from torch import Tensor

import mtobal
from mtobal import UsageError
from mtobal.strategies import build


@pytest.fixture
def jacobian() -> Tensor:
    return torch.randn(5, 9, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def test_without_a_radius_it_is_the_mean_gradient(jacobian: Tensor) -> None:
    torch.testing.assert_close(mtobal.aggregate(jacobian, "cagrad(c=0)"), jacobian.mean(0))


@pytest.mark.parametrize("c", [0.1, 0.5, 0.9, 3.0])
def test_no_direction_in_the_ball_serves_the_worst_task_better(jacobian: Tensor, c: float) -> None:
    mean = jacobian.mean(0)
    best = mtobal.aggregate(jacobian, f"cagrad(c={c}, rescale=0)")
    radius = c * mean.norm()
    torch.testing.assert_close((best - mean).norm(), radius)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        other = best - mean + 0.05 * radius * torch.randn(9, generator=generator, dtype=torch.float64)
        other *= radius / other.norm()
        assert (jacobian @ (mean + other)).min() <= (jacobian @ best).min() + 1e-12


@pytest.mark.parametrize("c", [1.0, 2.0])
def test_from_a_radius_of_one_on_no_task_gets_worse(jacobian: Tensor, c: float) -> None:
    assert (jacobian @ mtobal.aggregate(jacobian, f"cagrad(c={c})")).min() >= -1e-12


@pytest.mark.parametrize(("rescale", "divisor"), [(0, 1.0), (1, 1.25), (2, 1.5)])
def test_rescaling_and_the_factor_of_the_official_code(jacobian: Tensor, rescale: int, divisor: float) -> None:
    plain = mtobal.aggregate(jacobian, "cagrad(rescale=0)")
    torch.testing.assert_close(mtobal.aggregate(jacobian, f"cagrad(rescale={rescale})") * divisor, plain)
    summed = mtobal.aggregate(jacobian, f"cagrad(rescale={rescale}, scale=sum)")
    torch.testing.assert_close(summed * divisor, 5 * plain)


@pytest.mark.parametrize("c", ["-0.5", "inf"])
def test_the_radius_is_checked(c: str) -> None:
    with pytest.raises(UsageError, match="c must be finite and not negative"):
        build(f"cagrad(c={c})")
