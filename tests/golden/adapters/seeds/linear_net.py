"""The network and batch that the records of SAMO and F-MTL share, trained for one step by a balancer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from golden.adapters.seeds.close import assert_equal
from golden.records import Record, load, tensor
from mtobal import Balancer
from mtobal.ops import Jacobian
from mtobal.strategies import Composition, Direction, JacobianAggregation, Step
from mtobal.strategies.base import Perturbation

# Records with three tasks hold the gradients of a head that is not among the common ones.
THIRD_HEAD = {"w": [[0.5, 0.6]], "b": [0.3]}


class LinearNet(nn.Module):
    """Two linear layers without activation, and a linear head a task."""

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        common = load("seeds.json")["_meta"]["common"]
        self.first, self.second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2)
        self.heads = nn.ModuleList(nn.Linear(2, 1) for _ in range(num_tasks))
        self.double()
        values = [common["W1"], common["W2"], common["b2"]]
        for head in [*common["heads"], THIRD_HEAD][:num_tasks]:
            values += [head["w"], head["b"]]
        with torch.no_grad():
            for parameter, value in zip(self.parameters(), values, strict=True):
                parameter.copy_(tensor(value))

    @property
    def shared(self) -> list[nn.Parameter]:
        return [self.first.weight, self.second.weight, self.second.bias]


@dataclass
class Batch:
    """Inputs and one target a task."""

    inputs: Tensor
    targets: Tensor

    @classmethod
    def of(cls, record: Record) -> Batch:
        common = load("seeds.json")["_meta"]["common"]
        return cls(tensor(common["X"]), tensor(record["hyper"].get("targets", common["Y"])))

    def losses(self, net: LinearNet) -> dict[str, Tensor]:
        features = net.second(net.first(self.inputs))
        return {
            str(task): (head(features).squeeze(1) - target).square().mean()
            for task, (head, target) in enumerate(zip(net.heads, self.targets, strict=True))
        }


class Rows(JacobianAggregation):
    """The plain sum, with the rows that it was shown."""

    rows: Tensor

    def direct(self, jacobian: Jacobian, step: Step) -> Direction:
        self.rows = torch.cat(jacobian.blocks, dim=1)
        ones = torch.ones(len(self.rows), dtype=torch.float64)
        return Direction(jacobian.combine(ones), ones)


def gradients(net: LinearNet, batch: Batch, strategies: Composition) -> None:
    """Take the gradients of one step, and check that everything is back where it was."""
    before = [parameter.detach().clone() for parameter in net.parameters()]
    Balancer(strategies, net).step(lambda: batch.losses(net), torch.optim.SGD(net.parameters(), lr=0.0))
    assert all(map(torch.equal, before, net.parameters()))


def rows(net: LinearNet, batch: Batch, perturbation: Perturbation) -> Tensor:
    """Return the rows that an aggregation is shown."""
    aggregation = Rows()
    gradients(net, batch, Composition([aggregation, perturbation], "rows"))
    return aggregation.rows


def flat(values: dict[str, Any]) -> Tensor:
    """Join recorded tensors in their order."""
    return torch.cat([tensor(value).flatten() for value in values.values()])


def shared_of(values: dict[str, Any]) -> dict[str, Any]:
    """Keep those of the three shared tensors, which come first."""
    return dict(list(values.items())[:3])


def assert_written(net: LinearNet, expected: dict[str, Any], factor: float, tolerance: float) -> None:
    """Compare the gradients of the shared tensors, up to the factor that the trainer puts on them."""
    written = torch.cat([parameter.grad.flatten() for parameter in net.shared])
    assert_equal(written * factor, flat(shared_of(expected)).tolist(), "shared gradient", tolerance)


def assert_heads(net: LinearNet, expected: list[Any], tolerance: float = 1e-10) -> None:
    """Compare the gradients of the heads, weight and bias of one after the other."""
    for found, wanted in zip(net.heads.parameters(), expected, strict=True):
        assert_equal(found.grad, wanted, "gradient of a head", tolerance)
