from __future__ import annotations

from functools import partial

import pytest
import torch

from mtobal import Balancer
from networks import TASKS, SharedNet, batch, losses


@pytest.mark.parametrize("spec", ["pbi(theta=1)", "cosmos(penalty=10)"])
def test_training_brings_the_losses_into_the_wanted_proportion(spec: str) -> None:
    net, data = SharedNet(), batch()

    def cosine() -> float:
        values = torch.stack([losses(net, data)[task].detach() for task in TASKS])
        return torch.cosine_similarity(values, torch.ones_like(values), dim=0).item()

    before = cosine()
    balancer = Balancer(spec, net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for _ in range(300):
        balancer.step(partial(losses, net, data), optimizer)
    assert before < 0.8
    assert cosine() > 0.95
