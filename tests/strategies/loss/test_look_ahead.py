"""Strategies that look ahead, against derivatives that autograd takes through the virtual step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import cvxpy
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mtobal import Balancer, UsageError
from mtobal.errors import NotFiniteError
from mtobal.strategies import available, build
from mtobal.strategies.loss.forum import forum_constraint, forum_multipliers
from mtobal.strategies.loss.moml import moml_direction
from networks import TASKS, SharedNet, batch, frozen, losses
from processes import run_on_ranks

LOOKING = ["auto_lambda", "auto_lambda(form=softmax)", "moml", "forum"]
looking = pytest.mark.parametrize("spec", LOOKING)
DATA, OTHER = batch(0), batch(1)


def values_at(net: nn.Module, point: dict[str, Tensor], data: Any) -> list[Tensor]:
    """The losses as functions of the parameters, in a graph that can be differentiated again."""
    return list(losses(lambda inputs: torch.func.functional_call(net, point, (inputs,)), data).values())


def parameters(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()}


def flat(parts: Any) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


def slopes(values: list[Tensor], point: dict[str, Tensor], **options: Any) -> list[tuple[Tensor, ...]]:
    names = dict(allow_unused=True, materialize_grads=True, retain_graph=True, **options)
    return [torch.autograd.grad(value, list(point.values()), **names) for value in values]


def learned(weighting: Any) -> list[Tensor]:
    """Collect the gradients that a strategy learns from."""
    gradients: list[Tensor] = []
    learn = weighting.learn
    weighting.learn = lambda step, gradient: (gradients.append(gradient.clone()), learn(step, gradient))[1]
    return gradients


def closures(net: nn.Module) -> tuple[Callable[[], dict[str, Tensor]], Callable[[], dict[str, Tensor]]]:
    return partial(losses, net, DATA), partial(losses, net, OTHER)


# ------------------------------------------------------------------ auto_lambda


@pytest.mark.parametrize("form", ["raw", "softmax"])
@pytest.mark.parametrize("primary", [None, ["depth"], ["seg", "normal"]])
def test_auto_lambda_differentiates_through_the_virtual_step(form: str, primary: list[str] | None) -> None:
    net = SharedNet()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    balancer = Balancer({"auto_lambda": {"form": form, "primary": primary, "lr": 0.05}}, net)
    gradients = learned(balancer.strategy.loss_weighting)
    training, validation = closures(net)
    logits = torch.full((3,), 0.1, dtype=torch.float64)
    for _ in range(3):
        point = parameters(net)
        logits.requires_grad_()
        weights = logits if form == "raw" else logits.softmax(0)
        total = sum(weight * loss for weight, loss in zip(weights, values_at(net, point, DATA), strict=True))
        [found] = slopes([total], point, create_graph=True)
        reached = {}
        for (name, start), slope in zip(point.items(), found, strict=True):
            if form == "raw":
                state = optimizer.state.get(net.get_parameter(name), {})
                slope = slope + 0.01 * start + 0.9 * state.get("momentum_buffer", 0.0)
            reached[name] = start - 0.05 * slope
        after = dict(zip(TASKS, values_at(net, reached, OTHER), strict=True))
        [expected] = torch.autograd.grad(sum(after[task] for task in primary or TASKS), logits)
        balancer.step(training, optimizer, validation=validation)
        # Central differences are exact for quadratics only, as in the golden record.
        torch.testing.assert_close(gradients[-1], expected, rtol=1e-3, atol=1e-6)
        logits = balancer.strategy.loss_weighting.values.detach().clone()
        applied = logits if form == "raw" else logits.softmax(0)
        torch.testing.assert_close(torch.tensor(list(balancer.weights.values())).double(), applied)


def test_auto_lambda_takes_each_parameter_at_its_own_rate() -> None:
    """On quadratics, to rounding."""
    point = [nn.Parameter(torch.tensor(start, dtype=torch.float64)) for start in ([1.0, -2.0], [0.5])]
    optimizer = torch.optim.SGD([{"params": point[:1], "lr": 0.3}, {"params": point[1:], "lr": 0.01}])
    scales = torch.tensor([[1.0, 2.0, 0.5], [0.2, 1.0, 3.0]], dtype=torch.float64)

    def quadratics(centre: float, where: list[Tensor] = point) -> dict[str, Tensor]:
        return dict(zip("ab", (scales @ (torch.cat(list(where)) - centre).square()).unbind(), strict=True))

    weights = torch.full((2,), 0.1, dtype=torch.float64, requires_grad=True)
    start = [part.detach().clone().requires_grad_() for part in point]
    total = (weights * torch.stack(list(quadratics(0.0, start).values()))).sum()
    first, second = torch.autograd.grad(total, start, create_graph=True)
    after = quadratics(0.5, [start[0] - 0.3 * first, start[1] - 0.01 * second])
    [expected] = torch.autograd.grad(sum(after.values()), weights)
    balancer = Balancer("auto_lambda")
    gradients = learned(balancer.strategy.loss_weighting)
    balancer.step(partial(quadratics, 0.0), optimizer, validation=partial(quadratics, 0.5))
    torch.testing.assert_close(gradients[0], expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("form", ["raw", "softmax"])
def test_auto_lambda_has_a_gradient_of_zero_where_validation_is_stationary(form: str) -> None:
    point = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    balancer = Balancer(f"auto_lambda(form={form})")
    gradients = learned(balancer.strategy.loss_weighting)
    balancer.step(
        lambda: {"a": (point - 1).square().sum(), "b": (point + 2).square().sum()},
        torch.optim.SGD([point], lr=0.1),
        validation=lambda: {"a": 0 * point.sum() + 1.0, "b": 0 * point.sum() + 2.0},
    )
    assert torch.equal(gradients[0], torch.zeros(2, dtype=torch.float64))
    assert point.isfinite().all()


def test_auto_lambda_learns_which_task_helps() -> None:
    """A task with the same minimum as the primary one gains weight, one that pulls away loses it."""
    point = nn.Parameter(torch.tensor([3.0, -1.0], dtype=torch.float64))
    minima = {"primary": 0.0, "friend": 0.0, "foe": 8.0}

    def quadratics() -> dict[str, Tensor]:
        return {task: (point - minimum).square().sum() for task, minimum in minima.items()}

    balancer = Balancer("auto_lambda(primary=[primary], lr=0.01)")
    optimizer = torch.optim.SGD([point], lr=0.05)
    for _ in range(20):
        balancer.step(quadratics, optimizer)
    assert balancer.weights["friend"] > 0.1 > balancer.weights["foe"]


# ------------------------------------------------------------------ moml


def test_moml_differentiates_through_the_inner_step() -> None:
    net = SharedNet()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    balancer = Balancer("moml(inner_lr=0.3, lr=0.1)", net)
    gradients = learned(balancer.strategy.loss_weighting)
    training, validation = closures(net)
    logits = torch.zeros(3, dtype=torch.float64)
    for _ in range(3):
        point = parameters(net)
        logits.requires_grad_()
        weighted = logits.softmax(0) * torch.stack(values_at(net, point, DATA))
        [slope] = slopes([weighted.sum()], point, create_graph=True)
        reached = {name: start - 0.3 * part for (name, start), part in zip(point.items(), slope, strict=True)}
        after = values_at(net, reached, OTHER)
        rows = torch.stack([torch.autograd.grad(value, logits, retain_graph=True)[0] for value in after])
        balancer.step(training, optimizer, validation=validation)
        torch.testing.assert_close(gradients[-1], moml_direction(rows), rtol=1e-8, atol=1e-12)
        logits = balancer.strategy.loss_weighting.values.detach().clone()
        torch.testing.assert_close(torch.tensor(list(balancer.weights.values())).double(), logits.softmax(0))
    assert (gradients[0] @ rows.T).abs().max() > 0


def test_moml_direction_lowers_all_losses_or_is_zero() -> None:
    for seed in range(30):
        rows = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        direction = moml_direction(rows * 10.0 ** torch.tensor([[-4.0], [0.0], [4.0]]))
        assert (rows @ direction).min() >= direction @ direction * rows.norm(dim=1).min() - 1e-12
    opposed = torch.tensor([[1.0, -1.0], [-3.0, 3.0]], dtype=torch.float64)
    torch.testing.assert_close(moml_direction(opposed), torch.zeros(2).double(), rtol=0, atol=1e-15)
    standing = torch.tensor([[1.0, -1.0], [0.0, 0.0]], dtype=torch.float64)
    assert torch.equal(moml_direction(standing), torch.zeros(2).double())


# ------------------------------------------------------------------ forum


@pytest.mark.parametrize("seed", range(60))
def test_forum_multipliers_solve_their_programme(seed: int) -> None:
    generator = np.random.default_rng(seed)
    tasks = int(generator.integers(1, 12))
    size = max(tasks + int(generator.integers(-1, 5)), 1)
    rows, q = generator.normal(size=(tasks, size)), generator.normal(size=size)
    if seed % 3 == 0:  # as with one batch for both levels
        q = generator.dirichlet(np.ones(tasks)) @ rows
    if seed % 5 == 0:
        rows[-1] = rows[0]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    q *= 10.0 ** generator.uniform(-3, 1)
    length, rho = np.linalg.norm(q), float(generator.choice([0.0, 0.1, 0.5]))
    slope, square = rows @ q, float(q @ q)
    weights = forum_multipliers(rows @ rows.T, slope, square, rho)
    nu = forum_constraint(weights, slope, square, rho)
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1, rel=1e-12)
    # The constraint is met, and by no more than is needed.
    met = (weights @ rows + nu * q) @ q / (length * max(length, 1.0))
    assert met >= rho * square / (length * max(length, 1.0)) - 1e-12

    w, scaled = cvxpy.Variable(tasks, nonneg=True), cvxpy.Variable(nonneg=True)  # nu ||q||
    objective = cvxpy.sum_squares(rows.T @ w + scaled * q / length) - rho * length * scaled
    bound = [cvxpy.sum(w) == 1, scaled >= (rho * length - slope / length) @ w]
    problem = cvxpy.Problem(cvxpy.Minimize(objective), bound)
    problem.solve(solver=cvxpy.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
    found = np.square(weights @ rows + nu * q).sum() - rho * length * nu * length
    assert found == pytest.approx(problem.value, rel=1e-8, abs=1e-9)


def test_forum_multipliers_of_degenerate_rows() -> None:
    same, zero = np.ones((3, 3)), np.zeros((3, 3))
    for gramian in (same, zero, np.diag([0.0, 1.0, 1.0])):
        for square in (0.0, 1e-300, 1.0, 1e12):
            weights = forum_multipliers(gramian, np.zeros(3), square, 0.1)
            assert np.isfinite(weights).all()
            assert weights.sum() == pytest.approx(1)
    assert forum_constraint(np.array([1.0]), np.array([0.0]), 0.0, 0.1) == 0.0


@pytest.mark.parametrize("separate", [True, False])
def test_forum_writes_the_direction_of_its_paper(separate: bool) -> None:
    """Averaged by epoch, and for all parameters: those of the heads are optimised as well."""
    rho, rate, steps = 0.5, 0.1, 3
    net = SharedNet()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)  # all steps from one point
    spec = f"forum(rho={rho}, inner_lr={rate}, inner_steps={steps}, lr=0.1)"
    balancer = Balancer(spec, net)
    weighting = balancer.strategy.loss_weighting
    gradients = learned(weighting)
    training, _ = closures(net)
    logits, average = torch.zeros(3, dtype=torch.float64), np.zeros(3)
    for epoch in range(3):
        other = batch(epoch + 1) if separate else DATA
        point = parameters(net)
        logits.requires_grad_()
        here = logits.softmax(0) @ torch.stack(values_at(net, point, DATA))
        inner = point
        for _ in range(steps):
            [slope] = slopes([logits.detach().softmax(0) @ torch.stack(values_at(net, inner, DATA))], inner)
            inner = {
                name: (start - rate * part).detach().requires_grad_()
                for (name, start), part in zip(inner.items(), slope, strict=True)
            }
        there = logits.softmax(0) @ torch.stack(values_at(net, inner, DATA))
        [on_logits] = torch.autograd.grad(here - there, logits, retain_graph=True)
        [on_parameters] = slopes([here], point)
        q = torch.cat([on_logits, flat(on_parameters)])
        rows = torch.stack([flat(row) for row in slopes(values_at(net, point, other), point)])
        rows = torch.cat([torch.zeros(3, 3).double(), rows / rows.norm(dim=1, keepdim=True)], dim=1)
        slope = (rows @ q).numpy()
        solved = forum_multipliers((rows @ rows.T).numpy(), slope, float(q @ q), rho)
        average = average + (epoch + 1) ** -0.75 * (solved - average)
        nu = forum_constraint(average, slope, float(q @ q), rho)
        direction = torch.from_numpy(average) @ rows + nu * q

        validation = partial(losses, net, other) if separate else None
        balancer.step(training, optimizer, validation=validation)
        balancer.end_epoch()
        written = flat(torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters())
        torch.testing.assert_close(written, direction[3:], rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(gradients[-1], direction[:3], rtol=1e-8, atol=1e-10)
        assert net.spare.weight.grad is None
        torch.testing.assert_close(weighting.multipliers, torch.from_numpy(average), rtol=1e-8, atol=1e-10)
        logits = weighting.values.detach().clone()


def test_forum_stops_its_inner_steps_before_they_diverge() -> None:
    point = nn.Parameter(torch.tensor([0.5, 2.0], dtype=torch.float64))
    balancer = Balancer("forum(inner_lr=1e60, inner_steps=5)")
    balancer.step(
        lambda: {"a": point.pow(4).sum(), "b": (point - 1).pow(4).sum()}, torch.optim.SGD([point], lr=0.01)
    )
    assert not balancer.skipped
    assert point.isfinite().all()


# ------------------------------------------------------------------ all of them


class _Passing(torch.autograd.Function):
    """An identity that counts how often a forward and a backward pass comes through."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        counts[0] += 1
        return features.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.counts[1] += 1
        return gradient, None


