"""Models with experts: gates, experts and who shares them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtobal import models
from mtobal.errors import UsageError
from mtobal.gradients.partition import find_partition
from mtobal.models.base import MultiTaskModel
from mtobal.models.dselect_k import DSelectKGate, smooth_step
from mtobal.models.dtrn import TransformerLayer
from mtobal.models.experts import Gate, network
from mtobal.models.home import SelfGate
from mtobal.models.ple import cut
from mtobal.tasks import Classification, Depth, Normals, Regression, Segmentation, Task

LABELS: tuple[Task, ...] = (
    Classification("left", num_classes=2),
    Regression("middle"),
    Classification("right", num_classes=3),
)
MAPS: tuple[Task, ...] = (Segmentation("segmentation", num_classes=13), Depth("depth"), Normals("normals"))
MLP = {"base_options": {"hidden": [8, 6]}}
OPTIONS: dict[str, dict[str, Any]] = {
    "cgc": MLP,
    "dselect_k": MLP,
    "dtrn": {"width": 4, "tower": 8},
    "home": {"features": 6, "shared_experts": 1, "group_experts": 1},
    "mmoe": MLP,
    "ple": MLP,
}
SMALL_MAPS = {"base": "deeplab", "base_options": {"depth": 18, "width": 2, "decoder_channels": 2}}


def build(name: str, tasks: tuple[Task, ...] = LABELS, **options: Any) -> MultiTaskModel:
    torch.manual_seed(0)
    shape = (2, 4, 3) if name == "dtrn" else (5,)
    return models.build(name, shape, tasks, **OPTIONS[name] | options).double()


def batch(name: str, size: int = 7) -> Tensor:
    shape = (2, 4, 3) if name == "dtrn" else (5,)
    return torch.randn(size, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def reached(outputs: dict[str, Tensor], module: nn.Module) -> set[str]:
    """Return the tasks whose output depends on a module's parameters."""
    parameters = list(module.parameters())
    return {
        task
        for task, output in outputs.items()
        if any(
            gradient is not None
            for gradient in torch.autograd.grad(output.sum(), parameters, retain_graph=True, allow_unused=True)
        )
    }


