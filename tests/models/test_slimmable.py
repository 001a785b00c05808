"""The network of many widths: its slices, what they cost, how they are trained, calibrated and found."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mtobal import Balancer, models
from mtobal.errors import UsageError
from mtobal.models.decoders import ASPP
from mtobal.models.deeplab import DeepLab
from mtobal.models.hard_sharing import HardSharing
from mtobal.models.resnet import ResNet
from mtobal.models.sandwich import invariance_loss, sandwich_step
from mtobal.models.slimmable import Configuration, Slimmable
from mtobal.tasks import Classification, Depth, Segmentation, Task

DENSE: tuple[Task, ...] = (Segmentation("segmentation", num_classes=3), Depth("depth"))
LABELS: tuple[Task, ...] = tuple(Classification(name, num_classes=2) for name in ("left", "middle", "right"))
WIDTHS = (0.25, 0.5, 1.0)


def images(count: int = 2, size: int = 32, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def plain(width: int = 8, decoder_channels: int = 8) -> DeepLab:
    torch.manual_seed(0)
    encoder = ResNet(depth=18, width=width, dilated=True)
    return DeepLab(
        encoder, {task.name: ASPP(encoder.out_channels, task.out_features, decoder_channels) for task in DENSE}
    )


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def dense() -> Slimmable:
    network = plain()
    return Slimmable(network.encoder, dict(network.decoders), (3, 32, 32), WIDTHS)


def labels() -> Slimmable:
    torch.manual_seed(0)
    options = {"depth": 18, "width": 4, "decoder": "mlp", "decoder_channels": 8, "widths": WIDTHS}
    model = models.build("slimmable", (3, 32, 32), LABELS, **options)
    assert isinstance(model, Slimmable)
    return model


@pytest.fixture(scope="module")
def model() -> Slimmable:
    """For tests that leave it as it is."""
    return labels()


def choose(model: Slimmable, configuration: Configuration) -> None:
    model.configure(configuration.encoder, configuration.decoders)


def corner(name: str, big: Tensor, small: Tensor) -> Tensor:
    """The part of a weight that a smaller network has; pyramids read five scales, of each the first channels."""
    if name.endswith("project.0.0.weight"):
        scales = big[: len(small)].chunk(5, dim=1)
        return torch.cat([scale[:, : small.shape[1] // 5] for scale in scales], dim=1)
    return big[tuple(slice(side) for side in small.shape)]


@pytest.mark.parametrize("training", [True, False])
def test_the_widest_is_the_plain_network_bit_by_bit(training: bool) -> None:
    network, model = plain().train(training), dense().train(training)
    results = []
    for each in (network, model):
        torch.manual_seed(2)
        outputs = each(images())
        sum(output.square().sum() for output in outputs.values()).backward()
        results.append(outputs)
    for task, output in results[0].items():
        assert torch.equal(output, results[1][task])
    state = model.state_dict()
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name])
    gradients = dict(model.named_parameters())
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter.grad, gradients[name].grad)


@pytest.mark.parametrize(("encoder", "decoder"), [(0.5, 0.25), (0.25, 1.0), (1.0, 0.5)])
def test_a_slice_is_a_smaller_network_with_the_first_weights(encoder: float, decoder: float) -> None:
    model = without_dropout(dense().double())
    small = without_dropout(plain(width=int(8 * encoder), decoder_channels=int(8 * decoder)).double())
    own = small.state_dict()
    parameters = {name for name, _ in small.named_parameters()}
    whole = model.state_dict()
    small.load_state_dict(
        {name: corner(name, whole[name], value) if name in parameters else value for name, value in own.items()}
    )
    assert isinstance(model, Slimmable)
    model.configure(encoder, dict.fromkeys(model.tasks, decoder))
    inputs = images().double()
    outputs, expected = model(inputs), small(inputs)
    for task in model.tasks:
        torch.testing.assert_close(outputs[task], expected[task])
    sum(output.square().sum() for output in outputs.values()).backward()
    sum(output.square().sum() for output in expected.values()).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, parameter in small.named_parameters():
        inside = corner(name, gradients[name], parameter)
        torch.testing.assert_close(inside, parameter.grad)
        # Outside the slice there is no gradient.
        torch.testing.assert_close(gradients[name].square().sum(), inside.square().sum())
        assert gradients[name].count_nonzero() == inside.count_nonzero()


@pytest.mark.parametrize("build", [dense, labels])
def test_costs_are_the_multiply_adds_of_a_run(build: type[Slimmable]) -> None:
    model = build()
    widest = model.cost(model.widest)
    for configuration in (
        model.widest,
        model.narrowest,
        Configuration(0.5, dict(zip(model.tasks, (0.25, 1.0, 0.5), strict=False))),
    ):
        choose(model, configuration)
        counted = 0

        def count(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            nonlocal counted
            kernel = layer.weight[0, 0].numel()
            counted += output[0].numel() * inputs[0].shape[1] * kernel

        layers = [layer for layer in model.modules() if getattr(layer, "weight", None) is not None]
        layers = [layer for layer in layers if layer.weight.ndim > 1]
        handles = [layer.register_forward_hook(count) for layer in layers]
        with torch.no_grad(), FlopCounterMode(display=False) as flops:
            model(images())
        for handle in handles:
            handle.remove()
        assert model.cost(configuration) == counted
        assert 2 * 2 * model.cost(configuration) == flops.get_total_flops()  # of two images, in flops
    assert model.cost(model.widest) == widest
    assert model.configuration != model.widest


def test_costs_grow_with_every_width(model: Slimmable) -> None:
    for widths in itertools.product(WIDTHS, repeat=4):
        cost = model.cost(Configuration(widths[0], dict(zip(model.tasks, widths[1:], strict=True))))
        for place, wider in itertools.product(range(4), WIDTHS):
            if wider > widths[place]:
                changed = [*widths]
                changed[place] = wider
                assert cost < model.cost(
                    Configuration(changed[0], dict(zip(model.tasks, changed[1:], strict=True)))
                )


@pytest.mark.parametrize("preferences", [{"left": 3.0, "middle": 1.0, "right": 0.5}, {"right": 1.0}])
@pytest.mark.parametrize("share", [0.03, 0.3, 0.6, 1.0])
def test_the_search_keeps_the_budget_and_prefers_the_preferred(
    model: Slimmable, share: float, preferences: dict[str, float]
) -> None:
    lowest, highest = model.cost(model.narrowest), model.cost(model.widest)
    budget = round(lowest + share * (highest - lowest))
    found = model.search(budget, preferences)
    assert model.cost(found) <= budget
    for one, other in itertools.permutations(model.tasks, 2):
        if preferences.get(one, 0.0) >= preferences.get(other, 0.0):
            assert found.decoders[one] >= found.decoders[other]
    # What is left does not suffice for the next wider encoder.
    wider = [width for width in WIDTHS if width > found.encoder]
    assert not wider or model.cost(Configuration(wider[0], found.decoders)) > budget
    assert model.configuration == model.widest


def test_the_search_is_the_identity_where_all_fits_and_refuses_where_nothing_does(model: Slimmable) -> None:
    alike = dict.fromkeys(model.tasks, 1.0)
    assert model.search(model.cost(model.widest), alike) == model.widest
    assert model.search(model.cost(model.narrowest), alike) == model.narrowest
    lowest = model.cost(model.narrowest)
    with pytest.raises(UsageError, match=f"within 10 multiply-adds: the narrowest takes {lowest}"):
        model.search(10, alike)
    with pytest.raises(UsageError, match="unknown task 'lefft': did you mean 'left'"):
        model.search(10, {"lefft": 1.0})
    for wrong in ({}, {"left": 0.0}, {"left": -1.0, "right": 1.0}, {"left": float("nan")}):
        with pytest.raises(UsageError, match="a preference must not be negative, nor all zero"):
            model.search(10, wrong)


def test_a_score_decides_between_those_that_fit(model: Slimmable) -> None:
    budget = (model.cost(model.widest) + model.cost(model.narrowest)) // 2
    seen: list[Configuration] = []

    def score(configuration: Configuration) -> float:
        seen.append(configuration)
        return -abs(configuration.encoder - 0.25) - configuration.decoders["left"]

    found = model.search(budget, {"left": 1.0}, score)
    assert found == model.narrowest
    assert len(seen) > 3
    assert all(model.cost(configuration) <= budget for configuration in seen)


def test_every_width_is_drawn(model: Slimmable) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [model.sample(generator) for _ in range(40)]
    assert {each.encoder for each in drawn} == set(WIDTHS)
    for task in model.tasks:
        assert {each.decoders[task] for each in drawn} == set(WIDTHS)
    again = torch.Generator().manual_seed(0)
    assert drawn == [model.sample(again) for _ in range(40)]


def test_a_training_step_adds_up_all_configurations_and_the_distillation() -> None:
    model = without_dropout(labels().double())
    assert isinstance(model, Slimmable)
    model.configure(0.5)
    before = model.configuration
    inputs = images().double()

    def losses_of(outputs: dict[str, Tensor]) -> dict[str, Tensor | None]:
        return {task: None if task == "right" else output.square().mean() for task, output in outputs.items()}

    step = sandwich_step(model, inputs, losses_of, narrow=3, generator=torch.Generator().manual_seed(3))
    assert model.configuration == before
    generator = torch.Generator().manual_seed(3)
    configurations = [model.widest, model.narrowest, model.sample(generator), model.sample(generator)]
    expected: dict[str, list[Tensor]] = {"left": [], "middle": []}
    representations = []
    for configuration in configurations:
        choose(model, configuration)
        representations.append(model.encode(inputs))
        for task, loss in losses_of(model.decode(representations[-1], inputs)).items():
            if loss is not None:
                expected[task].append(loss)
    assert step.losses["right"] is None
    for task, losses in expected.items():
        torch.testing.assert_close(step.losses[task], torch.stack(losses).sum())
    distances = [invariance_loss(each, representations[0]) for each in representations[1:]]
    torch.testing.assert_close(step.distillation, torch.stack(distances).sum())
    assert step.distillation > 0


def test_the_gradient_of_the_distillation_comes_beside_the_balanced_one() -> None:
    model = without_dropout(labels().double())
    assert isinstance(model, Slimmable)
    inputs = images().double()
    parts = {}
    for part in ("distillation", "balanced", "both"):
        model.zero_grad()
        step = sandwich_step(
            model,
            inputs,
            lambda outputs: {task: output.square().mean() for task, output in outputs.items()},
            narrow=1,
        )
        if part != "balanced":
            step.distillation.backward(retain_graph=True)
        if part != "distillation":
            Balancer("pcgrad", model)(step.losses).backward()
        parts[part] = {name: p.grad for name, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        alone = parts["distillation"][name]
        assert (alone is None) == name.startswith("decoders")
        alone = torch.zeros_like(parameter) if alone is None else alone
        torch.testing.assert_close(parts["both"][name], parts["balanced"][name] + alone)


@pytest.mark.parametrize("gradients", ["ghost", "batched"])
def test_a_slice_has_the_same_balanced_gradient_however_it_is_taken(gradients: str) -> None:
    model = labels().double()
    model.configure(0.5, {"left": 0.25})
    inputs = images().double()
    found = []
    for each in ("loop", gradients):
        model.zero_grad()
        outputs = model(inputs)
        balancer = Balancer("pcgrad", model, gradients=each)
        balancer({task: (output - 1).square().mean() for task, output in outputs.items()}).backward()
        found.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(found[1], found[0])


def test_distillation_moves_the_narrow_encoder_alone() -> None:
    narrow = torch.zeros(2, 3, requires_grad=True)
    widest = torch.tensor([[1.0, 2.0, 3.0, 4.0]] * 2, requires_grad=True)
    loss = invariance_loss(narrow, widest)
    assert loss.item() == pytest.approx(14 / 3)
    loss.backward()
    assert widest.grad is None
    torch.testing.assert_close(narrow.grad, -widest.detach()[:, :3] / 3)


def test_training_on_many_widths_makes_narrow_ones_work() -> None:
    inputs = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    target = (inputs[:, 0] > 0).long()
    losses = {}
    for trained in ("widest", "all"):
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Linear(5, 16), nn.Tanh())
        heads = {task.name: nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 2)) for task in LABELS}
        model = Slimmable(encoder, heads, (5,), WIDTHS)
        generator = torch.Generator().manual_seed(0)
        balancer = Balancer("ew", model)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)

        def losses_of(outputs: dict[str, Tensor]) -> dict[str, Tensor]:
            return {task.name: task.loss(outputs[task.name], target) for task in LABELS}

        for _ in range(40):
            optimizer.zero_grad()
            if trained == "all":
                step = sandwich_step(model, inputs, losses_of, generator=generator)
                step.distillation.backward(retain_graph=True)
                balancer(step.losses).backward()
            else:
                balancer(losses_of(model(inputs))).backward()
            optimizer.step()
        for configuration in (model.widest, model.narrowest):
            choose(model, configuration)
            losses[trained, configuration.encoder] = sum(losses_of(model(inputs)).values()).item()
    assert max(losses["widest", 1.0], losses["all", 1.0]) < 0.05
    assert losses["all", 0.25] < 0.2 * losses["widest", 0.25]


def norms(model: Slimmable) -> Iterator[nn.BatchNorm2d]:
    return (module for module in model.modules() if isinstance(module, nn.BatchNorm2d))


def test_a_narrow_batch_norm_is_calibrated_before_it_is_used() -> None:
    model = labels().eval()
    batches = [images(4, seed=seed) for seed in range(3)]
    averages = [norm.running_mean.clone() for norm in norms(model)]
    model.configure(0.5, {"left": 0.25})
    with pytest.raises(UsageError, match=r"no statistics of its batch norms: call recalibrate\(batches\)"):
        model(batches[0])
    model.recalibrate(batches)
    outputs = model(batches[0])
    # The first norm sees the same channels at any width: means over batches of its inputs.
    first = model.encoder.bn1
    convolved = torch.stack([model.encoder.conv1(batch).mean(dim=(0, 2, 3)) for batch in batches]).mean(0)
    torch.testing.assert_close(first.means[first.slot, : len(convolved)], convolved)
    # Other widths of a decoder have batch norms of their own; the encoder's are known.
    model.configure()
    model(batches[0])
    for norm, average in zip(norms(model), averages, strict=True):
        assert torch.equal(norm.running_mean, average)
    model.configure(0.5, {"left": 0.25})
    for task, output in model(batches[0]).items():
        assert torch.equal(output, outputs[task])
    loaded = labels().eval()
    loaded.configure(0.5, {"left": 0.25})
    loaded.load_state_dict(copy.deepcopy(model.state_dict()))
    for task, output in loaded(batches[0]).items():
        assert torch.equal(output, outputs[task])
    model.train()
    model(batches[0])
    model.eval()
    with pytest.raises(UsageError, match="no statistics"):
        model(batches[0])


def test_narrow_training_leaves_the_running_averages_alone() -> None:
    model = dense()
    model.configure(0.5, {"depth": 0.25})
    model(images())
    assert all(norm.num_batches_tracked == 0 for norm in norms(model))
    model.configure()
    model(images())
    assert all(norm.num_batches_tracked == 1 for norm in norms(model))


def test_wrong_use_is_refused() -> None:
    model = labels()
    with pytest.raises(UsageError, match=r"a width should be one of \[0.25, 0.5, 1.0\], not 0.3"):
        model.configure(0.3)
    with pytest.raises(UsageError, match="unknown task 'lefft': did you mean 'left'"):
        model.configure(decoders={"lefft": 0.5})
    with pytest.raises(UsageError, match=r"call eval\(\) first"):
        model.recalibrate([images()])
    model.eval().configure(0.5)
    with pytest.raises(UsageError, match="two inputs or more"):
        model.recalibrate([images(1)])
    with pytest.raises(UsageError, match="expected batches of inputs, got none"):
        model.recalibrate([])
    for widths in ((), (0.5,), (0.0, 1.0), (0.5, 2.0)):
        with pytest.raises(UsageError, match="shares above 0, the largest 1"):
            Slimmable(nn.Linear(2, 2), {"left": nn.Linear(2, 2)}, (2,), widths)
    with pytest.raises(UsageError, match=r"made of Conv2d without groups, .* not of LayerNorm"):
        Slimmable(nn.LayerNorm(2), {"left": nn.Linear(2, 2)}, (2,))


def test_vectors_and_layers_without_batch_norm_will_do() -> None:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(5, 8), nn.Tanh())
    model = Slimmable(encoder, {"left": nn.Linear(8, 3)}, (5,), WIDTHS)
    assert isinstance(model, HardSharing)
    model.configure(0.5)
    inputs = torch.rand(4, 5)
    hidden = torch.tanh(inputs @ encoder[0].weight[:4].T + encoder[0].bias[:4])
    head = model.decoders["left"]
    torch.testing.assert_close(model.encode(inputs), hidden)
    torch.testing.assert_close(head(hidden), hidden @ head.weight[:, :4].T + head.bias)
    assert model.cost(model.configuration) == 5 * 4 + 4 * 3