@pytest.mark.parametrize("name", ["auto_lambda", "moml", "forum"])
def test_the_passes_are_those_of_the_card(name: str) -> None:
    counts = [0, 0]
    net = SharedNet()
    net.encoder[-1].register_forward_hook(lambda module, inputs, output: _Passing.apply(output, counts))
    training, validation = closures(net)
    card = available()[name]
    known = {"K": len(TASKS), "inner_steps": card.options.get("inner_steps")}
    expected = [eval(text.replace("2K", "2 * K"), known) for text in (card.forward_passes, card.backward_passes)]
    Balancer(name, net).step(training, torch.optim.SGD(net.parameters(), lr=0.1), validation=validation)
    assert counts == expected
    if name == "forum":
        counts[:] = 0, 0
        Balancer(name, net).step(training, torch.optim.SGD(net.parameters(), lr=0.1))
        assert counts == [passes - 1 for passes in expected]


@looking
def test_a_balancer_that_did_not_look_ahead_says_how(spec: str) -> None:
    net = SharedNet()
    balancer = Balancer(spec, net)
    with pytest.raises(UsageError, match=r"looks ahead of each step: train with balancer.step\(closure"):
        balancer(losses(net, DATA))
    balancer.look_ahead(partial(losses, net, DATA), torch.optim.SGD(net.parameters(), lr=0.1))
    balancer(losses(net, DATA)).backward()
    with pytest.raises(UsageError, match="looks ahead of each step"):  # each anew
        balancer(losses(net, DATA))


