"""Two processes with half of the batch each make the update of one process with all of it."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from mtobal import Balancer, UsageError
from mtobal.errors import NotFiniteError
from networks import TASKS, SharedNet, batch, frozen, losses, outcome
from processes import run_on_ranks

SPECS = [
    "ew",
    "uw",
    "rlw",
    "famo",
    "mgda",
    "nash_mtl",
    "pcgrad",
    "graddrop",
    "config",
    "gradnorm",
    "moco",
    "uw+cagrad",
    "rlw+aligned_mtl",
    "trimmed_mean",
]
STEPS = 3


def half(data, rank: int | None):
    if rank is None:
        return data
    inputs, targets = data
    size = len(inputs) // 2
    mine = slice(rank * size, (rank + 1) * size)
    return inputs[mine], {task: target[mine] for task, target in targets.items()}


def network(wrap: dict | None) -> tuple[nn.Module, SharedNet]:
    net = SharedNet()
    if wrap is None:
        return net, net
    if not wrap.get("find_unused_parameters"):
        net.spare.requires_grad_(False)
    return DistributedDataParallel(net, **wrap), net


def train(rank: int | None, spec: str, options: dict, wrap: dict | None, accumulate: int = 1) -> dict:
    """Train for some steps, alone or as one of two ranks."""
    model, net = network(wrap)
    balancer = Balancer(spec, net, **options)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    seen = []
    for step in range(STEPS):
        if accumulate == 1:
            data = half(batch(step), rank)
            balancer.step(lambda data=data: losses(model, data), optimizer)
        else:
            optimizer.zero_grad()
            for number in range(accumulate):
                data = half(batch(accumulate * step + number), rank)
                last = number == accumulate - 1
                silent = nullcontext() if last or wrap is None else model.no_sync()
                with silent, nullcontext() if last else balancer.accumulating():
                    (balancer(losses(model, data)) / accumulate).backward()
            optimizer.step()
        seen.append(dict(balancer.weights))
    state = {name: value.detach().clone() for name, value in net.state_dict().items()}
    return {"net": state, "weights": seen, "strategy": frozen(balancer.strategy.state_dict())}


def assert_equal_ranks_and(ranks: list[dict], alone: dict, rtol: float = 1e-9) -> None:
    one, other = ranks
    assert one["weights"] == other["weights"]
    assert one["strategy"] == other["strategy"]
    assert all(torch.equal(value, other["net"][name]) for name, value in one["net"].items())
    for ours, theirs in zip(one["weights"], alone["weights"], strict=True):
        assert ours == pytest.approx(theirs, rel=rtol)
    for name, value in alone["net"].items():
        torch.testing.assert_close(one["net"][name], value, rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("spec", SPECS)
def test_they_equal_one_process(spec: str, tmp_path) -> None:
    found = run_on_ranks(tmp_path, train, spec, {}, {})
    assert_equal_ranks_and(found, train(None, spec, {}, None))


@pytest.mark.parametrize(
    ("spec", "wrap"),
    [
        *((spec, {"find_unused_parameters": True}) for spec in ("uw", "nash_mtl", "graddrop")),
        *((spec, {"gradient_as_bucket_view": True}) for spec in ("uw", "nash_mtl", "graddrop")),
        ("uw", {"static_graph": True}),
    ],
)
def test_however_the_reducer_is_set_up(spec: str, wrap: dict, tmp_path) -> None:
    found = run_on_ranks(tmp_path, train, spec, {}, wrap)
    assert_equal_ranks_and(found, train(None, spec, {}, None))


def refused(rank: int) -> str:
    model, net = network({"static_graph": True})
    loss = Balancer("mgda", net)(losses(model, batch()))
    with pytest.raises(UsageError) as caught:
        loss.backward()
    return str(caught.value)


def test_outputs_that_pass_through_one_operation_are_refused(tmp_path) -> None:
    for message in run_on_ranks(tmp_path, refused):
        assert "static_graph=True of DistributedDataParallel" in message


@pytest.mark.parametrize("spec", ["uw+nash_mtl", "graddrop"])
@pytest.mark.parametrize("wrap", [{}, {"find_unused_parameters": True}], ids=["plain", "find_unused_parameters"])
def test_with_accumulated_batches(spec: str, wrap: dict, tmp_path) -> None:
    found = run_on_ranks(tmp_path, train, spec, {}, wrap, 2)
    assert_equal_ranks_and(found, train(None, spec, {}, None, 2))


@pytest.mark.parametrize("gradients", ["loop", "ghost", "batched", "every(n=2)"])
def test_whatever_the_engine(gradients: str, tmp_path) -> None:
    options = {"gradients": gradients}
    found = run_on_ranks(tmp_path, train, "pcgrad", options, {})
    assert_equal_ranks_and(found, train(None, "pcgrad", options, None))


class Branching(SharedNet):
    """Runs some batches through another layer as well."""

    branches = False

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        outputs = super().forward(inputs)
        if self.branches:
            outputs["depth"] = outputs["depth"] + self.spare(outputs["seg"]).tanh()
        return outputs


def train_branching(rank: int | None, spec: str) -> dict:
    net = Branching()
    model = net if rank is None else DistributedDataParallel(net, find_unused_parameters=True)
    balancer = Balancer(spec, net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    seen = []
    for step, net.branches in enumerate([False, True, False, True]):
        balancer.step(partial(losses, model, half(batch(step), rank)), optimizer)
        seen.append(dict(balancer.weights))
    state = {name: value.detach().clone() for name, value in net.state_dict().items()}
    return {"net": state, "weights": seen, "strategy": frozen(balancer.strategy.state_dict())}


@pytest.mark.parametrize("spec", ["uw", "uw+mgda", "config"])
def test_a_model_that_leaves_a_layer_out_now_and_then(spec: str, tmp_path) -> None:
    assert_equal_ranks_and(run_on_ranks(tmp_path, train_branching, spec), train_branching(None, spec))


def train_on_part(rank: int | None, branches_on: int | None = None) -> dict:
    """Train with the Gramian of the first half of each rank's samples, in which one rank may branch."""
    net = Branching()
    model = net if rank is None else DistributedDataParallel(net, find_unused_parameters=True)
    balancer = Balancer("uw+mgda", net, gradients="fraction(f=0.5)")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    seen = []
    for step in range(STEPS):
        inputs, targets = batch(step)
        everyone = torch.arange(len(inputs))
        mine = everyone if rank is None else everyone.chunk(2)[rank]

        def on(chosen: Tensor, model=model, data=(inputs, targets)) -> dict[str, Tensor]:
            inputs, targets = data
            return losses(model, (inputs[chosen], {task: target[chosen] for task, target in targets.items()}))

        def part(share: float, on=on, mine=mine) -> dict[str, Tensor]:
            net.branches = branches_on is not None and rank == branches_on
            try:  # the reducer would count what the part alone reaches as used
                return on(mine[mine % 8 < 8 * share], model=model if branches_on is None else net)
            finally:
                net.branches = False

        balancer.step(partial(on, mine), optimizer, part=part)
        seen.append(dict(balancer.weights))
    state = {name: value.detach().clone() for name, value in net.state_dict().items()}
    return {"net": state, "weights": seen, "strategy": frozen(balancer.strategy.state_dict())}


