from __future__ import annotations

import pytest
import torch
from torch import Tensor

import mtobal
from mtobal import Balancer, UsageError
from mtobal.strategies import build
from networks import TASKS, SharedNet, batch, losses


@pytest.fixture
def rows() -> Tensor:
    return torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_without_average_all_log_gradients_have_the_length_of_the_longest(rows: Tensor) -> None:
    values = torch.tensor([2.0, 0.1, 30.0], dtype=torch.float64)
    found = mtobal.aggregate(rows, "db_mtl(beta=0)", values)
    norms = rows.norm(dim=1)
    expected = (norms / values).max() * (rows / norms[:, None]).sum(0)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_a_factor_on_a_loss_changes_nothing(rows: Tensor) -> None:
    values = torch.tensor([2.0, 0.1, 30.0], dtype=torch.float64)
    factors = torch.tensor([5.0, 0.2, 1.0], dtype=torch.float64)
    plain = mtobal.aggregate(rows, "db_mtl", values)
    scaled = mtobal.aggregate(factors[:, None] * rows, "db_mtl", factors * values)
    torch.testing.assert_close(plain, scaled, rtol=1e-6, atol=0)


def test_the_average_forgets_the_past(rows: Tensor) -> None:
    strategy = build("db_mtl(beta=0.5)")
    ones = torch.ones(3, dtype=torch.float64)
    mtobal.aggregate(-100 * rows, strategy, ones)
    for _ in range(60):
        found = mtobal.aggregate(rows, strategy, ones)
    torch.testing.assert_close(found, mtobal.aggregate(rows, "db_mtl(beta=0)", ones), rtol=1e-6, atol=0)


def test_a_falling_share_forgets_less_and_less(rows: Tensor) -> None:
    strategy = build("db_mtl(beta=0.5, beta_sigma=1)")
    ones = torch.ones(3, dtype=torch.float64)
    mtobal.aggregate(0 * rows, strategy, ones)
    mtobal.aggregate(rows, strategy, ones)
    averages = strategy.aggregation.averages.blocks["jacobian"]
    torch.testing.assert_close(averages, 0.75 * rows)


def test_heads_follow_the_logarithm_of_their_loss() -> None:
    net, data = SharedNet(), batch()
    values = losses(net, data)
    balancer = Balancer("db_mtl", net)
    balancer(values).backward()
    for task in TASKS:
        assert balancer.head_weights[task] == pytest.approx(1 / (values[task].item() + 1e-8))
    raw = Balancer("db_mtl(heads=raw)", SharedNet())
    raw(losses(raw.model, data)).backward()
    assert set(raw.head_weights.values()) == {1.0}


def test_options_and_losses_are_checked(rows: Tensor) -> None:
    with pytest.raises(UsageError, match="beta must lie between 0 and 1"):
        build("db_mtl(beta=1)")
    with pytest.raises(UsageError, match="beta_sigma must not be negative"):
        build("db_mtl(beta_sigma=-1)")
    with pytest.raises(UsageError, match="db_mtl needs losses that are not negative"):
        mtobal.aggregate(rows, "db_mtl", [1.0, -1.0, 1.0])
    with pytest.raises(UsageError, match="db_mtl reads the losses"):
        mtobal.aggregate(rows, "db_mtl")