def assert_equal_outputs(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for task, output in expected.items():
        torch.testing.assert_close(found[task], output)


@pytest.mark.parametrize("name", ["cgc", "dselect_k", "home", "mmoe", "ple"])
def test_gates_sum_to_one(name: str) -> None:
    model = build(name)
    gates = [part for part in model.modules() if isinstance(part, Gate | DSelectKGate)]
    weights: list[Tensor] = []
    for gate in gates:
        gate.register_forward_hook(lambda _module, _inputs, output: weights.append(output))
    model(batch(name))
    assert len(weights) == len(gates)
    for one in weights:
        assert (one >= 0).all()
        torch.testing.assert_close(one.sum(dim=1), torch.ones_like(one[:, 0]))


@pytest.mark.parametrize("experts", [1, 3])
def test_self_gates_are_a_sigmoid_of_one_expert_and_a_softmax_of_several(experts: int) -> None:
    weights = SelfGate(5, experts).double()(batch("home"))
    assert (weights > 0).all()
    if experts == 1:
        assert (weights < 1).all()
    else:
        torch.testing.assert_close(weights.sum(dim=1), torch.ones_like(weights[:, 0]))


def permute(experts: nn.ModuleList, gates: nn.ModuleDict, order: list[int], offset: int = 0) -> None:
    """Put experts, which stand in the gates from a place on, into another order."""
    kept = list(experts)
    for place, source in enumerate(order):
        experts[place] = kept[source]
    for gate in gates.values():
        assert isinstance(gate, Gate)
        for parameter in gate.linear.parameters():
            whole = list(range(offset)) + [offset + source for source in order]
            parameter.data = parameter.data[whole + list(range(len(whole), len(parameter)))]


@pytest.mark.parametrize("name", ["cgc", "mmoe"])
def test_the_order_of_experts_changes_nothing(name: str) -> None:
    model = build(name, **({"shared_experts": 3} if name == "cgc" else {"experts": 3}))
    expected = model(batch(name))
    if isinstance(model, models.CGC):
        permute(model.level.shared, model.level.gates, [2, 0, 1], offset=2)
    else:
        permute(model.experts, model.gates, [2, 0, 1])
    assert_equal_outputs(model(batch(name)), expected)


def test_with_one_expert_a_mixture_is_hard_sharing() -> None:
    model = build("mmoe", experts=1)
    hard = models.HardSharing(model.experts[0], dict(model.tail.decoders.items()))
    outputs = model(batch("mmoe"))
    assert_equal_outputs(outputs, hard(batch("mmoe")))
    for gate in model.gates.values():
        gradients = torch.autograd.grad(
            torch.cat(list(outputs.values()), dim=1).square().sum(), list(gate.parameters()), retain_graph=True
        )
        assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("width", [0.3, 1.0, 4.0])
def test_the_smooth_step_is_a_cubic_that_joins_its_ends_smoothly(width: float) -> None:
    inputs = torch.linspace(-width, width, 4001, dtype=torch.float64, requires_grad=True)
    steps = smooth_step(inputs, width)
    inside = inputs.abs() < width / 2
    cubic = -2 * inputs**3 / width**3 + 3 * inputs / (2 * width) + 0.5
    torch.testing.assert_close(steps[inside], cubic[inside])
    assert (steps[inputs <= -width / 2] == 0).all()
    assert (steps[inputs >= width / 2] == 1).all()
    torch.testing.assert_close(steps + steps.flip(0), torch.ones_like(steps))
    (slopes,) = torch.autograd.grad(steps.sum(), inputs)
    assert (slopes >= 0).all()
    assert slopes.max() == pytest.approx(1.5 / width)
    assert slopes.diff().abs().max() < 0.01 / width  # the second derivative is at most 6 / width^2


def write(gate: DSelectKGate, numbers: list[int]) -> None:
    """Let each selector write a number, far from any doubt."""
    bits = gate.codes.shape[1]
    written = [[float(number >> bit & 1) for bit in range(bits)] for number in numbers]
    gate.bits.weight.data.zero_()
    gate.bits.bias.data = gate.width * (2 * torch.tensor(written, dtype=torch.float64) - 1).flatten()


@pytest.mark.parametrize(("experts", "k"), [(2, 1), (4, 2), (5, 2), (6, 3), (8, 3)])
def test_decided_selectors_choose_exactly_k_experts(experts: int, k: int) -> None:
    gate = DSelectKGate(5, experts, k, width=1.0, entropy=1e-6).double()
    chosen = [(experts - 1 - 2 * selector) % experts for selector in range(k)]
    write(gate, chosen)
    weights = gate(batch("dselect_k"))
    assert [set(row.nonzero().flatten().tolist()) for row in weights] == [set(chosen)] * len(weights)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones_like(weights[:, 0]))


@pytest.mark.parametrize("experts", [3, 4, 5])
def test_selectors_start_between_all_experts(experts: int) -> None:
    torch.manual_seed(0)
    gate = DSelectKGate(5, experts, 2, width=1.0, entropy=1e-6).double()
    codes = 2 ** gate.codes.shape[1]
    selectors = gate.selectors(batch("dselect_k"))
    torch.testing.assert_close(selectors, torch.full_like(selectors, 1 / codes), atol=0.1, rtol=0)


