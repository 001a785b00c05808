"""Several batches before one step of the optimizer."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from mtobal import Balancer
from networks import TASKS, SharedNet, batch, losses

# Aggregations, whose update is that of the large batch, with and without weights on the losses.
AGGREGATING = [
    "mgda",
    "nash_mtl",
    "pcgrad",
    "graddrop",
    "config",
    "uw+cagrad",
    "si+mgda",
    "db_mtl",
    "imtl",
    "rlw+upgrad",
]


def parts(data, count: int):
    inputs, targets = data
    pieces = [tensor.chunk(count) for tensor in (inputs, *targets.values())]
    return [(x, dict(zip(targets, y, strict=True))) for x, *y in zip(*pieces, strict=True)]


def accumulate(balancer: Balancer, net, batches, divisor: int) -> None:
    *first, last = batches
    with balancer.accumulating():
        for data in first:
            (balancer(losses(net, data)) / divisor).backward()
    (balancer(losses(net, last)) / divisor).backward()


@pytest.mark.parametrize("gradients", ["auto", "loop", "batched"])
@pytest.mark.parametrize("spec", AGGREGATING)
def test_the_update_is_that_of_the_large_batch(spec: str, gradients: str) -> None:
    net, other = SharedNet(), SharedNet()
    balancer, expected = Balancer(spec, net, gradients=gradients), Balancer(spec, other, gradients=gradients)
    for seed in range(3):  # states go on alike
        data = batch(seed, size=16)
        net.zero_grad()
        other.zero_grad()
        accumulate(balancer, net, parts(data, 4), 4)
        expected(losses(other, data)).backward()
        assert balancer.weights == pytest.approx(expected.weights, rel=1e-9)
        for name, parameter in net.named_parameters():
            if parameter.grad is not None:
                torch.testing.assert_close(parameter.grad, other.get_parameter(name).grad, rtol=1e-9, atol=1e-12)


def test_a_ragged_group_is_as_much_smaller_as_its_sum() -> None:
    """Two batches of four, each divided by four: half of the update of the two."""
    net, other = SharedNet(), SharedNet()
    data = batch(size=16)
    accumulate(Balancer("nash_mtl", net), net, parts(data, 2), 4)
    (Balancer("nash_mtl", other)(losses(other, data)) / 2).backward()
    for name, parameter in net.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, other.get_parameter(name).grad, rtol=1e-9, atol=1e-12)


def test_a_loss_weighting_learns_once_from_the_mean_losses() -> None:
    net, other = SharedNet(), SharedNet()
    data = batch(size=16)
    balancer, expected = Balancer("uw", net), Balancer("uw", other)
    accumulate(balancer, net, parts(data, 4), 4)
    expected(losses(other, data)).backward()
    torch.testing.assert_close(balancer.strategy.state_dict(), expected.strategy.state_dict())
    torch.testing.assert_close(net.encoder[0].weight.grad, other.encoder[0].weight.grad)


def test_tasks_may_be_missing_from_some_of_the_batches() -> None:
    net = SharedNet()
    balancer = Balancer("mgda", net, tasks=TASKS)
    first, second = parts(batch(), 2)
    with balancer.accumulating():
        (balancer({**losses(net, first), "depth": None}) / 2).backward()
    (balancer({**losses(net, second), "seg": None}) / 2).backward()
    assert balancer.weights.keys() == set(TASKS)
    assert all(net.heads[task].weight.grad is not None for task in TASKS)


@pytest.mark.parametrize("spec", ["uw", "uw+mgda", "graddrop"])
@pytest.mark.parametrize("bad", [0, 1, 2])
def test_a_bad_batch_is_left_out_of_its_group(spec: str, bad: int) -> None:
    """Wherever it stands, the others make the step alone."""
    net, other = SharedNet(), SharedNet()
    balancer, expected = Balancer(spec, net), Balancer(spec, other)
    batches = parts(batch(size=18), 3)
    for number, data in enumerate(batches):
        values = losses(net, data)
        if number == bad:
            values["depth"] = values["depth"] * float("nan")
        warns = pytest.warns(RuntimeWarning, match="skipped") if number == bad else torch.enable_grad()
        if number < 2:
            with balancer.accumulating(), warns:
                (balancer(values) / 3).backward()
        else:
            with warns:
                (balancer(values) / 3).backward()
    assert not balancer.skipped
    accumulate(expected, other, [data for number, data in enumerate(batches) if number != bad], 3)
    for name, parameter in net.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, other.get_parameter(name).grad, rtol=1e-9, atol=1e-12)


def test_what_is_accumulated_holds_no_graph() -> None:
    net, data = SharedNet(), batch()
    balancer = Balancer("mgda", net)
    with balancer.accumulating():
        features = net.encoder(data[0])
        alive = weakref.ref(features)
        balancer({task: net.heads[task](features).sum() for task in TASKS}).backward()
        del features
        gc.collect()
    assert alive() is None
    loss = balancer.flush()
    assert loss is not None
    loss.backward()
    assert net.encoder[0].weight.grad is not None
    assert balancer.flush() is None


def test_every_n_steps_counts_steps_and_not_batches() -> None:
    net, data = SharedNet(), batch()
    balancer = Balancer("mgda", net, gradients="every(n=2)")
    found = []
    for _ in range(4):
        accumulate(balancer, net, parts(data, 2), 2)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
        found.append(tuple(balancer.weights.values()))
    assert found[0] == found[1] != found[2] == found[3]
