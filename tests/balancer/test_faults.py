"""Losses and gradients that are not finite, and what the policies make of them."""

from __future__ import annotations

import warnings

import pytest
import torch

from mtobal import Balancer, UsageError
from mtobal.errors import NotFiniteError
from mtobal.solvers import SolverError
from mtobal.strategies import Aggregation, Card, Direction, JacobianAggregation
from networks import TASKS, SharedNet, batch, frozen, losses, rows_alone

SPECS = ["uw", "uw+pcgrad", "rlw", "mgda", "graddrop", "nash_mtl"]


def with_bad_loss(net, data, bad: float = float("nan"), task: str = "depth"):
    values = losses(net, data)
    return {**values, task: values[task] * bad}


def with_bad_gradient(net, data):
    """A finite loss whose gradient is NaN: the derivative of a root at zero, times zero."""
    values = losses(net, data)
    weight = net.encoder[0].weight
    return {**values, "depth": values["depth"] + (weight - weight).sqrt().sum()}


def gradients(net) -> dict[str, torch.Tensor | None]:
    return {name: None if p.grad is None else p.grad.clone() for name, p in net.named_parameters()}


def steps_of(spec: str) -> list:
    """Only a strategy that takes gradients apart can see which of them is broken."""
    return [with_bad_loss] if spec in ("uw", "rlw") else [with_bad_loss, with_bad_gradient]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("spec", SPECS)
def test_a_skipped_step_leaves_no_trace(spec: str, bad: float) -> None:
    net, data = SharedNet(), batch()
    balancer = Balancer(spec, net)
    balancer(losses(net, data)).backward()
    net.zero_grad()
    before = frozen(balancer.strategy.state_dict())
    makes = [
        lambda: with_bad_loss(net, data, bad),
        *(lambda make=make: make(net, data) for make in steps_of(spec)[1:]),
    ]
    for make in makes:
        with pytest.warns(RuntimeWarning, match=r"of task 'depth' is not finite: this step is skipped"):
            balancer(make()).backward()
        assert balancer.skipped
        assert balancer.weights == {}
        assert all(gradient is None for gradient in gradients(net).values())
        assert frozen(balancer.strategy.state_dict()) == before
    assert balancer.guard.counts == {"depth": len(makes)}
    balancer(losses(net, data)).backward()
    assert not balancer.skipped
    assert all(gradient.isfinite().all() for gradient in gradients(net).values() if gradient is not None)