def test_the_penalty_is_the_entropy_and_the_mass_on_codes_without_an_expert() -> None:
    torch.manual_seed(0)
    seen = batch("dselect_k")
    gate = DSelectKGate(5, 4, 2, width=1.0, entropy=0.3).double()
    selected = gate.selectors(seen)
    entropy = torch.special.entr(selected).sum(dim=(1, 2)).mean()
    torch.testing.assert_close(gate.penalty(seen), 0.3 * entropy, rtol=1e-4, atol=0.0)

    gate = DSelectKGate(5, 3, 2, width=1.0, entropy=0.0).double()
    expected = (1 / gate.selectors(seen).sum(dim=2) - 1).sum(dim=1).mean()
    torch.testing.assert_close(gate.penalty(seen), expected, rtol=1e-4, atol=0.0)
    before = gate.selectors(seen).sum(dim=2).min()
    optimizer = torch.optim.SGD(gate.parameters(), lr=0.02)
    for _ in range(20):
        optimizer.zero_grad()
        gate.penalty(seen).backward()
        optimizer.step()
    assert gate.selectors(seen).sum(dim=2).min() > before + 0.1

    write(gate, [0, 2])
    assert not gate.penalty(seen).any()
    write(gate, [3, 3])  # which name no expert: bad, but no NaN
    assert not gate(seen).any()
    penalty = gate.penalty(seen)
    penalty.backward()
    assert penalty > 1e5
    assert all(parameter.grad.isfinite().all() for parameter in gate.bits.parameters())


def test_other_models_have_no_penalty_and_selecting_gates_one_a_task() -> None:
    assert build("mmoe").penalty(batch("mmoe")) == {}
    model = build("dselect_k", experts=3)
    penalties = model.penalty(batch("dselect_k"))
    assert tuple(penalties) == model.tasks
    for task, penalty in penalties.items():
        assert reached({task: penalty}, model.gates[task]) == {task}
        assert not reached({task: penalty}, model.experts)
    assert tuple(model.penalty({"right": batch("dselect_k")})) == ("right",)


def learn(model: MultiTaskModel, inputs: Tensor, steps: int, lr: float) -> list[float]:
    generator = torch.Generator().manual_seed(2)
    targets = {
        task.name: torch.randint(task.out_features, (len(inputs),), generator=generator)
        if isinstance(task, Classification)
        else torch.randn(len(inputs), 1, dtype=torch.float64, generator=generator)
        for task in LABELS
    }
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    history = []
    for _ in range(steps):
        optimizer.zero_grad()
        outputs, penalties = model(inputs), model.penalty(inputs)
        losses = {task.name: task.loss(outputs[task.name], targets[task.name]) for task in LABELS}
        history.append(sum(float(loss.detach()) for loss in losses.values()))
        sum(losses.values(), start=sum(penalties.values(), start=torch.zeros(()))).backward()
        optimizer.step()
    return history


@pytest.mark.parametrize("name", OPTIONS)
def test_every_model_learns_a_batch_by_heart(name: str) -> None:
    history = learn(build(name), batch(name), steps=30, lr=0.05)
    assert history[-1] < 0.2 * history[0]


def test_trained_selectors_use_at_most_k_experts() -> None:
    model = build("dselect_k", experts=5, k=2, entropy=0.1)
    learn(model, batch("dselect_k"), steps=60, lr=0.05)
    for gate in model.gates.values():
        weights = gate(batch("dselect_k"))
        counts = (weights > 0).sum(dim=1)
        assert counts.max() <= 2
        assert counts.min() >= 1
        torch.testing.assert_close(weights.sum(dim=1), torch.ones_like(weights[:, 0]))


@pytest.mark.parametrize("base", ["hard_sharing", "resnet"])
def test_layered_extraction_with_one_level_is_customised_gate_control(base: str) -> None:
    built = []
    for name, options in (("cgc", {}), ("ple", {"levels": 1})):
        torch.manual_seed(0)
        small = {"width": 2} if base == "resnet" else {"channels": [2], "features": 3}
        model = models.build(name, (1, 16, 16), LABELS, base=base, base_options=small, **options)
        built.append(model.double().eval())
    inputs = torch.rand(2, 1, 16, 16, dtype=torch.float64)
    assert_equal_outputs(built[1](inputs), built[0](inputs))