@looking
def test_training_lowers_every_loss(spec: str) -> None:
    net = SharedNet()
    training, validation = closures(net)
    before = [loss.item() for loss in training().values()]
    balancer, optimizer = Balancer(spec, net), torch.optim.SGD(net.parameters(), lr=0.05)
    for _ in range(100):
        balancer.step(training, optimizer, validation=training)
    assert all(loss.item() < old for loss, old in zip(training().values(), before, strict=True))
    weights = balancer.weights
    for _ in range(20):
        balancer.step(training, optimizer, validation=validation)
    assert balancer.weights != weights


@looking
def test_a_resumed_run_equals_an_uninterrupted_one(spec: str, tmp_path) -> None:
    def train(net: nn.Module, balancer: Balancer, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for number in steps:
            balancer.step(
                partial(losses, net, batch(number)), optimizer, validation=partial(losses, net, batch(number + 50))
            )
            balancer.end_epoch()

    def start(seed: int = 0) -> tuple[nn.Module, Balancer, torch.optim.Optimizer]:
        net = SharedNet(seed)
        return net, Balancer(spec, net), torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)

    whole, balancer, optimizer = start()
    train(whole, balancer, optimizer, range(6))
    first, balancer, optimizer = start()
    train(first, balancer, optimizer, range(3))
    torch.save((balancer.state_dict(), first.state_dict(), optimizer.state_dict()), tmp_path / "saved.pt")
    second, balancer, optimizer = start(seed=1)
    saved = torch.load(tmp_path / "saved.pt", weights_only=True)
    for part, state in zip((balancer, second, optimizer), saved, strict=True):
        part.load_state_dict(state)
    train(second, balancer, optimizer, range(3, 6))
    for name, parameter in second.named_parameters():
        assert torch.equal(parameter, whole.get_parameter(name)), name


