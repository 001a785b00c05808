from __future__ import annotations

import pytest
import torch

import mtobal
from mtobal import UsageError
from mtobal.strategies import Step, build
from mtobal.strategies.gradient.gradient_influence import influences


def test_influence_is_the_product_with_the_sum_of_the_cut_gradients() -> None:
    jacobian = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cut = jacobian / jacobian.norm(dim=1, keepdim=True).clamp(min=1)
    torch.testing.assert_close(influences(jacobian @ jacobian.T), cut @ cut.sum(0))
    zero = torch.zeros(2, 2, dtype=torch.float64)
    assert influences(zero).tolist() == [0.0, 0.0]


def test_weight_moves_to_those_that_agree() -> None:
    strategy = build("gradient_influence(rate=1.0)")
    jacobian = torch.tensor([[1.0, 0.1], [1.0, -0.1], [-0.5, 0.0]], dtype=torch.float64)
    sums = []
    for _ in range(5):
        step = Step.of(3)
        weights = strategy.aggregation_weights(jacobian @ jacobian.T, step, torch.ones(3))
        sums.append(weights.sum().item())
    assert sums == pytest.approx([1.0] * 5)
    assert weights[0] == pytest.approx(weights[1].item())
    assert weights[2] < 0.01


def test_a_task_that_sits_out_keeps_its_weight() -> None:
    strategy = build("gradient_influence(initial=[0.2, 0.5, 0.3])")
    gramian = torch.tensor([[1.0, 0.2], [0.2, 0.5]], dtype=torch.float64)
    weights = strategy.aggregation_weights(gramian, Step(("0", "1", "2"), (0, 2)), torch.ones(2))
    assert weights.sum().item() == pytest.approx(0.5)
    assert strategy.aggregation.log_weights[1].exp().item() == pytest.approx(0.5)


def test_wrong_use() -> None:
    with pytest.raises(UsageError, match="initial must be"):
        build("gradient_influence(initial=[0, 1])")
    with pytest.raises(UsageError, match="max_norm positive"):
        mtobal.weights(torch.eye(2), "gradient_influence(max_norm=0)")
