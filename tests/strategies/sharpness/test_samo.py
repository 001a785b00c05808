from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtobal import Balancer
from mtobal.gradients import Landscape, Point
from mtobal.strategies import Composition, Step
from mtobal.strategies.sharpness import SAMO
from mtobal.strategies.sharpness.ball import ascent
from mtobal.strategies.sharpness.samo import Probe
from networks import TASKS, SharedNet, batch, losses, rows_alone
from strategies.sharpness.noisy import assert_close, closure_of, gradients, standstill

WIDTH = 96  # large enough for the Gramian not to copy the rows
ROW = 4 * WIDTH * WIDTH * 8  # bytes of one gradient of the trunk below


def peak(run: Callable[[], None]) -> int:
    """The most bytes that tensors held at a time, beyond those of the start."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def rows_of(spec: str, num_tasks: int) -> float:
    """The peak memory of a step, in gradients of the shared parameters."""
    torch.manual_seed(0)
    trunk = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))).double()
    heads = nn.ModuleList(nn.Linear(WIDTH, 1) for _ in range(num_tasks)).double()
    net, inputs = nn.ModuleList([trunk, heads]), torch.randn(2, WIDTH, dtype=torch.float64)

    def closure() -> dict[str, Tensor]:
        features = trunk(inputs)
        return {str(task): head(features).square().mean() for task, head in enumerate(heads)}

    balancer, optimizer = Balancer(spec, net, gradients="loop"), standstill(net)
    balancer.step(closure, optimizer)
    optimizer.zero_grad()
    return peak(lambda: balancer.step(closure, optimizer)) / ROW


@pytest.mark.parametrize(
    ("inner", "spec"),
    [
        ("ew", "samo"),
        ("ew", "samo(shared_direction=true, directions=2)"),
        ("cagrad", "cagrad+samo"),
        ("cagrad", "cagrad+samo(adaptive=true)"),
        ("cagrad", "cagrad+samo(local=exact)"),
    ],
)
def test_its_memory_above_the_aggregation_is_a_few_rows_whatever_the_number_of_tasks(
    inner: str, spec: str
) -> None:
    few, many = (rows_of(spec, tasks) - rows_of(inner, tasks) for tasks in (2, 10))
    assert few < 5
    assert many < few + 0.5


class Drawn(SAMO):
    """Remembers what it drew, and where it went."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.probes: list[list[Probe]] = []
        self.steps: list[dict[int, Tensor]] = []

    def _probes(self, landscape: Landscape, weights: list[float]) -> list[list[Probe]]:
        self.probes = super()._probes(landscape, weights)
        self.directions_drawn = [dict(self.noise(probed[0][0], landscape)) for probed in self.probes if probed]
        return self.probes

    def points(self, landscape: Landscape, step: Step, weights: Tensor) -> Iterator[Point]:
        for tasks, offsets in super().points(landscape, step, weights):
            self.steps.append(dict(offsets))
            yield tasks, offsets


def one_step(strategy: SAMO, net: nn.Module, run: Callable[[], dict[str, Tensor]] | None = None) -> Balancer:
    balancer = Balancer(Composition([strategy], "samo"), net)
    balancer.step(closure_of(net) if run is None else run, standstill(net))
    return balancer


def test_all_that_is_kept_of_an_estimate_is_a_seed_and_a_sign() -> None:
    strategy, net = Drawn(rho=0.05), SharedNet()
    one_step(strategy, net)
    assert [len(probed) for probed in strategy.probes] == [1, 1, 1]
    seeds, signs = zip(*(probed[0] for probed in strategy.probes), strict=True)
    assert len(set(seeds)) == len(TASKS)
    assert set(signs) <= {-1.0, 1.0}
    rows = rows_alone(net, batch())
    names = [name for name in dict(net.named_parameters()) if name.startswith("encoder")]
    for task, sign, drawn in zip(TASKS, signs, strategy.directions_drawn, strict=True):
        slope = sum((rows[task][name] * z).sum() for name, z in zip(names, drawn.values(), strict=True))
        assert sign == slope.sign()


def test_the_step_in_the_shared_parameters_and_in_the_head_has_length_rho() -> None:
    strategy, net = Drawn(rho=0.05), SharedNet()
    one_step(strategy, net)
    for step in strategy.steps:
        shared, head = list(step.values())[:4], list(step.values())[4:]
        for part in (shared, head):
            assert torch.cat([offset.flatten() for offset in part]).norm().item() == pytest.approx(0.05)


def test_each_layer_of_the_estimate_has_the_norm_of_that_layer_of_the_mean_gradient() -> None:
    """So all layers of a step with alpha=0 have their share of the length."""
    strategy, net = Drawn(rho=0.05, alpha=0.0), SharedNet()
    one_step(strategy, net)
    rows = rows_alone(net, batch())
    names = [name for name in dict(net.named_parameters()) if name.startswith("encoder")]
    mean = torch.stack([sum(rows[task][name] for task in TASKS).norm() / len(TASKS) for name in names])
    for step in strategy.steps:
        lengths = torch.stack([offset.norm() for offset in list(step.values())[: len(names)]])
        torch.testing.assert_close(lengths / lengths.norm(), mean / mean.norm())


