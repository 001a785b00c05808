from __future__ import annotations

import pytest
import torch
from torch import Tensor

import mtobal
from mtobal import Balancer
from mtobal.strategies import Composition, Step, build
from networks import TASKS, SharedNet, batch, losses
from strategies.sharpness.noisy import assert_close, closure_of, gradients, standstill

RHO = 0.2


def rows_at_both_points(joint: bool = False) -> tuple[Tensor, Tensor, dict[str, list[Tensor]]]:
    """Shared gradients at home and at each task's worst point, and those of the heads there, by plain autograd."""
    home, away, heads = [], [], {}
    for task in TASKS:
        net = SharedNet()
        shared, head = list(net.encoder.parameters()), list(net.heads[task].parameters())
        slopes = torch.autograd.grad(losses(net, batch())[task], [*shared, *head])
        home.append(torch.cat([slope.flatten() for slope in slopes[: len(shared)]]))
        own = torch.cat([slope.flatten() for slope in slopes[len(shared) :]])
        both = torch.cat([home[-1], own]).norm()
        with torch.no_grad():
            for number, (parameter, slope) in enumerate(zip([*shared, *head], slopes, strict=True)):
                norm = both if joint else home[-1].norm() if number < len(shared) else own.norm()
                parameter += RHO * slope / norm
        there = torch.autograd.grad(losses(net, batch())[task], [*shared, *head])
        away.append(torch.cat([slope.flatten() for slope in there[: len(shared)]]))
        heads[task] = list(there[len(shared) :])
    return torch.stack(home), torch.stack(away), heads


def expected_direction(mode: str, aggregation: str, home: Tensor, away: Tensor) -> Tensor:
    def aggregate(*rows: Tensor) -> Tensor:
        return mtobal.aggregate(torch.stack(rows), aggregation)

    flat = away - home
    if mode == "direct":
        return aggregate(*away)
    if mode == "separate":
        return aggregate(*home) + aggregate(*flat)
    if mode == "second":
        return aggregate(aggregate(*home), aggregate(*flat))
    return aggregate(*(aggregate(one, other) for one, other in zip(home, flat, strict=True)))


@pytest.mark.parametrize("mode", ["separate", "direct", "second", "each"])
@pytest.mark.parametrize("aggregation", ["mgda(heads=raw)", "cagrad", "aligned_mtl(heads=raw)", "trimmed_mean"])
@pytest.mark.parametrize("norm", ["separate", "joint"])
def test_every_mode_is_what_it_says(mode: str, aggregation: str, norm: str) -> None:
    net = SharedNet()
    spec = f"{aggregation}+f_mtl(rho={RHO}, adaptive=false, mode={mode}, norm={norm})"
    Balancer(spec, net).step(closure_of(net), standstill(net))
    home, away, heads = rows_at_both_points(joint=norm == "joint")
    found = torch.cat([p.grad.flatten() for p in net.encoder.parameters()])
    torch.testing.assert_close(found, expected_direction(mode, aggregation, home, away), rtol=1e-6, atol=1e-9)
    for task in TASKS:
        for parameter, expected in zip(net.heads[task].parameters(), heads[task], strict=True):
            torch.testing.assert_close(parameter.grad, expected)


@pytest.mark.parametrize("mode", ["second", "each"])
def test_losses_and_flatness_of_a_pair_have_the_loss_of_their_tasks(mode: str) -> None:
    """So an aggregation that reads losses finds those of a pair alike, and here all of them."""
    rows = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = Step.of(2, torch.tensor([2.0, 2.0]))
    reading, plain = (
        build(f"{aggregation}+f_mtl(mode={mode})").aggregation_weights(rows @ rows.T, step, torch.ones(2))
        for aggregation in ("mgda(normalization=loss)", "mgda")
    )
    torch.testing.assert_close(reading, plain)


def test_without_an_aggregation_it_is_the_sum_at_the_worst_points() -> None:
    net = SharedNet()
    balancer = Balancer(f"f_mtl(rho={RHO}, adaptive=false)", net)
    balancer.step(closure_of(net), standstill(net))
    _, away, _ = rows_at_both_points()
    found = torch.cat([p.grad.flatten() for p in net.encoder.parameters()])
    torch.testing.assert_close(found, away.sum(0))
    assert balancer.weights == dict.fromkeys(TASKS, 1.0)


def test_radii_of_shared_parameters_and_head_can_differ() -> None:
    net, other = SharedNet(), SharedNet()
    Balancer("f_mtl(rho=0, rho_head=0.3, adaptive=false)", net).step(closure_of(net), standstill(net))
    parameters = list(other.heads["seg"].parameters())
    slopes = torch.autograd.grad(losses(other, batch())["seg"], parameters)
    norm = torch.cat([slope.flatten() for slope in slopes]).norm()
    with torch.no_grad():
        for parameter, slope in zip(parameters, slopes, strict=True):
            parameter += 0.3 * slope / norm
    there = torch.autograd.grad(losses(other, batch())["seg"], parameters)
    for parameter, gradient in zip(net.heads["seg"].parameters(), there, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_what_is_remembered_of_losses_and_of_flatness_does_not_mix() -> None:
    """An aggregation with a memory sees, of the losses, what it would see without the flatness."""
    alone, wrapped = build("moco"), build("moco+f_mtl(rho=0.05)")
    net, other = SharedNet(), SharedNet()
    for number in range(3):
        Balancer(alone, net).step(closure_of(net, batch(number)), standstill(net))
        Balancer(wrapped, other).step(closure_of(other, batch(number)), standstill(other))
    mine, theirs = wrapped.aggregation.state_dict(), alone.aggregation.state_dict()
    assert mine.keys() == theirs.keys()
    compared = 0
    for name, value in theirs.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            torch.testing.assert_close(mine[name], value)
            compared += 1
    assert compared
    assert isinstance(wrapped, Composition)
    flat = {name: value for name, value in wrapped.state_dict().items() if name.startswith("perturbation.flat.")}
    assert flat["perturbation.flat.steps"] == theirs["steps"] == 3


def test_random_orders_are_drawn_apart_for_losses_and_flatness() -> None:
    wrapped = build("pcgrad(seed=3)+f_mtl")
    assert wrapped.perturbation.flat.generator.initial_seed() != wrapped.aggregation.generator.initial_seed()
    assert len(wrapped.random_states()) == 2


def test_the_adaptive_form_at_home_is_the_plain_one() -> None:
    net, other = SharedNet(), SharedNet()
    Balancer("mgda+f_mtl(rho=0)", net).step(closure_of(net), standstill(net))
    Balancer("mgda", other).step(closure_of(other), standstill(other))
    assert_close(gradients(net), gradients(other))