@pytest.mark.parametrize(
    ("base", "shape", "options", "stages"),
    [
        ("cifar_pcgrad", (3, 8, 8), {"channels": 2, "features": 4}, None),
        ("deeplab", (3, 32, 32), {"depth": 18, "width": 2}, 5),
        ("hard_sharing", (1, 8, 8), {"channels": [2, 3], "features": 4}, 3),
        ("lenet", (1, 20, 20), {"features": 4}, None),
        ("mlp", (5,), {"hidden": [8, 6, 4]}, 3),
        ("office_resnet", (3, 32, 32), {"width": 2, "features": 4}, None),
        ("resnet", (3, 32, 32), {"width": 2}, 5),
    ],
)
def test_the_parts_of_a_cut_encoder_are_the_encoder(
    base: str, shape: tuple[int, ...], options: dict[str, Any], stages: int | None
) -> None:
    encoder = network(base, options, shape)([]).encoder.eval()
    inputs = torch.rand(2, *shape)
    for parts in range(1, 1 + (stages or 3)):
        cuts = cut(encoder, parts)
        assert len(cuts) == parts
        assert all(size(part) for part in cuts)
        torch.testing.assert_close(nn.Sequential(*cuts)(inputs), encoder(inputs))
    if stages is not None:
        with pytest.raises(UsageError, match=f"levels should be {stages} at most"):
            cut(encoder, stages + 1)


