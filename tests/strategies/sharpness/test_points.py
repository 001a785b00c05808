"""What holds for every strategy that takes gradients at other points."""

from __future__ import annotations

import copy
import re
import warnings
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import mtobal
from mtobal import Balancer, UsageError
from mtobal.gradients import displaced
from mtobal.strategies import build
from networks import TASKS, SharedNet, batch, frozen, losses
from strategies.sharpness.noisy import SPECS, NoisyNet, assert_close, closure_of, gradients, standstill, traces

CARDS = mtobal.strategies.available()
every_spec = pytest.mark.parametrize("spec", SPECS)


class Stop(Exception):
    """Raised by a closure somewhere on the way."""


@every_spec
def test_it_leaves_no_trace_but_the_gradients(spec: str) -> None:
    net, plain = NoisyNet(), NoisyNet()
    net.encoder[1].eval()  # a module in a mode of its own
    plain.encoder[1].eval()
    torch.manual_seed(1)
    losses(plain, batch())
    expected = traces(plain)
    torch.manual_seed(1)
    Balancer(spec, net).step(closure_of(net), standstill(net))
    assert all(map(torch.equal, traces(net), expected))


@pytest.mark.parametrize(
    ("spec", "fatal"),
    [(spec, fatal) for spec in SPECS for fatal in (1, 2, 3) if fatal == 1 or not re.search(r"sam\b", spec)],
)
def test_an_exception_at_another_point_leaves_no_trace_at_all(spec: str, fatal: int) -> None:
    """In the first forward passes there, and after the backward passes of the ones before."""
    net = NoisyNet()
    balancer, calls, before = Balancer(spec, net), 0, []

    def closure() -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        if calls == 1 + fatal:
            assert not all(map(torch.equal, net.parameters(), before))
        values = losses(net, batch())
        if calls == 1:
            before.extend(traces(net))
        if calls == 1 + fatal:
            raise Stop
        return values

    with pytest.raises(Stop):
        balancer.step(closure, standstill(net))
    assert all(map(torch.equal, traces(net), before))
    assert gradients(net) == {}


class Counted(SharedNet):
    """Counts how often data runs forward, and how often gradients run back, through the encoder."""

    forwards = backwards = 0

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        self.forwards += 1
        inner = self.encoder[:2](inputs)
        if inner.requires_grad:
            inner.register_hook(self.count)
        features = self.encoder[2:](inner)
        return {task: head(features) for task, head in self.heads.items()}

    def count(self, gradient: Tensor) -> None:
        self.backwards += 1


@pytest.mark.parametrize(
    ("spec", "forwards", "backwards"),
    [
        ("sam", "2", "2"),
        ("cagrad+sam", "2", "1 + K"),
        ("samo", CARDS["samo"].forward_passes, CARDS["samo"].backward_passes),
        ("cagrad+samo", CARDS["samo"].forward_passes, CARDS["samo"].backward_passes),
        ("cagrad+samo(shared_direction=true)", "1 + 2 + K", "1 + K"),
        ("cagrad+samo(directions=3)", "1 + 6 * K + K", "1 + K"),
        ("cagrad+samo(alpha=1)", "1 + K", "1 + K"),
        ("cagrad+samo(local=exact)", "1 + K", "2 * K"),
        ("f_mtl", CARDS["f_mtl"].forward_passes, CARDS["f_mtl"].backward_passes),
        ("cagrad+f_mtl", CARDS["f_mtl"].forward_passes, CARDS["f_mtl"].backward_passes),
    ],
)
def test_passes_are_those_of_the_card(spec: str, forwards: str, backwards: str) -> None:
    net = Counted()
    Balancer(spec, net, gradients="loop").step(closure_of(net), standstill(net))
    texts = (("forwards", forwards), ("backwards", backwards))
    times = {name: eval(re.sub(r"(\d)K", r"\1 * K", text), {"K": len(TASKS)}) for name, text in texts}
    assert {"forwards": net.forwards, "backwards": net.backwards} == times


def test_the_card_of_sam_counts_the_passes_of_the_aggregation() -> None:
    assert (CARDS["sam"].forward_passes, CARDS["sam"].backward_passes) == ("2", "1 and those of the aggregation")


@every_spec
def test_loss_weights_are_factors_of_the_losses(spec: str) -> None:
    """For perturbation and aggregation alike; without a weighting that learns, which has its own."""
    spec = spec.removeprefix("uw+")
    factors = {"seg": 0.5, "depth": 3.0, "normal": 2.0}
    net, other = SharedNet(), SharedNet()
    weights = ", ".join(f"{task}: {factor}" for task, factor in factors.items())
    Balancer(f"static(weights={{{weights}}})+{spec}", net).step(closure_of(net), standstill(net))

    def scaled() -> dict[str, Tensor]:
        return {task: factors[task] * loss for task, loss in losses(other, batch()).items()}

    Balancer(spec, other).step(scaled, standstill(other))
    assert_close(gradients(net), gradients(other), rtol=1e-7)


