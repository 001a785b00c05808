from __future__ import annotations

import gc
import warnings
import weakref
from functools import partial

import pytest
import torch
from torch import nn

import mtobal
from mtobal import Balancer, UsageError
from mtobal.ops import Jacobian
from mtobal.strategies import Step, build
from networks import TASKS, SharedNet, batch, frozen, losses, outcome, rows_alone

CARDS = mtobal.strategies.available()
SPECS = [card.example for card in CARDS.values()]
SPECS += [
    "uw+pcgrad",
    "uw+mgda",
    "uw+excess_mtl",
    "uw+imtl",
    "static(weights={seg: 1, depth: 0.5, normal: 2})+mgda",
    "pcgrad(heads=weighted)",
    "uw+cagrad+samo",
    "mgda+sam",
    "pcgrad+f_mtl",
]
every_spec = pytest.mark.parametrize("spec", SPECS)


def at_home(spec: str) -> str:
    """The same strategy with gradients at the point where the parameters stand, and no further terms."""
    last = spec.rpartition("+")[2]
    place = CARDS[last].place if last in CARDS else ""
    options = {"perturbation": "(rho=0)", "regulariser": "(entropy=0, alignment=0)"}
    return spec + options.get(place, "")


def one_step(spec: object, net: nn.Module, data: object, **options: object) -> Balancer:
    balancer = Balancer(spec, net, **options)
    backward(balancer, net, data)
    return balancer


def backward(balancer: Balancer, net: nn.Module, data: object, missing: tuple[str, ...] = ()) -> None:
    """A whole step that moves nothing, so that the gradients can be looked at where they were taken."""

    def closure() -> tuple[dict, torch.Tensor]:
        values, features = outcome(net, data)
        return {task: None if task in missing else value for task, value in values.items()}, features

    balancer.step(closure, torch.optim.SGD(net.parameters(), lr=0.0))


def balanced(spec: str, net: nn.Module, data: object) -> torch.Tensor:
    """The balanced loss of a fresh balancer, in a loop that calls it itself."""
    balancer = Balancer(spec, net)
    balancer.look_ahead(partial(outcome, net, data), torch.optim.SGD(net.parameters(), lr=0.0))
    values, features = outcome(net, data)
    return balancer(values, representation=features, again=partial(outcome, net, data))


def is_sum(spec: str) -> bool:
    """Whether the direction is a weighted sum of the gradients, as all but a few that read the Jacobian."""
    return bool(one_step(spec, SharedNet(), batch()).weights)


@every_spec
def test_every_parameter_that_a_loss_reaches_gets_a_gradient(spec: str) -> None:
    """A head whose task the strategy gave no weight at all is the one that may stand still, and says so."""
    net = SharedNet()
    balancer = one_step(spec, net, batch())
    for name, parameter in net.named_parameters():
        if name.startswith("spare"):
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, name
            weight = balancer.head_weights[name.split(".")[1]] if name.startswith("heads") else 1.0
            assert (parameter.grad.abs().max() > 0) == (weight != 0), name


@pytest.mark.parametrize("spec", [spec for spec in SPECS if is_sum(spec)])
def test_the_written_gradient_is_the_weighted_sum_of_the_rows(spec: str) -> None:
    """And the logged weights are the ones that were applied."""
    net, data = SharedNet(), batch()
    balancer = one_step(at_home(spec), net, data)
    rows = rows_alone(net, data)
    assert tuple(balancer.weights) == tuple(balancer.head_weights) == TASKS
    for name, parameter in net.named_parameters():
        weights = balancer.weights if name.startswith("encoder") else balancer.head_weights
        parts = [weights[task] * rows[task][name] for task in TASKS if rows[task][name] is not None]
        if parts:
            torch.testing.assert_close(parameter.grad, sum(parts), rtol=1e-12, atol=1e-14)


