from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mtobal import Balancer, UsageError
from mtobal.gradients import find_partition, reached_leaves
from networks import TASKS, SharedNet, batch, losses


def test_parameters_are_sorted_by_the_losses_that_reach_them() -> None:
    net = SharedNet()
    partition = find_partition(list(losses(net, batch()).values()), TASKS, net)
    names = {name for name, _ in net.named_parameters()}
    assert set(partition.shared) == {name for name in names if name.startswith("encoder")}
    for task in TASKS:
        assert set(partition.own[task]) == {name for name in names if name.startswith(f"heads.{task}.")}
    assert set(partition.unused) == {"spare.weight", "spare.bias"}


def test_the_sets_are_disjoint_and_complete() -> None:
    net = SharedNet()
    partition = find_partition(list(losses(net, batch()).values()), TASKS, net)
    sets = [set(partition.shared), *map(set, partition.own.values()), set(partition.unused)]
    assert sum(map(len, sets)) == len(set().union(*sets)) == len(list(net.parameters()))


def test_printing_shows_the_counts_by_module() -> None:
    net = SharedNet()
    balancer = Balancer("ew", net)
    balancer(losses(net, batch()))
    lines = str(balancer.partition).splitlines()
    assert lines[0].split() == ["module", "owner", "parameters"]
    assert [line.split() for line in lines[1:-1]] == [
        ["encoder", "shared", "102"],
        ["heads.seg", "seg", "14"],
        ["heads.depth", "depth", "14"],
        ["heads.normal", "normal", "14"],
        ["spare", "unused", "6"],
    ]
    assert lines[-1] == "total: shared 102, seg 14, depth 14, normal 14, unused 6"


def test_a_trunk_shared_by_some_tasks_is_shared() -> None:
    net = nn.ModuleDict({"trunk": nn.Linear(3, 3), "branch": nn.Linear(3, 3)})
    trunk = net["trunk"](torch.ones(1, 3))
    branch = net["branch"](trunk)
    partition = find_partition([trunk.sum(), branch.sum(), branch.square().sum()], ("a", "b", "c"), net)
    assert partition.reach == ({0, 1, 2}, {0, 1, 2}, {1, 2}, {1, 2})
    assert len(partition.shared) == 4


def test_tied_weights_count_once() -> None:
    net = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    net["b"].weight = net["a"].weight
    losses = [net["a"](torch.ones(1, 3)).sum(), net["b"](torch.ones(1, 3)).sum()]
    partition = find_partition(losses, ("a", "b"), net)
    assert set(partition.shared) == {"a.weight"}


def test_a_leaf_as_a_loss_reaches_itself() -> None:
    leaf = torch.ones((), requires_grad=True)
    assert set(reached_leaves(leaf)) == {id(leaf)}
    assert reached_leaves(torch.ones(())) == {}


def test_declared_shared_parameters() -> None:
    net, data = SharedNet(), batch()
    for shared in ("encoder", net.encoder, [net.encoder[0], "encoder.2"], list(net.encoder.parameters())):
        balancer = Balancer("mgda", net, shared=shared)
        balancer(losses(net, data))
        assert set(balancer.partition.shared) == {
            name for name, _ in net.named_parameters() if name.startswith("encoder")
        }
    wider = Balancer("mgda", net, shared=["encoder", "heads.seg"])
    wider(losses(net, data))
    assert "heads.seg.weight" in wider.partition.shared
    with pytest.raises(UsageError, match=r"'encoder.2.weight' is reached by the losses of 'seg' and 'depth'"):
        Balancer("mgda", net, shared="encoder.0")(losses(net, data))


def test_what_an_operation_remembers_is_no_leaf() -> None:
    net = nn.ModuleDict({"used": nn.Linear(3, 3), "remembered": nn.Linear(3, 3)})

    class Remembering(torch.autograd.Function):
        @staticmethod
        def forward(ctx, tensor: Tensor) -> Tensor:
            ctx.variable = net["remembered"].weight
            return tensor.clone()

        @staticmethod
        def backward(ctx, cotangent: Tensor) -> Tensor:
            return cotangent

    output = Remembering.apply(net["used"](torch.ones(1, 3)))
    partition = find_partition([output.sum(), output.square().sum()], ("a", "b"), net)
    assert set(partition.shared) == {"used.weight", "used.bias"}
