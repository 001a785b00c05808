from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtobal import UsageError
from mtobal.ops import Jacobian
from mtobal.strategies import Step, build
from mtobal.strategies.gradient import GradVac
from mtobal.strategies.gradient.gradvac import gradvac_weights
from mtobal.strategies.gradient.pcgrad import pcgrad_weights

NAMES = ("conv.weight", "conv.bias", "norm.weight")
PAIR = torch.tensor([[1], [0]])


def random_rows(tasks: int, columns: int = 9, seed: int = 0) -> Tensor:
    return torch.randn(tasks, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(left: Tensor, right: Tensor) -> Tensor:
    return left @ right / left.norm() / right.norm()


def random_orders(tasks: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    others = [[other for other in range(tasks) if other != task] for task in range(tasks)]
    return torch.stack([torch.tensor(row)[torch.randperm(tasks - 1, generator=generator)] for row in others])


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), target=st.floats(-0.99, 0.99))
def test_a_corrected_gradient_meets_its_target(seed: int, target: float) -> None:
    rows = random_rows(2, 5, seed)
    weights, _ = gradvac_weights(rows @ rows.T, torch.full((2, 2), target, dtype=torch.float64), PAIR)
    # Of two tasks, the weight of one beyond its own 1 is the share of it in the gradient of the other.
    first, second = rows[0] + (weights[1] - 1) * rows[1], rows[1] + (weights[0] - 1) * rows[0]
    for corrected, other in ((first, rows[1]), (second, rows[0])):
        assert cosine(corrected, other) >= target - 1e-9
        if cosine(*rows) < target:
            assert cosine(corrected, other).item() == pytest.approx(target, abs=1e-9)
        else:
            assert torch.equal(weights, torch.ones(2, dtype=torch.float64))


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), tasks=st.integers(2, 8))
def test_targets_of_zero_are_pcgrad(seed: int, tasks: int) -> None:
    rows = random_rows(tasks, 6, seed)
    orders = random_orders(tasks, seed)
    weights, _ = gradvac_weights(rows @ rows.T, torch.zeros(tasks, tasks).double(), orders)
    torch.testing.assert_close(weights, pcgrad_weights(rows @ rows.T, orders), rtol=1e-9, atol=1e-12)


def test_targets_follow_the_cosine_before_the_correction() -> None:
    rows = torch.tensor([[1.0, 0.0], [-3.0, 4.0]], dtype=torch.float64)
    _, targets = gradvac_weights(rows @ rows.T, torch.full((2, 2), 0.5, dtype=torch.float64), PAIR, beta=0.1)
    torch.testing.assert_close(targets[0, 1].item(), 0.9 * 0.5 + 0.1 * -0.6)
    torch.testing.assert_close(targets[1, 0], targets[0, 1])