@looking
def test_a_validation_batch_that_is_not_finite_skips_the_step(spec: str) -> None:
    net = SharedNet()
    training, validation = closures(net)
    balancer = Balancer(spec, net, patience=2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    balancer.step(training, optimizer, validation=validation)
    before, state = frozen(net.state_dict()), frozen(balancer.strategy.state_dict())

    def broken() -> dict[str, Tensor]:
        return {task: loss * torch.nan if task == "depth" else loss for task, loss in validation().items()}

    with pytest.warns(RuntimeWarning, match="gradient ahead of the step of task 'depth' is not finite"):
        balancer.step(training, optimizer, validation=broken)
    assert balancer.skipped
    assert frozen(net.state_dict()) == before
    assert frozen(balancer.strategy.state_dict()) == state
    with pytest.raises(NotFiniteError, match="2nd such step in a row"):
        balancer.step(training, optimizer, validation=broken)


@looking
def test_a_dropped_task_sits_the_look_ahead_out_too(spec: str) -> None:
    net = SharedNet()
    training, validation = closures(net)

    def broken() -> dict[str, Tensor]:
        return {task: loss * torch.nan if task == "depth" else loss for task, loss in training().items()}

    balancer = Balancer(spec, net, nonfinite="drop_task")
    with pytest.warns(RuntimeWarning, match="the loss of task 'depth' is not finite: it sits this step out"):
        balancer.step(broken, torch.optim.SGD(net.parameters(), lr=0.1), validation=validation)
    assert not balancer.skipped
    assert tuple(balancer.weights) == ("seg", "normal")
    assert all(p.isfinite().all() for p in net.parameters())


@looking
def test_a_task_may_be_missing_from_either_batch(spec: str) -> None:
    net = SharedNet()
    training, validation = closures(net)

    def without(task: str, closure: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor | None]:
        return {**closure(), task: None}

    balancer = Balancer(spec, net, tasks=TASKS)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    balancer.step(partial(without, "depth", training), optimizer, validation=validation)
    assert tuple(balancer.weights) == ("seg", "normal")
    balancer.step(training, optimizer, validation=partial(without, "normal", validation))
    assert tuple(balancer.weights) == TASKS
    assert all(p.isfinite().all() for p in net.parameters())


@looking
def test_running_statistics_count_a_batch_once(spec: str) -> None:
    class Normalised(SharedNet):
        def __init__(self) -> None:
            super().__init__()
            self.encoder.insert(1, nn.BatchNorm1d(8).double())
            self.encoder.append(nn.Dropout(0.3))

    net = Normalised()
    training, validation = closures(net)
    balancer, optimizer = Balancer(spec, net), torch.optim.SGD(net.parameters(), lr=0.0)
    torch.manual_seed(0)
    training()
    expected, following = [buffer.clone() for buffer in net.buffers()], torch.rand(3)
    again = Normalised()
    again.load_state_dict(Normalised().state_dict())
    training, validation = closures(again)
    balancer, optimizer = Balancer(spec, again), torch.optim.SGD(again.parameters(), lr=0.0)
    torch.manual_seed(0)
    balancer.step(training, optimizer, validation=validation)
    assert all(map(torch.equal, expected, again.buffers()))
    assert torch.equal(torch.rand(3), following)


def _half(rank: int, spec: str) -> tuple[list[float], bool]:
    net = SharedNet()
    balancer, optimizer = Balancer(spec, net), torch.optim.SGD(net.parameters(), lr=0.1)
    for number in range(3):
        training, validation = (
            partial(losses, net, batch(2 * number + rank)),
            partial(losses, net, batch(50 + rank)),
        )
        balancer.step(training, optimizer, validation=validation)
    weights = list(balancer.weights.values())

    def broken() -> dict[str, Tensor]:
        return {task: loss * (torch.nan if rank else 1.0) for task, loss in validation().items()}

    with pytest.warns(RuntimeWarning, match="ahead of the step"):
        balancer.step(training, optimizer, validation=broken)
    return weights, balancer.skipped


@looking
def test_all_ranks_learn_the_same_and_skip_the_same_steps(spec: str, tmp_path) -> None:
    (one, first), (other, second) = run_on_ranks(tmp_path, _half, spec)
    assert one == other
    assert len(set(one)) == 3
    assert first
    assert second


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("auto_lambda(primary=seg)", "'auto_lambda': primary should be a list"),
        ("auto_lambda(primary=[])", "auto_lambda: primary must be a list of tasks"),
        ("auto_lambda(init=inf)", "auto_lambda: init must be finite"),
        ("auto_lambda(lr=0)", "auto_lambda: the learning rate must be positive"),
        ("moml(inner_lr=0)", "moml: the inner learning rate must be positive"),
        ("forum(rho=-1)", "forum: rho must not be negative"),
        ("forum(inner_lr=0)", "forum: the inner learning rate must be positive"),
        ("forum(inner_steps=0)", "forum: there must be at least 1 inner step"),
    ],
)
def test_options_are_checked(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(spec)


def test_an_unknown_primary_task_is_named() -> None:
    net = SharedNet()
    training, _ = closures(net)
    with pytest.raises(UsageError, match="task in auto_lambda: primary 'sek'"):
        Balancer("auto_lambda(primary=[sek])", net).step(training, torch.optim.SGD(net.parameters(), lr=0.1))