def test_alpha_one_is_one_step_for_all_tasks() -> None:
    strategy, net = Drawn(rho=0.05, alpha=1.0), SharedNet()
    one_step(strategy, net)
    first, *others = [list(step.values())[:4] for step in strategy.steps]
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))
    assert strategy.directions_drawn == []


def test_exact_estimates_with_alpha_zero_are_the_steps_of_f_mtl_layer_by_layer() -> None:
    strategy, net = Drawn(rho=0.05, alpha=0.0, local="exact", layerwise=False), SharedNet()
    one_step(strategy, net)
    expected = SharedNet()
    Balancer("f_mtl(rho=0.05, adaptive=false)", expected).step(closure_of(expected), standstill(expected))
    assert_close(gradients(net), gradients(expected))


def test_a_shared_direction_is_drawn_once_and_has_a_sign_for_each_task() -> None:
    strategy, net = Drawn(rho=0.05, shared_direction=True), SharedNet()
    one_step(strategy, net)
    assert len({probed[0][0] for probed in strategy.probes}) == 1


def test_more_directions_come_nearer_to_the_exact_estimate() -> None:
    net = SharedNet()
    cosines = []
    for directions in (1, 200):
        estimated = Drawn(alpha=0.0, directions=directions, layerwise=False)
        exact = Drawn(alpha=0.0, local="exact", layerwise=False)
        for strategy in (estimated, exact):
            one_step(strategy, net)
        one, other = (
            torch.cat([offset.flatten() for offset in list(strategy.steps[0].values())[:4]])
            for strategy in (estimated, exact)
        )
        cosines.append(torch.cosine_similarity(one, other, dim=0).item())
    assert abs(cosines[0]) < 0.5 < 0.75 < cosines[1]


def test_a_slope_of_zero_leaves_the_mean_gradient_alone() -> None:
    """The official code divides zero by zero here."""
    strategy, net = Drawn(rho=0.05), SharedNet()

    def closure() -> dict[str, Tensor]:
        values = losses(net, batch())
        features = net.encoder(batch()[0])
        return {
            **values,
            "normal": net.heads["normal"](features.detach() * 0 + 1).square().mean() + 0 * features.sum(),
        }

    one_step(strategy, net, closure)
    assert strategy.probes[2][0][1] == 0.0
    alone = Drawn(rho=0.05, alpha=1.0)
    one_step(alone, net, closure)
    for found, expected in zip(list(strategy.steps[2].values())[:4], alone.steps[2].values(), strict=False):
        torch.testing.assert_close(found, expected)


def test_directions_differ_from_step_to_step_and_are_part_of_the_state() -> None:
    net, strategy = SharedNet(), Drawn(rho=0.05)
    balancer = one_step(strategy, net)
    saved = balancer.state_dict()
    first = strategy.probes
    balancer.step(closure_of(net), standstill(net))
    second = strategy.probes
    assert first != second
    resumed = Drawn(rho=0.05, seed=7)
    other = Balancer(Composition([resumed], "samo"), SharedNet())
    other.load_state_dict(saved)
    other.step(closure_of(other.model), standstill(other.model))
    assert resumed.probes == second


def test_the_probes_run_in_evaluation_mode() -> None:
    modes: list[bool] = []
    net = SharedNet()
    net.encoder.register_forward_hook(lambda *_: modes.append(net.encoder.training))
    one_step(SAMO(), net)
    assert modes == [True] + [False] * 6 + [True] * 3
    modes.clear()
    one_step(SAMO(probe="train"), net)
    assert all(modes)


def test_the_direction_is_clipped_and_the_heads_are_not() -> None:
    for inner in ("", "cagrad+", "mgda+", "trimmed_mean+"):
        net, free = SharedNet(), SharedNet()
        balancer = Balancer(f"{inner}samo(max_norm=0.01)", net)
        balancer.step(closure_of(net), standstill(net))
        Balancer(f"{inner}samo", free).step(closure_of(free), standstill(free))
        length = math.hypot(*(p.grad.norm().item() for p in net.encoder.parameters()))
        assert length == pytest.approx(0.01)
        ratios = [
            (p.grad / q.grad).flatten()
            for p, q in zip(net.encoder.parameters(), free.encoder.parameters(), strict=True)
        ]
        torch.testing.assert_close(torch.cat(ratios), torch.cat(ratios).mean().expand(len(torch.cat(ratios))))
        for one, other in zip(net.heads.parameters(), free.heads.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad)


def test_the_adaptive_step_does_not_depend_on_the_scale_of_the_parameters() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, gradient = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    step = ascent({0: gradient}, [weight], 0.1, adaptive=True)[0]
    assert (step / weight.abs()).norm().item() == pytest.approx(0.1)
    scaled = ascent({0: gradient / 8}, [weight * 8], 0.1, adaptive=True)[0]
    torch.testing.assert_close(scaled, step * 8)


def test_what_is_not_finite_moves_nothing() -> None:
    assert ascent({0: torch.tensor([math.nan, 1.0])}, [torch.zeros(2)], 1.0) == {}
    assert ascent({0: torch.zeros(2)}, [torch.ones(2)], 1.0)[0].tolist() == [0.0, 0.0]
