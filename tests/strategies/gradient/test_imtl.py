from __future__ import annotations

from functools import partial

import pytest
import torch

from mtobal import Balancer
from networks import SharedNet, batch, outcome


@pytest.mark.parametrize("options", ["", "init=0.5, lr=0.1, optimizer=sgd"])
def test_it_is_the_loss_balance_and_the_gradient_balance_together(options: str) -> None:
    nets = SharedNet(), SharedNet()
    specs = f"imtl({options})", f"imtl_l({options})+imtl_g(heads=raw)"
    balancers = [Balancer(spec, net) for spec, net in zip(specs, nets, strict=True)]
    for number in range(5):
        for net, balancer in zip(nets, balancers, strict=True):
            balancer.step(partial(outcome, net, batch(number)), torch.optim.SGD(net.parameters(), lr=0.05))
        assert balancers[0].weights == pytest.approx(balancers[1].weights)
        assert balancers[0].head_weights == pytest.approx(balancers[1].head_weights)
    for left, right in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-12)
    assert len(set(balancers[0].head_weights.values())) == 3
