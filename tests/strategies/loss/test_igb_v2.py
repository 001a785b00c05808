from __future__ import annotations

import copy
from functools import partial

import pytest
import torch

from mtobal import Balancer
from mtobal.strategies import Step, build
from mtobal.strategies.loss import igb_v2
from networks import SharedNet, batch, losses

TASKS = ("seg", "depth", "normal")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(igb_v2, "TRAIN_EVERY", 4)
    monkeypatch.setattr(igb_v2, "BATCH_SIZE", 16)
    monkeypatch.setattr(igb_v2, "MEMORY", 40)


def run(strategy, steps: int, epoch: int = 6, seed: int = 0, fewer: bool = False) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(steps):
        values = torch.rand(3, generator=generator) + 0.5
        active = (0, 2) if fewer and number % 3 == 1 else (0, 1, 2)
        step = Step(TASKS, active, values[list(active)])
        found.append(strategy.loss_weights(step) * step.losses)
        strategy.update(step)
        if number % epoch == epoch - 1:
            strategy.end_epoch()
    return found


@pytest.mark.parametrize("fewer", [False, True])
def test_weights_are_positive_shares_of_the_logarithms(fewer: bool) -> None:
    strategy = build("igb_v2")
    for weights in run(strategy, 60, fewer=fewer):
        assert (weights > 0).all()
        assert weights.sum() == pytest.approx(len(weights), rel=1e-5)
    assert strategy.loss_weighting.agent is not None
    assert strategy.loss_weighting.memory.isfinite().all()


def test_a_transition_holds_what_the_agent_saw_did_and_got() -> None:
    strategy = build("igb_v2(random_epochs=0)")
    base = torch.tensor([1.0, 2.0, 4.0])
    for _ in range(2):
        step = Step(TASKS, (0, 1, 2), base)
        strategy.loss_weights(step)
        strategy.update(step)
        strategy.end_epoch()
    before, after = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.5, 1.5, 3.0])
    weights = []
    for values in (before, after):
        step = Step(TASKS, (0, 1, 2), values)
        weights.append(strategy.loss_weights(step) * values)
        strategy.update(step)
    state, action, following, reward = strategy.loss_weighting.memory[1].split([3, 3, 3, 1])
    order = [1, 2, 0]  # by name
    torch.testing.assert_close(state, before[order])
    torch.testing.assert_close(action, weights[0][order])
    torch.testing.assert_close(following, after[order])
    assert reward.item() == 0.25  # the least of 0.5, 0.25 and 0.25


def test_the_agent_learns_to_choose_what_is_rewarded() -> None:
    """One state, rewards equal to the first weight: in time the first task gets nearly all of it."""
    generator = torch.Generator().manual_seed(0)
    agent = igb_v2.SoftActorCritic(3, generator)
    optimizer = torch.optim.Adam([p for p in agent.parameters() if p.requires_grad], lr=1e-2)
    state = torch.ones(64, 3)
    first = agent.act(state, generator)[1][:, 0].mean().item()
    for _ in range(80):
        with torch.no_grad():
            actions = agent.act(state, generator)[1]
        agent.train_once(torch.cat([state, actions, state, 10 * actions[:, :1]], dim=1), optimizer, generator)
    assert first < 1.5
    assert agent.act(state, generator)[1][:, 0].mean() > 2.0


def test_a_trained_agent_continues_bit_for_bit() -> None:
    original, resumed = build("igb_v2"), build("igb_v2(seed=5)")
    run(original, 50)
    resumed.load_state_dict(copy.deepcopy(original.state_dict()))
    for one, other in zip(run(original, 30, seed=1), run(resumed, 30, seed=1), strict=True):
        assert torch.equal(one, other)


def test_it_trains_inside_of_a_backward_pass_and_draws_nothing_from_the_global_generator() -> None:
    net, data = SharedNet(), batch()
    balancer = Balancer("igb_v2(random_epochs=0)", net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
    state = torch.get_rng_state()
    for number in range(40):
        balancer.step(partial(losses, net, data), optimizer)
        if number % 5 == 4:
            balancer.end_epoch()
    assert balancer.strategy.loss_weighting.optimizer is not None
    assert torch.equal(state, torch.get_rng_state())
