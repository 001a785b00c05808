from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mtobal import UsageError
from mtobal.gradients import LookAhead, NotFiniteAhead, inner_products, weighted_sum
from networks import TASKS, SharedNet, batch, losses


class NoisyNet(SharedNet):
    """With dropout and batch norm, which must not notice that somebody looks ahead."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder.insert(1, nn.BatchNorm1d(8).double())
        self.encoder.append(nn.Dropout(0.3))


def run(net: nn.Module, seed: int = 0) -> Callable[[], tuple[tuple[str, ...], dict[str, Tensor]]]:
    return lambda: (TASKS, losses(net, batch(seed)))


def look(net: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> LookAhead:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1) if optimizer is None else optimizer
    return LookAhead(net, optimizer, run(net), run(net, 1))


def snapshot(net: nn.Module) -> list[Tensor]:
    return [value.clone() for value in net.state_dict().values()]


def test_looking_leaves_no_trace() -> None:
    net = NoisyNet()
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    before, rng = snapshot(net), torch.get_rng_state()
    ahead = look(net)
    here = ahead.training()
    rows = here.gradients()
    with ahead.displaced(rows[0], -0.5):
        there = ahead.validation()
        there.gradient(torch.ones(3))
        assert not torch.equal(there.losses, ahead.training().losses)
    assert all(map(torch.equal, before, net.state_dict().values()))
    assert torch.equal(rng, torch.get_rng_state())
    assert all((parameter.grad == 1).all() for parameter in net.parameters())


def test_every_look_has_the_masks_of_the_step() -> None:
    net = NoisyNet()
    ahead = look(net)
    first = ahead.training().losses
    torch.rand(3)  # somebody else draws
    assert torch.equal(ahead.training().losses, first)
    assert torch.equal(ahead.training_losses((0, 1, 2)), first)
    net, ahead = NoisyNet(), None
    torch.manual_seed(0)
    ahead = look(net)
    seen = ahead.training().losses
    torch.testing.assert_close(torch.stack(list(losses(net, batch()).values())), seen, rtol=0, atol=0)


def test_parameters_come_back_bit_by_bit_after_an_exception() -> None:
    net = SharedNet()
    before = snapshot(net)
    ahead = look(net)
    way = [1e3 * torch.randn_like(parameter) for parameter in ahead.parameters]  # a sum would lose digits

    def stray() -> None:
        with ahead.displaced(way):
            assert not torch.equal(net.encoder[0].weight, before[0])
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stray()
    assert all(map(torch.equal, before, net.state_dict().values()))


def test_the_whole_virtual_step_is_that_of_the_optimizer() -> None:
    net = SharedNet()
    heads, encoder = list(net.heads.parameters()), list(net.encoder.parameters())
    optimizer = torch.optim.SGD(
        [{"params": encoder, "lr": 0.05}, {"params": heads, "weight_decay": 0.0}],
        lr=0.2,
        momentum=0.9,
        weight_decay=0.01,
    )
    for _ in range(3):
        optimizer.zero_grad()
        ahead = look(net, optimizer)
        weights = torch.tensor([0.5, 2.0, 1.0])
        gradient = ahead.training().gradient(weights)
        way = ahead.virtual_step(gradient, whole=True)
        with ahead.displaced(way):
            reached = [parameter.detach().clone() for parameter in ahead.parameters]
        sum(weight * loss for weight, loss in zip(weights, losses(net, batch()).values(), strict=True)).backward()
        optimizer.step()
        for one, other in zip(ahead.parameters, reached, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-15)
    plain = ahead.virtual_step(gradient)
    for number, (part, slope) in enumerate(zip(plain, gradient, strict=True)):
        torch.testing.assert_close(part, -(0.05 if number < len(encoder) else 0.2) * slope)


def test_frozen_parameters_stay_where_they_are() -> None:
    net = SharedNet()
    net.encoder[0].requires_grad_(False)
    ahead = look(net)
    assert len(ahead.parameters) == len(list(net.parameters())) - 2
    kept = net.encoder[0].weight.clone()
    with ahead.displaced(ahead.virtual_step(ahead.training().gradient(torch.ones(3)), whole=True)):
        assert torch.equal(net.encoder[0].weight, kept)
        assert ahead.training().losses.isfinite().all()


def test_inner_products_and_sums_are_those_of_the_flat_gradients() -> None:
    net = SharedNet()
    rows = look(net).training().gradients()
    flat = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
    torch.testing.assert_close(inner_products(rows), flat @ flat.T)
    weights = torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64)
    total = torch.cat([part.flatten() for part in weighted_sum(rows, weights)])
    torch.testing.assert_close(total, weights @ flat)
    torch.testing.assert_close(inner_products(rows), flat @ flat.T)  # the rows are as they were


def test_what_is_not_finite_names_the_task() -> None:
    net = SharedNet()
    ahead = look(net)
    seen = ahead.training()
    assert torch.equal(ahead.mean(seen.losses, seen), seen.losses)
    with torch.no_grad():
        net.heads["depth"].weight.fill_(torch.nan)
    broken = ahead.validation()
    with pytest.raises(NotFiniteAhead) as caught:
        ahead.mean(broken.losses, seen, broken)
    assert caught.value.tasks == ["depth"]
    with pytest.raises(NotFiniteAhead) as caught:
        ahead.mean(torch.tensor(torch.inf), seen)
    assert caught.value.tasks == list(TASKS)


def test_a_task_that_is_gone_in_the_second_run_is_an_error() -> None:
    net = SharedNet()
    runs = iter([TASKS, TASKS[:2]])

    def changing() -> tuple[tuple[str, ...], dict[str, Tensor]]:
        found = losses(net, batch())
        return TASKS, {task: found[task] for task in next(runs)}

    ahead = LookAhead(net, torch.optim.SGD(net.parameters(), lr=0.1), changing)
    here = ahead.training()
    with pytest.raises(UsageError, match="gave no loss of task normal when it was called again"):
        ahead.training_losses(here.active)
