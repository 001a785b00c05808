from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

import mtobal
from mtobal import Balancer, UsageError
from mtobal.strategies import Step, build
from networks import TASKS, SharedNet, batch, losses, rows_alone


def jacobian(seed: int, tasks: int = 3) -> Tensor:
    return torch.randn(tasks, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("max_norm", "norm"), [(1.0, 1.0), (0.25, 0.25), (0, 5.0**0.5), (100.0, 5.0**0.5)])
def test_the_direction_has_the_root_of_the_number_of_tasks_as_norm_or_is_clipped(
    max_norm: float, norm: float
) -> None:
    direction = mtobal.aggregate(jacobian(0, tasks=5), f"nash_mtl(max_norm={max_norm})")
    assert direction.norm().item() == pytest.approx(norm, rel=1e-12)


def test_heads_get_the_weights_before_clipping() -> None:
    net, data = SharedNet(), batch()
    balancer = Balancer("uw+nash_mtl(max_norm=0.5)", net)
    balancer(losses(net, data)).backward()
    shared = torch.cat([p.grad.flatten() for p in net.encoder.parameters()])
    assert shared.norm().item() == pytest.approx(0.5, rel=1e-12)
    ratios = {task: balancer.head_weights[task] / balancer.weights[task] for task in TASKS}
    assert ratios == pytest.approx(dict.fromkeys(TASKS, 3**0.5 / 0.5))
    rows = rows_alone(net, data)
    for task in TASKS:
        name = f"heads.{task}.weight"
        torch.testing.assert_close(net.get_parameter(name).grad, balancer.head_weights[task] * rows[task][name])


def test_raw_heads_keep_their_own_gradient() -> None:
    net = SharedNet()
    balancer = Balancer("nash_mtl(heads=raw)", net)
    balancer(losses(net, batch())).backward()
    assert balancer.head_weights == dict.fromkeys(TASKS, 1.0)


def weights(strategy: mtobal.strategies.Composition, rows: Tensor, active: tuple[int, ...] = (0, 1, 2)) -> Tensor:
    step = Step(TASKS, active)
    ones = torch.ones(len(active), dtype=torch.float64)
    found = strategy.aggregation_weights(rows @ rows.T, step, ones)
    strategy.update(step)
    return found


def test_weights_are_reused_between_updates_and_clipped_for_each_step() -> None:
    strategy = build("nash_mtl(update_weights_every=3)")
    directions = [weights(strategy, jacobian(seed)) for seed in range(4)]
    solved = [mtobal.weights(jacobian(seed) @ jacobian(seed).T, "nash_mtl(max_norm=0)") for seed in (0, 3)]
    for found, expected in zip(directions, [solved[0]] * 3 + [solved[1]], strict=True):
        torch.testing.assert_close(found / found.norm(), expected / expected.norm())
    for seed, found in enumerate(directions):
        assert (found @ jacobian(seed)).norm() <= 1.0 + 1e-12


def test_a_task_that_sat_out_the_last_update_is_a_reason_to_solve() -> None:
    strategy = build("nash_mtl(update_weights_every=10)")
    weights(strategy, jacobian(0, tasks=2), active=(0, 2))
    alone = weights(strategy, jacobian(1, tasks=1), active=(2,))
    assert alone.shape == (1,)
    found = weights(strategy, jacobian(2))
    expected = mtobal.weights(jacobian(2) @ jacobian(2).T, "nash_mtl")
    torch.testing.assert_close(found, expected)


def test_reused_weights_survive_a_checkpoint() -> None:
    strategy = build("nash_mtl(update_weights_every=4)")
    for seed in range(2):
        weights(strategy, jacobian(seed))
    resumed = build("nash_mtl(update_weights_every=4)")
    resumed.load_state_dict(copy.deepcopy(strategy.state_dict()))
    for seed in range(2, 7):
        assert torch.equal(weights(strategy, jacobian(seed)), weights(resumed, jacobian(seed)))


def test_state_of_another_number_of_tasks_is_refused() -> None:
    strategy = build("nash_mtl(update_weights_every=2)")
    weights(strategy, jacobian(0))
    with pytest.raises(UsageError, match="nash_mtl holds 3 tasks, but this step has 4"):
        mtobal.weights(torch.eye(4), strategy)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nash_mtl(max_norm=-1)", "max_norm must not be negative, not -1"),
        ("nash_mtl(update_weights_every=0)", "update_weights_every must be at least 1, not 0"),
        ("nash_mtl(scale=sum)", "scale of its own"),
    ],
)
def test_options_are_checked(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(spec)
