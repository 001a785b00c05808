"""Places beside the balance: extra terms of the loss, and weights that follow validations."""

from __future__ import annotations

import math

import pytest
import torch

from mtobal import Balancer, UsageError
from mtobal.strategies import build
from networks import TASKS, SharedNet, batch, losses, outcome


def written(net) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("scale", [1.0, 0.25, 512.0])
@pytest.mark.parametrize("rest", ["", "uw+", "mgda+", "graddrop+", "mgda_ub+", "uw+pcgrad+"])
def test_the_penalty_is_added_to_the_balanced_gradient(rest: str, scale: float) -> None:
    data = batch()
    net, other, third = SharedNet(), SharedNet(), SharedNet()
    values, features = outcome(net, data)
    balanced = Balancer(f"{rest}rep_mtl", net)(values, representation=features)
    (scale * balanced).backward()

    values, features = outcome(other, data)
    without = Balancer(rest.rstrip("+") or "ew", other)(values, representation=features)
    (scale * without).backward()

    values, features = outcome(third, data)
    penalty = build("rep_mtl").regulariser.penalty(features, list(values.values()), _step(values))
    (scale * penalty).backward()

    assert balanced.item() == pytest.approx((without + penalty).item())
    expected = written(other)
    for name, gradient in written(third).items():
        expected[name] = expected[name] + gradient
    found = written(net)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-10, atol=1e-12)


def _step(values):
    from mtobal.strategies import Step

    detached = torch.stack([value.detach() for value in values.values()])
    return Step(TASKS, tuple(range(len(TASKS))), detached)


def test_a_regulariser_needs_the_representation() -> None:
    net, data = SharedNet(), batch()
    with pytest.raises(UsageError, match="representation=z"):
        Balancer("mgda+rep_mtl", net)(losses(net, data))


def test_weights_follow_the_validations() -> None:
    net, data = SharedNet(), batch()
    balancer = Balancer("coba(warm_up=2, window=3)", net, tasks=TASKS)
    for step in range(6):
        balancer.revise({"seg": 1.0 / (1 + step), "depth": 1.0, "normal": 1.0 + 0.1 * step})
        balancer(losses(net, data)).backward()
    assert balancer.weights == pytest.approx(
        dict(zip(TASKS, balancer.strategy.revision.revised.tolist(), strict=True))
    )
    assert len(set(balancer.weights.values())) > 1


def test_what_a_validation_cannot_say() -> None:
    balancer = Balancer("coba")
    with pytest.raises(UsageError, match="pass tasks= to the Balancer"):
        balancer.revise({"seg": 1.0})
    balancer = Balancer("hypervolume(objectives=metrics)", tasks=TASKS)
    with pytest.raises(UsageError, match="did you mean 'depth'"):
        balancer.revise({"dept": 1.0})
    with pytest.raises(UsageError, match="whether higher is better"):
        balancer.revise(dict.fromkeys(TASKS, 1.0), dict.fromkeys(TASKS, 0.5))
    with pytest.raises(UsageError, match=r"hypervolume\(objectives=metrics\) reads metrics"):
        balancer.revise(dict.fromkeys(TASKS, 1.0))
    balancer.revise({"seg": math.nan}, dict.fromkeys(TASKS, 0.5), dict.fromkeys(TASKS, True))