@every_spec
def test_the_written_gradient_is_what_the_strategy_makes_of_the_rows(spec: str) -> None:
    net, data = SharedNet(), batch()
    one_step(at_home(spec), net, data)
    rows = rows_alone(net, data)
    names = [name for name, _ in net.named_parameters() if name.startswith("encoder")]
    jacobian = Jacobian.from_rows([[rows[task][name] for name in names] for task in TASKS], names)
    values, features = outcome(net, data)
    step = Step(TASKS, (0, 1, 2), torch.stack([value.detach() for value in values.values()]), features.detach())
    strategy = build(spec)
    Balancer(strategy, net).look_ahead(partial(outcome, net, data), torch.optim.SGD(net.parameters(), lr=0.0))
    weights = strategy.loss_weights(step)
    reads = "losses" if strategy.aggregation is None else strategy.aggregation.reads
    if reads == "jacobian":
        expected = strategy.aggregation_direction(jacobian, step, weights).blocks
    else:
        gramian = jacobian.gramian()
        if reads == "representation":
            parts = [torch.autograd.grad(value, features, retain_graph=True) for value in values.values()]
            gramian = Jacobian.from_rows(parts, ["features"]).gramian()
        expected = jacobian.combine(weights * strategy.aggregation_weights(gramian, step, weights))
    for name, block in zip(names, expected, strict=True):
        torch.testing.assert_close(net.get_parameter(name).grad.flatten(), block, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("spec", ["pcgrad", "mgda"])
def test_direction_strategies_follow_their_card_for_the_heads(spec: str) -> None:
    net, data = SharedNet(), batch()
    default = one_step(spec, net, data)
    raw = one_step(f"{spec}(heads=raw)", SharedNet(), data)
    weighted = one_step(f"{spec}(heads=weighted)", SharedNet(), data)
    assert raw.head_weights == dict.fromkeys(TASKS, 1.0)
    assert weighted.head_weights == weighted.weights
    assert default.head_weights == (raw if CARDS[spec].heads == "raw" else weighted).head_weights


def test_equal_weights_are_the_plain_sum() -> None:
    net, data = SharedNet(), batch()
    value = Balancer("ew", net)(losses(net, data))
    plain = sum(losses(net, data).values())
    torch.testing.assert_close(value.detach(), plain.detach())
    value.backward()
    expected = torch.autograd.grad(plain, net.encoder[0].weight)[0]
    torch.testing.assert_close(net.encoder[0].weight.grad, expected, rtol=1e-13, atol=0)


@every_spec
def test_gradients_accumulate_and_scale_like_those_of_any_loss(spec: str) -> None:
    """An ordinary factor on the loss (a loss scale, one over the accumulated batches) factors out."""
    net, data = SharedNet(), batch()
    one_step(spec, net, data)
    once = [p.grad.clone() for p in net.encoder.parameters()]
    other = SharedNet()
    (1024.0 * balanced(spec, other, data)).backward()
    for parameter, expected in zip(other.encoder.parameters(), once, strict=True):
        torch.testing.assert_close(parameter.grad, 1024.0 * expected, rtol=1e-11, atol=1e-12)
    third = SharedNet()
    for _ in range(2):  # a fresh balancer each time: no state in between
        (0.5 * balanced(spec, third, data)).backward()
    for parameter, expected in zip(third.encoder.parameters(), once, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec not in CARDS or not CARDS[spec].raises_losses])
