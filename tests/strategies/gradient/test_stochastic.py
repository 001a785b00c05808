"""MoCo, MoDo and SDMGrad: weights that move to the min-norm point over the steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import mtobal
from mtobal import UsageError
from mtobal.ops import Jacobian
from mtobal.strategies import Step, build
from mtobal.strategies.gradient import MoCo
from mtobal.strategies.gradient.modo import modo_weights
from mtobal.strategies.gradient.sdmgrad import directed_weights, sdmgrad_weights

MOVES = ["moco", "moco(form=softmax)", "modo", "sdmgrad"]


@pytest.fixture
def rows() -> Tensor:
    """Three gradients of which the min-norm point takes two."""
    return torch.tensor([[2.0, 0.0, 1.0], [-1.0, 0.5, 0.0], [5.0, 5.0, 5.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    "spec",
    [
        "moco(beta_sigma=0, gamma_sigma=0)",
        "modo(gamma=0.05, rho=0)",
        "sdmgrad(lamda=0, lr=0.2)",
    ],
)
def test_on_one_batch_they_find_the_min_norm_point(spec: str, rows: Tensor) -> None:
    strategy = build(spec)
    for _ in range(500):
        found = mtobal.aggregate(rows, strategy, [1.0, 1.0, 1.0])
    torch.testing.assert_close(found, mtobal.aggregate(rows, "mgda"), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("spec", MOVES)
def test_weights_stay_on_the_simplex(spec: str, rows: Tensor) -> None:
    strategy = build(spec)
    for number in range(20):
        mtobal.aggregate(10.0**number * rows.roll(number, dims=0), strategy, [1.0, 2.0, 3.0])
        weights = strategy.aggregation.task_weights
        assert (weights >= 0).all()
        assert weights.sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize("spec", MOVES)
def test_a_task_that_sits_out_keeps_its_weight(spec: str) -> None:
    strategy = build(spec).aggregation
    tasks = ("a", "b", "c")

    def take_step(active: tuple[int, ...], gradients: Tensor) -> Tensor:
        jacobian = Jacobian((gradients[list(active)],), ("w",))
        step = Step(tasks, active, torch.arange(1.0, len(active) + 1))
        if isinstance(strategy, MoCo):
            strategy.direct(jacobian, step)
        else:
            strategy.solve(jacobian.gramian(), step)
        strategy.update(step)
        return strategy.task_weights.clone()

    before = take_step((0, 1, 2), torch.diag(torch.tensor([1.0, 1.0, 1.5])))
    after = take_step((0, 2), torch.diag(torch.tensor([1.5, 1.0, 1.0])))
    assert after[1] == before[1]
    assert after.sum().item() == pytest.approx(1.0)
    assert not torch.equal(after, before)


def test_moco_tracks_a_late_task_from_its_first_gradient(rows: Tensor) -> None:
    strategy = MoCo(beta=0.5, beta_sigma=0.0)
    tasks = ("a", "b", "c")
    for _ in range(3):
        strategy.direct(Jacobian((rows[:2],), ("w",)), Step(tasks, (0, 1)))
    strategy.direct(Jacobian((rows * 3,), ("w",)), Step(tasks, (0, 1, 2)))
    torch.testing.assert_close(strategy.tracked.blocks["w"], rows * torch.tensor([[2.0], [2.0], [3.0]]))


def test_moco_averages_the_noise_away(rows: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    strategy = build("moco(beta=0.5, beta_sigma=0.7, gamma=0.05, gamma_sigma=0)")
    for _ in range(1500):
        noise = torch.randn(rows.shape, generator=generator, dtype=torch.float64)
        found = mtobal.aggregate(rows + noise, strategy)
    expected = mtobal.aggregate(rows, "mgda")
    assert (found - expected).norm() < 0.15 * expected.norm()


def test_two_samples_see_through_the_noise_that_one_does_not(rows: Tensor) -> None:
    """What the pure functions are for: the mean of the cross-Gramians has no bias."""
    generator = torch.Generator().manual_seed(0)
    noisy = [torch.randn(4000, *rows.shape, generator=generator).double() for _ in range(2)]
    cross = torch.stack([(rows + a) @ (rows + b).T for a, b in zip(*noisy, strict=True)])
    weights = {"two": torch.full((3,), 1 / 3).double(), "one": torch.full((3,), 1 / 3).double()}
    single = rows @ rows.T + 3 * torch.eye(3).double()  # the mean Gramian of one sample
    for gramian in cross:
        weights["two"] = modo_weights(weights["two"], gramian, gamma=0.003)
        weights["one"] = modo_weights(weights["one"], single, gamma=0.003)
    exact = mtobal.weights(rows @ rows.T, "mgda")
    assert (weights["two"] - exact).norm() < 0.5 * (weights["one"] - exact).norm()


def test_sdmgrad_pulls_to_the_mean(rows: Tensor) -> None:
    start = torch.full((3,), 1 / 3, dtype=torch.float64)
    weights = sdmgrad_weights(start, rows @ rows.T, lamda=100.0, lr=0.01)
    direction = directed_weights(weights, lamda=100.0) @ rows
    torch.testing.assert_close(direction, rows.mean(0), rtol=0.02, atol=0)
    assert torch.equal(sdmgrad_weights(start, torch.zeros(3, 3).double()), start)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("moco(beta=0)", "beta must be positive"),
        ("moco(gamma=0)", "gamma must be positive"),
        ("moco(rho=-1)", "must not be negative"),
        ("modo(gamma=0)", "gamma must be positive"),
        ("modo(rho=-1)", "rho must not be negative"),
        ("sdmgrad(lamda=-1)", "lamda must not be negative"),
        ("sdmgrad(momentum=1)", "momentum in"),
        ("sdmgrad(iterations=0)", "iterations must be at least 1"),
    ],
)
def test_options_are_checked(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(spec)