@every_spec
def test_it_sees_the_masks_of_the_first_run(spec: str) -> None:
    """At distance zero, the gradients are those of the first run only if dropout repeats itself."""
    at_home = copy.deepcopy(build(spec))
    at_home.perturbation.rho = at_home.perturbation.rho_head = 0.0
    alone = "ew" if "+" not in spec else spec.rpartition("+")[0]
    net, other = NoisyNet(), NoisyNet()
    for strategy, model in ((at_home, net), (alone, other)):
        torch.manual_seed(5)
        Balancer(strategy, model).step(closure_of(model), standstill(model))
    if at_home.perturbation.keeps_clean and getattr(at_home.perturbation, "mode", "") in ("second", "each"):
        assert gradients(net).keys() == gradients(other).keys()  # two rows, of which one is zero
    else:
        assert_close(gradients(net), gradients(other))


@every_spec
def test_each_accumulated_batch_is_moved_and_aggregated_alone(spec: str) -> None:
    net, expected = SharedNet(), SharedNet()
    balancer, parts = Balancer(spec, net), [batch(seed) for seed in range(2)]
    for number, data in enumerate(parts):
        run = closure_of(net, data)
        if number == 0:
            with balancer.accumulating():
                (balancer(run(), again=run) / 2).backward()
        else:
            (balancer(run(), again=run) / 2).backward()
    alone = Balancer(spec, expected)
    total: dict[str, Tensor] = {}
    weighting = alone.strategy.loss_weighting
    if weighting is not None:
        weighting.update = lambda step: None  # they learn once, from both
    for data in parts:
        alone.step(closure_of(expected, data), standstill(expected))
        for name, gradient in gradients(expected).items():
            total[name] = total.get(name, 0) + gradient / 2
    assert_close(gradients(net), total)


@every_spec
def test_strategies_learn_once_from_accumulated_batches(spec: str) -> None:
    net, updates = SharedNet(), []
    balancer = Balancer(f"dwa+{spec.removeprefix('uw+')}", net)
    balancer.strategy.loss_weighting.update = updates.append
    for number in range(3):
        run = closure_of(net, batch(number))
        if number < 2:
            with balancer.accumulating():
                (balancer(run(), again=run) / 3).backward()
        else:
            (balancer(run(), again=run) / 3).backward()
    [step] = updates
    seen = [torch.stack(list(losses(net, batch(number)).values())).detach() for number in range(3)]
    torch.testing.assert_close(step.losses, torch.stack(seen).mean(0))