def test_with_the_gramian_of_a_part(tmp_path) -> None:
    assert_equal_ranks_and(run_on_ranks(tmp_path, train_on_part), train_on_part(None))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_parameter_that_only_the_part_of_one_rank_reaches(rank: int, tmp_path) -> None:
    one, other = run_on_ranks(tmp_path, train_on_part, rank)
    assert one["weights"] == other["weights"] != train_on_part(None)["weights"]
    assert all(torch.equal(value, other["net"][name]) for name, value in one["net"].items())


def train_on_representation(rank: int | None, wrap: bool) -> dict:
    net = SharedNet()
    net.spare.requires_grad_(False)
    balancer = Balancer("mgda_ub", net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    seen = []
    for step in range(STEPS):
        optimizer.zero_grad()
        values, features = outcome(net, half(batch(step), rank))
        balancer(values, representation=features).backward()
        if wrap:  # what a user does who averages gradients himself
            for parameter in net.parameters():
                if parameter.grad is not None:
                    torch.distributed.all_reduce(parameter.grad)
                    parameter.grad /= 2
        optimizer.step()
        seen.append(dict(balancer.weights))
    return {"net": dict(net.state_dict()), "weights": seen, "strategy": None}


def test_gradients_of_the_representation(tmp_path) -> None:
    found = run_on_ranks(tmp_path, train_on_representation, True)
    assert_equal_ranks_and(found, train_on_representation(None, False))


def absent(rank: int, spec: str, wrap: dict) -> dict:
    """The first rank has no label of one task, the second none of another, and at last none at all."""
    model, net = network(wrap)
    balancer = Balancer(spec, net, tasks=TASKS)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    seen = []
    for step, missing in enumerate([("depth", "normal"), ("normal", "depth"), ((), TASKS)]):
        optimizer.zero_grad()
        values = losses(model, half(batch(step), rank))
        balancer({t: None if t in missing[rank] else v for t, v in values.items()}).backward()
        optimizer.step()
        seen.append(dict(balancer.weights))
    return {"net": dict(net.state_dict()), "weights": seen, "strategy": frozen(balancer.strategy.state_dict())}


@pytest.mark.parametrize("spec", ["uw", "mgda", "graddrop"])
def test_a_task_that_one_rank_lacks(spec: str, tmp_path) -> None:
    wrap = {"find_unused_parameters": True}
    one, other = run_on_ranks(tmp_path, absent, spec, wrap)
    assert one["weights"] == other["weights"]
    assert one["strategy"] == other["strategy"]
    assert all(torch.equal(value, other["net"][name]) for name, value in one["net"].items())
    if spec != "graddrop":
        assert all(weights.keys() == set(TASKS) for weights in one["weights"])


def nowhere(rank: int) -> str:
    net = SharedNet()
    with pytest.raises(UsageError) as caught:
        Balancer("mgda", net, tasks=TASKS)(dict.fromkeys(TASKS))
    return str(caught.value)


def test_a_batch_without_any_loss(tmp_path) -> None:
    assert run_on_ranks(tmp_path, nowhere) == ["no task has a loss in this batch, on any rank: skip its step."] * 2


def faulty(rank: int, spec: str, policy: str, what: str) -> list:
    model, net = network({"find_unused_parameters": True})
    balancer = Balancer(spec, net, nonfinite=policy, patience=2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    found: list = []
    for step in range(3):
        optimizer.zero_grad()
        values = losses(model, half(batch(step), rank))
        if step > 0 and rank == 1:
            if what == "loss":
                values["depth"] = values["depth"] * float("nan")
            else:  # the slope of a root at zero
                values["depth"] = values["depth"] + (0 * net.encoder[0].weight).sum().sqrt()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                balancer(values).backward()
            except NotFiniteError as error:
                found.append(str(error))
                break
        found.append((balancer.skipped, sorted(balancer.weights), [str(warning.message) for warning in caught]))
        found.append(frozen({name: p.grad for name, p in net.named_parameters()}))
        optimizer.step()
    return found


@pytest.mark.parametrize("policy", ["skip", "drop_task"])
@pytest.mark.parametrize(
    ("spec", "what"),
    [("uw", "loss"), ("pcgrad", "loss"), ("graddrop", "loss"), ("pcgrad", "gradient"), ("graddrop", "gradient")],
)
def test_what_is_not_finite_on_one_rank_concerns_all(spec: str, what: str, policy: str, tmp_path) -> None:
    one, other = run_on_ranks(tmp_path, faulty, spec, policy, what)
    assert one == other
    assert one[2][0] is (policy == "skip")
    assert f"the {what} of task 'depth' is not finite" in one[2][2][0]
    assert "the 2nd such step in a row" in one[-1]


def other_model(rank: int) -> str:
    net = nn.Linear(2, 2 + rank)
    with pytest.raises(UsageError) as caught:
        Balancer("mgda", net)({"a": net(torch.ones(1, 2)).sum(), "b": net(torch.ones(1, 2)).sum()})
    return str(caught.value)


def test_different_models_are_noticed(tmp_path) -> None:
    for message in run_on_ranks(tmp_path, other_model):
        assert "the ranks found different parameters" in message


def sharded(rank: int) -> tuple[str, bool]:
    net = SharedNet()
    fully_shard(net.encoder)
    for spec in ("mgda", "graddrop", "sam"):
        with pytest.raises(UsageError) as caught:
            Balancer(spec, net)(losses(net, batch()), again=lambda: losses(net, batch()))
    Balancer("uw", net)(losses(net, half(batch(), rank))).backward()
    return str(caught.value), all(p.grad is not None for p in net.encoder.parameters())


def test_sharded_parameters_are_refused_unless_losses_are_weighed(tmp_path) -> None:
    for message, has_gradients in run_on_ranks(tmp_path, sharded):
        assert "which a model under FSDP does not keep: use DistributedDataParallel" in message
        assert has_gradients
