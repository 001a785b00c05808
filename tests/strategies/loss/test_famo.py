from __future__ import annotations

from functools import partial

import pytest
import torch

import mtobal
from mtobal import Balancer, UsageError
from mtobal.strategies import Step, build
from networks import SharedNet, batch, losses


def test_it_starts_as_scale_invariant_weights_of_sum_one() -> None:
    values = torch.tensor([2.0, 0.5, 8.0], dtype=torch.float64)
    step = Step.of(3, values)
    expected = build("si").loss_weights(step)
    torch.testing.assert_close(build("famo").loss_weights(step), expected / expected.sum())


def test_a_task_that_improves_more_loses_weight() -> None:
    strategy = build("famo(gamma=0)")
    step = Step.of(3, torch.tensor([1.0, 1.0, 1.0]))
    for _ in range(30):
        strategy.loss_weights(step)
        strategy.update(step)
        strategy.look_again(Step.of(3, torch.tensor([0.5, 1.0, 1.2])))
    weights = strategy.loss_weights(step)
    assert weights[0] < 1 / 3 < weights[2]


def test_two_batches_without_a_second_look_are_refused() -> None:
    net, data = SharedNet(), batch()
    balancer = Balancer("famo", net)
    balancer(losses(net, data)).backward()
    with pytest.raises(UsageError, match=r"never came: train with balancer.step\(closure, optimizer\)"):
        balancer(losses(net, data))
    with pytest.raises(UsageError, match="never came"):  # and it goes on to say so
        balancer(losses(net, data))


def test_a_loss_that_was_not_used_needs_no_second_look() -> None:
    """Only the backward pass is a step: a batch may be given up between the two."""
    net, data = SharedNet(), batch()
    balancer = Balancer("famo", net)
    balancer(losses(net, data))
    balancer(losses(net, data)).backward()


def test_a_second_look_comes_once() -> None:
    strategy = build("famo")
    step = Step.of(2, torch.ones(2))
    with pytest.raises(UsageError, match="comes after its backward pass, and once"):
        strategy.look_again(step)
    strategy.loss_weights(step)
    strategy.update(step)
    strategy.look_again(step)
    with pytest.raises(UsageError, match="comes after its backward pass, and once"):
        strategy.look_again(step)


def test_a_checkpoint_from_between_the_looks_can_be_continued() -> None:
    net, data = SharedNet(), batch()
    balancer = Balancer("famo", net)
    balancer.step(partial(losses, net, data), torch.optim.SGD(net.parameters(), lr=0.1))
    balancer(losses(net, data)).backward()
    balancer.load_state_dict(balancer.state_dict())
    balancer(losses(net, data)).backward()


def test_a_loss_below_its_bound_is_refused_in_either_look() -> None:
    strategy = build("famo(min_losses=[0.5, -2])")
    strategy.loss_weights(Step.of(2, torch.tensor([0.6, -1.5])))
    with pytest.raises(UsageError, match=r"famo needs a lower bound of each loss.* '0' \(0.25 < 0.5\)"):
        strategy.loss_weights(Step.of(2, torch.tensor([0.25, -1.5])))
    strategy.update(Step.of(2, torch.tensor([0.6, -1.5])))
    with pytest.raises(UsageError, match=r"'1' \(-3 < -2\)"):
        strategy.look_again(Step.of(2, torch.tensor([0.6, -3.0])))
    with pytest.raises(UsageError, match="give bounds that no loss can pass"):
        mtobal.aggregate(torch.ones(2, 3), "famo", losses=[1.0, -1.0])
