from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mtobal import Balancer
from networks import SharedNet, batch, losses
from strategies.sharpness.noisy import NoisyNet, assert_close, closure_of, gradients, standstill


def by_hand(net: nn.Module, rho: float, adaptive: bool = False) -> dict[str, Tensor]:
    """The textbook's two passes, with the masks of the first in both."""
    torch.manual_seed(3)
    named = [(name, p) for name, p in net.named_parameters() if not name.startswith("spare")]
    parameters = [p for _, p in named]
    total = sum(losses(net, batch()).values())
    slopes = torch.autograd.grad(total, parameters)
    sizes = [p.detach().abs() if adaptive else torch.ones_like(p) for p in parameters]
    norm = torch.cat([(a * g).flatten() for a, g in zip(sizes, slopes, strict=True)]).norm()
    with torch.no_grad():
        for parameter, slope, size in zip(parameters, slopes, sizes, strict=True):
            parameter += rho * size**2 * slope / norm
    torch.manual_seed(3)
    found = torch.autograd.grad(sum(losses(net, batch()).values()), parameters)
    return {name: gradient for (name, _), gradient in zip(named, found, strict=True)}


@pytest.mark.parametrize("kind", [SharedNet, NoisyNet])
@pytest.mark.parametrize(("rho", "adaptive"), [(0.05, False), (0.5, True)])
def test_it_is_the_textbooks_two_passes_on_the_sum(kind: type, rho: float, adaptive: bool) -> None:
    net = kind()
    torch.manual_seed(3)
    Balancer({"sam": {"rho": rho, "adaptive": adaptive}}, net).step(closure_of(net), standstill(net))
    assert_close(gradients(net), by_hand(kind(), rho, adaptive))


def test_an_aggregation_sees_the_gradients_of_the_tasks_there() -> None:
    net, moved = SharedNet(), SharedNet()
    balancer = Balancer("mgda+sam(rho=0.3)", net)
    balancer.step(closure_of(net), standstill(net))
    parameters = [p for name, p in moved.named_parameters() if not name.startswith("spare")]
    slopes = torch.autograd.grad(sum(losses(moved, batch()).values()), parameters)
    norm = torch.cat([slope.flatten() for slope in slopes]).norm()
    with torch.no_grad():
        for parameter, slope in zip(parameters, slopes, strict=True):
            parameter += 0.3 * slope / norm
    there = Balancer("mgda", moved)
    there.step(closure_of(moved), standstill(moved))
    assert balancer.weights == pytest.approx(there.weights, rel=1e-9)
    assert balancer.cosines == pytest.approx(there.cosines, rel=1e-9)
    assert_close(gradients(net), gradients(moved))