@pytest.mark.parametrize("spec", SPECS)
def test_a_dropped_task_sits_the_step_out(spec: str) -> None:
    """The others go on as if the batch had no label of it."""
    data = batch()
    for make in steps_of(spec):
        net, other = SharedNet(), SharedNet()
        balancer, expected = (
            Balancer(spec, net, nonfinite="drop_task", tasks=TASKS),
            Balancer(spec, other, tasks=TASKS),
        )
        for balance, model in ((balancer, net), (expected, other)):
            balance(losses(model, data)).backward()  # all parameters are known then
            model.zero_grad()
        with pytest.warns(RuntimeWarning, match="of task 'depth' is not finite: it sits this step out"):
            balancer(make(net, data)).backward()
        expected({**losses(other, data), "depth": None}).backward()
        assert not balancer.skipped
        assert balancer.weights.keys() == expected.weights.keys()
        for name, gradient in gradients(net).items():
            if name.startswith("heads.depth"):
                assert gradient is None or not gradient.any()
            elif gradient is not None:
                torch.testing.assert_close(gradient, other.get_parameter(name).grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("spec", SPECS)
def test_with_raise_training_stops_at_once(spec: str) -> None:
    data = batch()
    for make in steps_of(spec):
        net = SharedNet()
        balancer = Balancer(spec, net, nonfinite="raise")
        with pytest.raises(NotFiniteError, match=r"of task 'depth' is not finite\.$"):
            balancer(make(net, data)).backward()
        assert all(gradient is None for gradient in gradients(net).values())


@pytest.mark.parametrize("policy", ["skip", "drop_task"])
def test_patience_ends(policy: str) -> None:
    net, data = SharedNet(), batch()
    balancer = Balancer("pcgrad", net, nonfinite=policy, patience=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for _ in range(2):
            balancer(with_bad_loss(net, data)).backward()
        balancer(losses(net, data)).backward()  # the count starts again
        for _ in range(2):
            balancer(with_bad_loss(net, data)).backward()
        resumed = Balancer("pcgrad", net, nonfinite=policy, patience=3)
        resumed.load_state_dict(balancer.state_dict())
        for one in (balancer, resumed):
            with pytest.raises(NotFiniteError, match="the 3rd such step in a row: training has diverged"):
                one(with_bad_loss(net, data))
    assert balancer.guard.counts == {"depth": 5}


def test_every_loss_is_bad() -> None:
    net, data = SharedNet(), batch()
    for policy in ("skip", "drop_task"):
        balancer = Balancer("mgda", net, nonfinite=policy)
        with pytest.warns(RuntimeWarning, match="'seg', 'depth', 'normal'"):
            balancer({task: loss * float("nan") for task, loss in losses(net, data).items()}).backward()
        assert balancer.skipped
        assert all(gradient is None for gradient in gradients(net).values())


def test_the_second_look_of_a_skipped_step_is_left_out() -> None:
    net, data = SharedNet(), batch()
    balancer, optimizer = Balancer("famo", net), torch.optim.Adam(net.parameters())
    balancer.step(lambda: losses(net, data), optimizer)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.warns(RuntimeWarning, match="this step is skipped"):
        balancer.step(lambda: with_bad_loss(net, data), optimizer)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    balancer.step(lambda: losses(net, data), optimizer)


def test_wrong_policies_are_refused() -> None:
    with pytest.raises(UsageError, match="expected one of skip, drop_task, raise, not 'ignore'"):
        Balancer("ew", nonfinite="ignore")
    with pytest.raises(UsageError, match="patience must be at least 1, not 0"):
        Balancer("ew", patience=0)


@pytest.mark.parametrize("spec", ["uw", "rlw", "uw+pcgrad", "graddrop", "rlw+pcgrad"])
def test_a_step_that_a_gradient_scaler_skips_changes_no_state(spec: str) -> None:
    """Losses and Gramian are finite here; only the gradient of a decoder overflows."""
    net, data = SharedNet(dtype=torch.float32), batch(dtype=torch.float32)
    balancer, optimizer = Balancer(spec, net), torch.optim.SGD(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)

    def step(factor: float) -> None:
        optimizer.zero_grad()
        values = losses(net, data)
        huge = net.heads["depth"].weight - net.heads["depth"].weight.detach()  # zero, with a gradient
        values["depth"] = values["depth"] + factor * huge.sum()
        scaler.scale(balancer(values)).backward()
        scaler.step(optimizer)
        scaler.update()

    step(0.0)
    state, weights = frozen(balancer.strategy.state_dict()), net.encoder[0].weight.detach().clone()
    step(3e38)
    assert scaler.get_scale() < 65536
    assert torch.equal(net.encoder[0].weight, weights)
    assert frozen(balancer.strategy.state_dict()) == state
    step(0.0)
    assert frozen(balancer.strategy.state_dict()) != state


class Unsolvable(Aggregation):
    """Fails in every second step."""

    card = Card(name="unsolvable", scale="mean", heads="weighted")

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))
        self.learned = 0

    def solve(self, gramian, step):
        self.steps += 1
        if self.steps % 2 == 0:
            raise SolverError("the iteration did not end.")
        return torch.full((len(gramian),), 0.25, dtype=torch.float64)

    def update(self, step):
        self.learned += 1


class UnsolvableRows(Unsolvable, JacobianAggregation):
    """The same, from the gradients themselves."""

    def direct(self, jacobian, step):
        weights = self.solve(jacobian.gramian(), step)
        return Direction(jacobian.combine(weights), weights)


@pytest.mark.parametrize("make", [Unsolvable, UnsolvableRows])
def test_a_failed_solve_is_counted_and_answered_with_equal_weights(make) -> None:
    net, data = SharedNet(), batch()
    strategy = make()
    balancer = Balancer(strategy, net)
    balancer(losses(net, data)).backward()
    assert balancer.weights == dict.fromkeys(TASKS, 0.25)
    net.zero_grad()
    with pytest.warns(RuntimeWarning, match=r"unsolvable: the iteration did not end. Equal weights for this step"):
        balancer(losses(net, data)).backward()
    assert balancer.failed_solves == 1
    assert not balancer.skipped
    assert balancer.weights == pytest.approx(dict.fromkeys(TASKS, 1 / 3))
    assert balancer.head_weights == dict.fromkeys(TASKS, 1.0)
    assert strategy.learned == 1
    rows = rows_alone(net, data)
    expected = sum(rows[task]["encoder.0.weight"] for task in TASKS) / 3
    torch.testing.assert_close(net.encoder[0].weight.grad, expected)
    resumed = Balancer(make(), net)
    resumed.load_state_dict(balancer.state_dict())
    assert resumed.failed_solves == 1