def test_training_reduces_every_loss(spec: str) -> None:
    net, data = SharedNet(), batch()
    before = {task: loss.item() for task, loss in losses(net, data).items()}
    balancer = Balancer(spec, net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    for _ in range(150):
        balancer.step(partial(outcome, net, data), optimizer)
    after = {task: loss.item() for task, loss in losses(net, data).items()}
    assert all(after[task] < before[task] for task in TASKS), (before, after)


@every_spec
def test_a_resumed_run_equals_an_uninterrupted_one(spec: str, tmp_path) -> None:
    def train(net: nn.Module, balancer: Balancer, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for number in steps:
            balancer.step(partial(outcome, net, batch(number)), optimizer)

    whole = SharedNet()
    balancer = Balancer(spec, whole)
    optimizer = torch.optim.Adam(whole.parameters(), lr=0.01)
    train(whole, balancer, optimizer, range(10))

    first = SharedNet()
    balancer = Balancer(spec, first)
    optimizer = torch.optim.Adam(first.parameters(), lr=0.01)
    train(first, balancer, optimizer, range(5))
    torch.save((balancer.state_dict(), first.state_dict(), optimizer.state_dict()), tmp_path / "saved.pt")

    second = SharedNet(seed=1)
    resumed = Balancer(spec, second)
    optimizer = torch.optim.Adam(second.parameters(), lr=0.01)
    state, weights, moments = torch.load(tmp_path / "saved.pt", weights_only=True)
    resumed.load_state_dict(state)
    second.load_state_dict(weights)
    optimizer.load_state_dict(moments)
    train(second, resumed, optimizer, range(5, 10))
    for name, parameter in second.named_parameters():
        assert torch.equal(parameter, whole.get_parameter(name)), name


@every_spec
def test_a_task_missing_from_a_batch_sits_it_out(spec: str) -> None:
    net, data = SharedNet(), batch()
    balancer = Balancer(at_home(spec), net, tasks=TASKS)
    backward(balancer, net, data, missing=("depth",))
    assert tuple(balancer.head_weights) == ("seg", "normal")
    assert net.heads["depth"].weight.grad is None
    if balancer.weights:
        rows = rows_alone(net, data)
        name = "encoder.0.weight"
        expected = sum(balancer.weights[task] * rows[task][name] for task in ("seg", "normal"))
        torch.testing.assert_close(net.encoder[0].weight.grad, expected)
    # It comes back in the next batch, and its head is found then.
    backward(balancer, net, data)
    assert tuple(balancer.head_weights) == TASKS
    assert net.heads["depth"].weight.grad.abs().max() > 0
    assert set(balancer.partition.own["depth"]) == {"heads.depth.weight", "heads.depth.bias"}
    # Alone in a batch.
    backward(balancer, net, data, missing=("depth", "normal"))
    assert tuple(balancer.head_weights) == ("seg",)
    assert torch.isfinite(net.encoder[0].weight.grad).all()


def test_a_loss_without_valid_labels_sits_out_too() -> None:
    net, data = SharedNet(), batch()
    balancer = one_step("mgda", net, data)
    present = losses(net, data)
    present["depth"] = torch.zeros((), dtype=torch.float64)
    balancer(present).backward()
    assert tuple(balancer.weights) == ("seg", "normal")


def test_a_parameter_that_joins_later_is_found() -> None:
    class Gated(SharedNet):
        use_spare = False

        def forward(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            outputs = super().forward(inputs)
            if self.use_spare:
                outputs = {task: outputs[task] + self.spare(outputs[task]) for task in outputs}
            return outputs

    net, data = Gated(), batch()
    balancer = one_step("mgda", net, data)
    assert "spare.weight" in balancer.partition.unused
    net.use_spare = True
    net.zero_grad()
    balancer(losses(net, data)).backward()
    assert "spare.weight" in balancer.partition.shared
    rows = rows_alone(net, data)
    expected = sum(balancer.weights[task] * rows[task]["spare.weight"] for task in TASKS)
    torch.testing.assert_close(net.spare.weight.grad, expected)


def test_freezing_and_unfreezing_between_steps() -> None:
    net, data = SharedNet(), batch()
    net.encoder[0].requires_grad_(False)
    balancer = one_step("mgda", net, data)
    assert "encoder.0.weight" not in balancer.partition.parameters
    net.encoder[0].requires_grad_(True)
    net.zero_grad()
    balancer(losses(net, data)).backward()
    assert "encoder.0.weight" in balancer.partition.shared
    assert net.encoder[0].weight.grad.abs().max() > 0


def test_parameters_outside_of_the_model_are_trained_too() -> None:
    net, data = SharedNet(), batch()
    outside = Balancer("pcgrad", net.encoder)
    outside(losses(net, data)).backward()
    inside = SharedNet()
    one_step("pcgrad", inside, data)
    for name, parameter in net.named_parameters():
        other = inside.get_parameter(name)
        assert (parameter.grad is None) == (other.grad is None)
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, other.grad)


def test_without_a_model_every_leaf_is_a_parameter() -> None:
    point = torch.tensor([1.0, 2.0], requires_grad=True)
    balancer = Balancer("mgda")
    balancer({"a": point[0].square(), "b": (point[1] - 1).square() + point[0]}).backward()
    rows = torch.tensor([[2.0, 0.0], [1.0, 2.0]])
    torch.testing.assert_close(point.grad, mtobal.aggregate(rows, "mgda"))


def test_the_input_of_a_network_is_no_parameter() -> None:
    """A physics-informed loss differentiates by its input, which is a leaf as well."""
    net = SharedNet()
    inputs, targets = batch()
    inputs.requires_grad_(True)
    balancer = one_step("mgda", net, (inputs, targets))
    assert len(balancer.partition.parameters) == len(list(net.parameters()))
    assert inputs.grad is None


@every_spec
def test_without_grad_mode_it_is_the_plain_sum_and_nothing_is_learned(spec: str) -> None:
    net, data = SharedNet(), batch()
    balancer = one_step(spec, net, data)
    state = frozen(balancer.state_dict())
    weights = balancer.weights
    with torch.no_grad():
        value = balancer(losses(net, data))
    assert value.item() == pytest.approx(sum(loss.item() for loss in losses(net, data).values()))
    assert balancer.weights == weights
    assert frozen(balancer.state_dict()) == state


def test_a_gradient_that_overflows_changes_no_state() -> None:
    net, data = SharedNet(), batch()
    balancer = one_step("uw+pcgrad", net, data)
    state = frozen(balancer.state_dict())
    broken = losses(net, data)
    broken["depth"] = broken["depth"] + (net.encoder[0].weight - net.encoder[0].weight).sqrt().sum()
    (1024 * balancer(broken)).backward()  # as under a gradient scaler, which looks for the overflow itself
    assert balancer.weights == dict.fromkeys(TASKS, 1.0)
    assert not net.encoder[0].weight.grad.isfinite().all()
    assert frozen(balancer.state_dict()) == state


def test_the_graph_is_freed_after_the_backward_or_with_the_loss() -> None:
    net, data = SharedNet(), batch()
    balancer = Balancer("pcgrad", net)
    for backward in (True, False):
        features = net.encoder(data[0])
        alive = weakref.ref(features)
        total = balancer({task: net.heads[task](features).sum() for task in TASKS})
        del features
        if backward:
            total.backward()
        del total
        gc.collect()
        assert alive() is None


def test_a_second_backward_says_what_happened() -> None:
    net, data = SharedNet(), batch()
    for spec in ("ew", "pcgrad"):
        total = Balancer(spec, net)(losses(net, data))
        total.backward(retain_graph=True)
        with pytest.raises(UsageError, match="back-propagated before"):
            total.backward()


@pytest.mark.parametrize("spec", ["uw", "pcgrad", "graddrop", "sam"])
def test_hooks_of_parameters_run_where_there_is_no_gradient(spec: str) -> None:
    """Torch would call them with None: for an unused layer, an absent task, a batch that is kept."""
    gradients = []
    for hook in (lambda gradient: gradient.clamp(-1e3, 1e3), None):
        net, data = SharedNet(), batch()
        for parameter in net.parameters():
            if hook is not None:
                parameter.register_hook(hook)
        balancer = Balancer(spec, net, tasks=TASKS)

        def backward(balancer=balancer, net=net, data=data, **changed: torch.Tensor | None) -> None:
            def again() -> dict[str, torch.Tensor | None]:
                return {**losses(net, data), **changed}

            balancer(again(), again=again).backward()

        with balancer.accumulating():
            backward(depth=None)
        backward(depth=None)
        gradients.append([parameter.grad for parameter in net.parameters()])
        net.zero_grad()
        with pytest.warns(RuntimeWarning, match="skipped"):
            backward(depth=(0 * net.encoder[0].weight).sum() + float("nan"))
        assert all(parameter.grad is None for parameter in net.parameters())
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("gradients", ["loop", "ghost", "every(n=5)", "layers(names=[encoder])"])
def test_a_parameter_that_a_known_task_reaches_later_stays_shared(gradients: str) -> None:
    net, data = SharedNet(), batch()
    balancer = Balancer("mgda", net, gradients=gradients)
    for joins in (False, True, False):
        values = losses(net, data)
        if joins:
            values["depth"] = values["depth"] + net.heads["seg"](net.encoder(data[0])).square().mean()
        balancer(values).backward()
    assert "heads.seg.weight" in balancer.partition.shared


@every_spec
def test_a_further_loss_may_share_the_graph(spec: str) -> None:
    """As with any two losses, where the backward pass is asked to retain the graph."""
    net, data = SharedNet(), batch()
    balanced(spec, net, data).backward()
    net.encoder(data[0]).square().mean().backward()
    expected = [parameter.grad for parameter in net.parameters()]
    net.zero_grad()

    balancer = Balancer(spec, net)
    balancer.look_ahead(partial(outcome, net, data), torch.optim.SGD(net.parameters(), lr=0.0))
    values, features = outcome(net, data)
    total = balancer(values, representation=features, again=partial(outcome, net, data))
    (total + features.square().mean()).backward(retain_graph=True)
    torch.testing.assert_close([parameter.grad for parameter in net.parameters()], expected)


def test_autocast_around_the_balancer_does_not_reach_its_products() -> None:
    net, data = SharedNet(dtype=torch.float32), batch(dtype=torch.float32)
    spec = "mgda(normalization=l2)"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = losses(net, data)
        parameters = list(net.encoder.parameters())
        rows = [torch.autograd.grad(value, parameters, retain_graph=True) for value in values.values()]
        balancer = Balancer(spec, net)
        total = balancer(values)
        total.backward()
    assert total.dtype == torch.float32
    jacobian = torch.stack([torch.cat([part.double().flatten() for part in row]) for row in rows])
    expected = mtobal.weights(jacobian @ jacobian.T, spec)
    found = torch.tensor(list(balancer.weights.values()), dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_half_precision_losses_are_balanced_in_full_precision() -> None:
    net, data = SharedNet(dtype=torch.bfloat16), batch(dtype=torch.bfloat16)
    balancer = one_step("uw+pcgrad", net, data)
    assert all(p.grad.dtype == torch.bfloat16 for p in net.encoder.parameters())
    assert all(weight > 0 for weight in balancer.weights.values())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda full: {}, "expected the losses as a mapping"),
        (lambda full: list(full.values()), "got a list"),
        (lambda full: sum(full.values()), "got a tensor of shape"),
        (lambda full: {**full, "edges": full["seg"]}, "task 'edges' was not among the tasks of the first step"),
        (lambda full: {**full, "seg": 1.0}, "task 'seg' must be a scalar tensor, got a float"),
        (
            lambda full: {**full, "seg": full["seg"] * torch.ones(2)},
            r"task 'seg' must be a scalar tensor, got a ten",
        ),
        (lambda full: {**full, "seg": full["seg"].detach()}, "task 'seg' has no graph"),
        (lambda full: dict.fromkeys(full), "no task has a loss"),
    ],
)
@pytest.mark.parametrize("spec", ["uw", "pcgrad"])
def test_bad_losses_are_refused_and_nothing_is_lost(spec: str, make, message: str) -> None:
    net, data = SharedNet(), batch()
    balancer = one_step(spec, net, data)
    state = frozen(balancer.state_dict())
    gradients = [p.grad.clone() for p in net.encoder.parameters()]
    with pytest.raises(UsageError, match=message):
        balancer(make(losses(net, data)))
    assert frozen(balancer.state_dict()) == state
    assert all(torch.equal(p.grad, g) for p, g in zip(net.encoder.parameters(), gradients, strict=True))