@pytest.mark.parametrize("target", [-1.0, -0.5, 0.0, 0.5, 1.0])
def test_rows_without_an_angle(target: float) -> None:
    """Opposite rows cancel whatever the target; a zero row meets nobody and keeps its targets."""
    rows = torch.tensor([[3.0, 0.0], [-1.0, 0.0], [0.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    targets = torch.full((4, 4), target, dtype=torch.float64)
    for seed in range(10):
        weights, moved = gradvac_weights(rows @ rows.T, targets, random_orders(4, seed))
        assert torch.isfinite(weights).all()
        assert torch.equal(moved[2], targets[2])
        assert torch.equal(moved[:, 2], targets[:, 2])
    weights, _ = gradvac_weights(rows[:2] @ rows[:2].T, targets[:2, :2], PAIR)
    if target > -1:
        torch.testing.assert_close(weights @ rows[:2], torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)


def test_a_gradient_that_was_cancelled_meets_nobody_any_more() -> None:
    """The first two cancel each other; what rounding leaves of them is not drawn to the third."""
    rows = torch.tensor([[1.0, 0.0], [-3.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    targets = torch.tensor([[0.0, 0.0, 0.5], [0.0, 0.0, 0.5], [0.0, 0.0, 0.0]], dtype=torch.float64)
    weights, moved = gradvac_weights(rows @ rows.T, targets, torch.tensor([[1, 2], [0, 2], [0, 1]]))
    torch.testing.assert_close(weights @ rows, rows[2], rtol=0, atol=1e-12)
    assert moved[0, 2] == moved[1, 2] == 0.5


def test_orthogonal_gradients_after_parallel_ones_stay_finite() -> None:
    strategy = GradVac(seed=1)
    for _ in range(60):
        parallel = torch.ones(4, 4, dtype=torch.float64)
        strategy.solve(parallel, Step.of(4))
        strategy.update(Step.of(4))
    assert strategy.targets[""].max() == 1.0
    assert torch.isfinite(strategy.solve(torch.eye(4, dtype=torch.float64), Step.of(4))).all()


@pytest.mark.parametrize(
    ("granularity", "groups"), [("whole", [(0, 1, 2)]), ("layer", [(0, 1), (2,)]), ("matrix", [(0,), (1,), (2,)])]
)
def test_each_group_is_a_problem_of_its_own(granularity: str, groups: list[tuple[int, ...]]) -> None:
    strategy = GradVac(granularity=granularity, seed=3)
    alone = [GradVac(seed=3) for _ in groups]
    for number in range(4):
        blocks = random_rows(3, 9, number).split([4, 3, 2], dim=1)
        found = strategy.direct(Jacobian(blocks, NAMES), Step.of(3))
        strategy.update(Step.of(3))
        for group, single in zip(groups, alone, strict=True):
            part = Jacobian(tuple(blocks[i] for i in group), tuple(NAMES[i] for i in group))
            expected = single.direct(part, Step.of(3))
            single.update(Step.of(3))
            for index, block in zip(group, expected.blocks, strict=True):
                torch.testing.assert_close(found.blocks[index], block)
    assert (found.weights is None) == (granularity != "whole")


def test_a_task_that_sits_out_keeps_its_targets() -> None:
    strategy = GradVac()
    rows = random_rows(3)
    strategy.solve(rows @ rows.T, Step.of(3))
    strategy.update(Step.of(3))
    before = strategy.targets[""].clone()
    step = Step(Step.of(3).tasks, (0, 2))
    strategy.solve(rows[[1, 2]] @ rows[[1, 2]].T, step)
    strategy.update(step)
    changed = strategy.targets[""] != before
    pairs = set(itertools.permutations((0, 2), 2))
    assert {tuple(index) for index in changed.nonzero().tolist()} == pairs


@pytest.mark.parametrize("granularity", ["layer", "matrix"])
def test_state_of_groups_continues_bit_for_bit(granularity: str, tmp_path) -> None:
    def run(strategy: GradVac, numbers: range) -> list[Tensor]:
        found = []
        for number in numbers:
            blocks = random_rows(3, 9, number).split([4, 3, 2], dim=1)
            found += strategy.direct(Jacobian(blocks, NAMES), Step.of(3)).blocks
            strategy.update(Step.of(3))
        return found

    original = GradVac(granularity=granularity)
    run(original, range(3))
    torch.save(original.state_dict(), tmp_path / "state.pt")
    resumed = GradVac(granularity=granularity, seed=7)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert all(map(torch.equal, run(original, range(3, 6)), run(resumed, range(3, 6))))


def test_heads_get_the_weights_of_the_whole() -> None:
    strategy = build("gradvac(heads=weighted)")
    rows = random_rows(3)
    step, ones = Step.of(3), torch.ones(3, dtype=torch.float64)
    weights = strategy.aggregation_weights(rows @ rows.T, step, ones)
    assert not torch.equal(weights, ones)
    assert torch.equal(strategy.head_weights(weights, step, ones), weights)
    with pytest.raises(UsageError, match="no task weights that the heads could get"):
        build("gradvac(heads=weighted, granularity=layer)")


def test_options_are_checked() -> None:
    with pytest.raises(UsageError, match="beta must lie between 0 and 1, not 2"):
        build("gradvac(beta=2)")
    with pytest.raises(UsageError, match="one of 'whole', 'layer', 'matrix'"):
        build("gradvac(granularity=module)")