@every_spec
def test_mixed_precision_sees_the_moved_parameters(spec: str) -> None:
    """Autocast keeps the parameters that it has cast; around the whole step, it must not keep them."""
    inside, around = SharedNet(dtype=torch.float32), SharedNet(dtype=torch.float32)
    data = batch(dtype=torch.float32)
    spec = spec.replace("0.05", "0.5")  # well above the rounding of bfloat16

    def autocasted() -> dict[str, Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return losses(inside, data)

    Balancer(spec, inside).step(autocasted, standstill(inside))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        Balancer(spec, around).step(partial(losses, around, data), standstill(around))
    assert_close(gradients(around), gradients(inside), rtol=1e-6)
    plain = SharedNet(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        Balancer("ew", plain).step(partial(losses, plain, data), standstill(plain))
    assert not torch.allclose(plain.encoder[0].weight.grad, around.encoder[0].weight.grad, rtol=1e-2)


@every_spec
def test_another_loss_may_be_added_to_the_balanced_one(spec: str) -> None:
    """Its graph was built before the parameters moved, and is differentiated afterwards."""
    net, other = SharedNet(), SharedNet()
    run = closure_of(net)
    decay = torch.stack([parameter.square().sum() for parameter in net.parameters()]).sum()
    (Balancer(spec, net)(run(), again=run) + 0.1 * decay).backward()
    run = closure_of(other)
    Balancer(spec, other)(run(), again=run).backward()
    for (name, parameter), twin in zip(net.named_parameters(), other.parameters(), strict=True):
        expected = 0.2 * twin + (0 if twin.grad is None else twin.grad)
        torch.testing.assert_close(parameter.grad, expected.detach(), msg=name)


@every_spec
def test_gradients_of_zero_move_nothing_and_give_no_nan(spec: str) -> None:
    net = SharedNet()

    def flat() -> dict[str, Tensor]:
        return {task: 0 * loss for task, loss in losses(net, batch()).items()}

    Balancer(spec, net).step(flat, standstill(net))
    assert all(gradient.isfinite().all() for gradient in gradients(net).values())


@every_spec
def test_one_gradient_of_zero_gives_no_nan(spec: str) -> None:
    net = SharedNet()

    def closure() -> dict[str, Tensor]:
        values = losses(net, batch())
        return {**values, "depth": 0 * values["depth"] + 1}

    Balancer(spec, net).step(closure, standstill(net))
    assert all(gradient.isfinite().all() for gradient in gradients(net).values())


@every_spec
def test_an_overflow_under_a_loss_scale_reaches_the_scaler_and_teaches_nothing(spec: str) -> None:
    net = SharedNet()
    balancer = Balancer(spec, net)
    balancer.step(closure_of(net), standstill(net))
    state = frozen(balancer.state_dict())

    def broken() -> dict[str, Tensor]:
        values = losses(net, batch())
        weight = net.encoder[0].weight
        return {**values, "depth": values["depth"] + (weight - weight.detach()).abs().sqrt().sum()}

    before = traces(net)
    net.zero_grad()
    (1024 * balancer(broken(), again=broken)).backward()
    assert not all(gradient.isfinite().all() for gradient in gradients(net).values())
    assert frozen(balancer.state_dict()) == state
    assert all(map(torch.equal, traces(net), before))


@every_spec
def test_a_loss_that_is_not_finite_elsewhere_is_caught(spec: str) -> None:
    net, calls = SharedNet(), 0
    balancer = Balancer(spec, net)

    def closure() -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        values = losses(net, batch())
        return values if calls == 1 else {**values, "depth": values["depth"] * float("inf")}

    with pytest.warns(RuntimeWarning, match="task 'depth' is not finite"):
        balancer.step(closure, standstill(net))
    assert balancer.skipped
    assert gradients(net) == {}
    calls = 0
    balancer = Balancer(spec, net, nonfinite="drop_task")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        balancer.step(closure, standstill(net))
    assert tuple(balancer.head_weights) == ("seg", "normal")
    assert all(gradient.isfinite().all() for gradient in gradients(net).values())


def test_without_a_way_to_run_again_it_says_how_to_give_one() -> None:
    net = SharedNet()
    with pytest.raises(UsageError, match=r"again=closure.*balancer\.step\(closure, optimizer\)"):
        Balancer("samo", net)(losses(net, batch()))
    with pytest.raises(UsageError, match=r"again must be a function .* not a dict"):
        Balancer("samo", net)(losses(net, batch()), again=losses(net, batch()))


def test_another_batch_is_refused() -> None:
    net = SharedNet()

    def less() -> dict[str, Tensor]:
        values = losses(net, batch())
        del values["depth"]
        return values

    before = traces(net)
    with pytest.raises(UsageError, match="again gave no loss of depth"):
        Balancer("sam", net)(losses(net, batch()), again=less).backward()
    assert all(map(torch.equal, traces(net), before))


@pytest.mark.parametrize(
    ("build_it", "message"),
    [
        (lambda: build("sam+samo"), "'sam' and 'samo' both fill the place 'perturbation'"),
        (lambda: build("mgda_ub+samo"), "'samo' and 'mgda_ub' do not go together"),
        (lambda: build("moco+f_mtl(mode=each)"), "mix up what 'moco' remembers"),
        (lambda: build("samo(alpha=2)"), "alpha must lie between 0 and 1"),
        (lambda: build("samo(mu=0)"), "mu must be positive"),
        (lambda: build("samo(directions=0)"), "directions must be at least 1"),
        (lambda: build("samo(rho=-1)"), "rho must be finite and not negative"),
        (lambda: build("samo(max_norm=-1)"), "max_norm must not be negative"),
        (lambda: build("samo(local=exact, directions=2)"), "local=exact draws no directions"),
        (lambda: build("f_mtl(norm=joint, rho_head=1)"), "norm=joint has one radius"),
        (lambda: Balancer("mgda+sam", gradients="every(n=2)"), "without every"),
        (lambda: Balancer("mgda+sam", gradients="representation"), "choose auto, loop, ghost or batched"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_built(build_it, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_it()


def test_displaced_puts_back_what_it_has_moved_when_an_offset_fails() -> None:
    parameters = [nn.Parameter(torch.randn(3)) for _ in range(2)]
    before = [parameter.detach().clone() for parameter in parameters]
    with pytest.raises(RuntimeError), displaced(parameters, [(0, torch.ones(3)), (1, torch.ones(4))]):
        pass
    assert all(map(torch.equal, before, parameters))