def test_no_shared_parameter_is_an_error_for_gradients_only() -> None:
    nets = nn.ModuleDict({task: nn.Linear(2, 1) for task in ("a", "b")})

    def separate() -> dict[str, torch.Tensor]:
        return {task: net(torch.ones(1, 2)).sum() for task, net in nets.items()}

    Balancer("uw", nets)(separate()).backward()
    with pytest.raises(UsageError, match="no trainable parameter is reached by two of the losses a, b"):
        Balancer("mgda", nets)(separate())


def test_zero_gradients_are_no_error() -> None:
    net, data = SharedNet(), batch()
    for spec in ("mgda", "pcgrad", "mgda(normalization=l2)"):
        balancer = Balancer(spec, net)
        balancer({task: loss * 0 for task, loss in losses(net, data).items()}).backward()
        assert all(torch.isfinite(p.grad).all() for p in net.encoder.parameters())


def test_saved_state_of_another_strategy_or_other_tasks_is_refused() -> None:
    net, data = SharedNet(), batch()
    state = one_step("uw", net, data).state_dict()
    with pytest.raises(UsageError, match="belongs to strategy 'uw', not to 'pcgrad'"):
        Balancer("pcgrad", net).load_state_dict(state)
    with pytest.raises(UsageError, match="belongs to tasks"):
        Balancer("uw", net, tasks=["a", "b"]).load_state_dict(state)


def test_arguments_are_checked() -> None:
    with pytest.raises(UsageError, match=r"must be a torch\.nn\.Module"):
        Balancer("ew", [torch.ones(1)])
    with pytest.raises(UsageError, match="pass the model too"):
        Balancer("ew", shared="encoder")
    with pytest.raises(UsageError, match=r"'encodr': did you mean 'encoder'"):
        Balancer("ew", SharedNet(), shared="encodr")
    with pytest.raises(UsageError, match="a Linear holds no parameter of the model"):
        Balancer("ew", SharedNet(), shared=[nn.Linear(1, 1)])
    net, optimizer = SharedNet(), torch.optim.SGD([torch.ones(1)])
    values = losses(net, batch())
    for wrong in ((values, optimizer), (optimizer, lambda: values)):
        with pytest.raises(UsageError, match=r"expected balancer.step\(closure, optimizer\)"):
            Balancer("ew", net).step(*wrong)


def test_an_instance_is_used_as_it_is() -> None:
    strategy = build("uw(lr=0.5)")
    net = SharedNet()
    assert one_step(strategy, net, batch()).strategy is strategy


def test_no_warning_in_ordinary_use() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for spec in SPECS:
            one_step(spec, SharedNet(), batch())