def test_the_first_parts_of_a_cut_encoder_get_what_is_left_over() -> None:
    encoder = network("mlp", {"hidden": [6] * 5}, (5,))([]).encoder
    assert [[len(part) // 2 for part in cut(encoder, parts)] for parts in (2, 3)] == [[3, 2], [2, 2, 1]]


@pytest.mark.parametrize("shared_stream", [True, False])
def test_only_a_shared_stream_carries_what_experts_of_a_task_found_to_others(shared_stream: bool) -> None:
    model = build("ple", shared_stream=shared_stream)
    outputs = model(batch("ple"))
    lower, upper = model.levels
    everyone = set(model.tasks)
    for task in model.tasks:
        assert reached(outputs, lower.own[task]) == (everyone if shared_stream else {task})
        assert reached(outputs, upper.own[task]) == {task}
    assert reached(outputs, lower.shared) == reached(outputs, upper.shared) == everyone


GROUPS = {"sides": ("left", "right"), "centre": ("middle",)}


def test_a_hierarchy_lets_no_task_reach_the_experts_of_another_group() -> None:
    model = build("home", groups=GROUPS)
    inputs = batch("home")
    outputs = model(inputs)
    for group, tasks in GROUPS.items():
        assert reached(outputs, model.group_experts[group]) == set(tasks)
        assert reached(outputs, model.meta_gates[group]) == set(tasks)
        by_group, of_all = model.meta(inputs)
        # On the first level only the mixture of all tasks reads every group.
        assert reached(by_group, model.meta_groups[group]) == {group}
        assert reached({"all": of_all}, model.meta_groups[group]) == {"all"}
    for task in model.tasks:
        assert reached(outputs, model.own[task]) == {task}
    assert reached(outputs, model.shared) == set(model.tasks)
    assert build("home", LABELS[:1], groups=GROUPS).groups == {"sides": ("left",)}
    assert build("home").groups == {"Classification": ("left", "right"), "Regression": ("middle",)}


@pytest.mark.parametrize(
    ("name", "tasks", "shape", "options"),
    [
        ("cgc", LABELS, (1, 8, 8), {"base_options": {"channels": [2], "features": 3}, "own_experts": 1}),
        ("cgc", MAPS, (3, 8, 8), {"base": "segnet", "base_options": {"filters": [2, 3]}}),
        ("dselect_k", MAPS, (3, 32, 32), {"experts": 3, **SMALL_MAPS}),
        ("dtrn", LABELS, (4, 3), {"width": 4, "layers": 2, "heads": 1}),
        ("home", LABELS, (5,), {"groups": GROUPS}),
        ("home", LABELS, (5,), {"groups": {"all": ("left", "middle", "right")}}),
        ("home", LABELS, (1, 8, 8), {"base_options": {"channels": [2], "features": 3}}),
        ("mmoe", MAPS, (3, 32, 32), {"gate_input": "flat", **SMALL_MAPS}),
        ("mmoe", LABELS, (1, 8, 8), {"base": "vit", "base_options": {"width": 4, "layers": 1, "heads": 1}}),
        ("ple", LABELS, (5,), {"levels": 3, "base_options": {"hidden": [8, 6, 4]}}),
        ("ple", LABELS, (5,), {"levels": 3, "shared_stream": False, "base_options": {"hidden": [8, 6, 4]}}),
        ("ple", MAPS, (3, 32, 32), {"levels": 5, "gate_input": "flat", **SMALL_MAPS}),
    ],
)
def test_parameters_belong_to_whom_the_model_says(
    name: str, tasks: tuple[Task, ...], shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    model = models.build(name, shape, tasks, **options)
    outputs = model(torch.rand(2, *shape))
    for task in tasks:
        expected = (2, task.out_features, *(shape[1:] if tasks is MAPS else ()))
        assert tuple(outputs[task.name].shape) == expected
    found = find_partition([output.square().sum() for output in outputs.values()], model.tasks, model)
    assert not found.unused
    for task in model.tasks:
        assert {id(p) for p in found.own[task].values()} == {id(p) for p in model.task_parameters(task)}
    shared = {id(p) for p in found.shared.values()}
    assert {id(p) for p in model.last_shared().parameters()} <= shared


@pytest.mark.parametrize("name", OPTIONS)
def test_every_task_may_have_inputs_of_its_own(name: str) -> None:
    model = build(name).eval()
    inputs = {"right": batch(name, 4), "left": batch(name, 3) + 1}
    outputs = model(inputs)
    assert set(outputs) == set(inputs)
    for task, output in outputs.items():
        torch.testing.assert_close(output, model(inputs[task])[task])


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "home"])
def test_without_batch_norms_training_and_evaluation_are_alike(name: str) -> None:
    model = build(name)
    in_training = model(batch(name))
    assert_equal_outputs(model.eval()(batch(name)), in_training)


SHARED: dict[str, Callable[[Any], list[nn.Module]]] = {
    "cgc": lambda model: [model.level.shared],
    "dselect_k": lambda model: [model.experts],
    "dtrn": lambda model: [model.items, model.hypernetwork, model.layers],
    "home": lambda model: [model.encoder, model.meta_shared, model.shared],
    "mmoe": lambda model: [model.experts],
    "ple": lambda model: [level.shared for level in model.levels],
}


@pytest.mark.parametrize("name", OPTIONS)
def test_under_one_seed_the_shared_part_starts_alike_for_any_tasks(name: str) -> None:
    starts = [nn.ModuleList(SHARED[name](build(name, tasks))) for tasks in (LABELS, LABELS[:1], LABELS[1:])]
    for other in starts[1:]:
        for parameter, first in zip(other.parameters(), starts[0].parameters(), strict=True):
            assert torch.equal(parameter, first)


def test_a_mixture_has_the_published_number_of_parameters() -> None:
    heads, trunk, image = 48_380_689, 23_508_032, 3 * 288 * 384
    with torch.device("meta"):
        model = models.build("mmoe", (3, 288, 384), MAPS, base="deeplab", experts=2, gate_input="flat")
    assert size(model) == 2 * trunk + 3 * 2 * (image + 1) + heads


def test_levels_on_a_resnet_are_its_stem_and_stages_with_gates_on_averages() -> None:
    with torch.device("meta"):
        model = models.build(
            "ple", (3, 288, 384), MAPS[1:2], levels=5, base="deeplab", own_experts=1, shared_experts=1
        )
    stages = (9_408 + 128, 215_808, 1_219_584, 7_098_368, 14_964_736)
    for level, expected in zip(model.levels, stages, strict=True):
        assert size(level.shared) == size(level.own["depth"]) == expected
    seen = [level.gates["depth"].linear.in_features for level in model.levels]
    assert seen == [3 * 4 * 4, 64, 256, 512, 1024]
    assert [level.shared_gate is None for level in model.levels] == [False] * 4 + [True]


def test_without_a_word_of_task_or_sequence_the_transformer_is_the_usual_one() -> None:
    torch.manual_seed(0)
    ours = TransformerLayer(8, 2).double()
    usual = nn.TransformerEncoderLayer(8, 2, 32, dropout=0.0, batch_first=True, dtype=torch.float64)
    usual.self_attn.load_state_dict(ours.attention.state_dict())
    usual.linear1.load_state_dict(ours.perceptron[0].state_dict())
    usual.linear2.load_state_dict(ours.perceptron[2].state_dict())
    items = torch.randn(3, 5, 8, dtype=torch.float64)
    ones, zeros = (value.expand(2, 3, 1, 8) for value in (items.new_ones(()), items.new_zeros(())))
    torch.testing.assert_close(ours(items, ones, zeros), usual(items))


def test_what_a_task_reads_from_sequences_depends_on_the_task_and_on_each_sequence() -> None:
    model = build("dtrn")
    inputs = batch("dtrn")
    with torch.no_grad():
        for bottom in model.bottoms.values():
            bottom.load_state_dict(model.bottoms["left"].state_dict())
        alike = model.encode(inputs)
        torch.testing.assert_close(alike["left"], alike["right"])
        model.bottoms["right"].embedding.add_(1.0)
        fields = (model.encode(inputs)["right"] - alike["left"]).reshape(len(inputs), 4, -1)
        model.hypernetwork.weight.zero_()
        same = model.encode(inputs[:, :1].expand_as(inputs))["left"]
    assert fields.abs().amax(dim=2).gt(1e-3).any(dim=0).all()
    assert same.isfinite().all()


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("mmoe", (5,), {"experts": 0}, "model 'mmoe': experts should be 1 or more, not 0"),
        ("mmoe", (5,), {"base": "mlpp"}, "unknown base 'mlpp': did you mean 'mlp'"),
        ("mmoe", (5,), {"base_options": {"hiden": [4]}}, "model 'mlp'.*did you mean 'hidden'"),
        ("mmoe", (5,), {"base_options": {"hidden": []}}, r"hidden should be sizes from 1, one a layer, not \[\]"),
        ("mmoe", (1, 8, 8), {"base": "mlp"}, r"MLPEncoder reads vectors .* not inputs of shape \(1, 8, 8\)"),
        ("mmoe", (5,), {"gate_input": "all"}, "gate_input should be one of 'pooled', 'flat'"),
        ("mmoe", (5,), {"base_options": {"hidden": [4, 0]}}, "model 'mlp': hidden should be 1 or more, not 0"),
        ("cgc", (5,), {"own_experts": 0}, "model 'cgc': own_experts should be 1 or more, not 0"),
        ("dselect_k", (5,), {"experts": 2, "k": 3}, "experts should be 3 or more for k=3, not 2"),
        ("dselect_k", (5,), {"experts": 1, "k": 1}, "experts should be 2 or more for k=1, not 1"),
        ("dselect_k", (5,), {"width": 0}, "width should be above 0"),
        ("dtrn", (5,), {}, r"dtrn reads sequences .* not inputs of shape \(5,\)"),
        ("dtrn", (4, 3), {"width": 5}, "width should be a multiple of heads, not 5 for 2"),
        ("home", (5,), {"groups": {"all": ("left", "right")}}, "each of the tasks left, middle, right once"),
        ("home", (3, 32, 32), SMALL_MAPS, "one vector a sample, not features of shape"),
        ("home", (5,), {"base_options": {"hidden": [4]}}, "name a base"),
        ("ple", (3, 32, 32), {"base": "segnet", "base_options": {"filters": [2]}}, "ple: a SegNet has no stages"),
    ],
)
def test_wrong_options_are_named(name: str, shape: tuple[int, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        models.build(name, shape, LABELS, **options)


def test_a_hierarchy_refuses_to_train_on_one_sample() -> None:
    model = build("home")
    with pytest.raises(UsageError, match="batches of two samples or more"):
        model(batch("home", 1))
    assert model.eval()(batch("home", 1))["left"].isfinite().all()
