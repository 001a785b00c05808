"""SAMO: estimates, steps, gradients at the moved points and final gradients of every official trainer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from golden.adapters.seeds import seed
from golden.adapters.seeds.close import assert_equal
from golden.adapters.seeds.linear_net import (
    Batch,
    LinearNet,
    assert_heads,
    assert_written,
    flat,
    gradients,
    rows,
)
from golden.adapters.seeds.trainers import TrainersCAGrad, TrainersMGDA
from golden.records import Record, tensor
from mtobal.gradients import Landscape, Point
from mtobal.strategies import Composition, Step, Strategy, build
from mtobal.strategies.sharpness import SAMO

BY_TASK = ("eps_shared", "eps_head", "eps_head_raw_unnormalised", "sam_grad_shared_per_task")


class Recorded(SAMO):
    """SAMO with given directions, that remembers its slopes and steps."""

    def __init__(self, directions: list[dict[str, Any]], stale: dict[str, Any] | None, **options: Any) -> None:
        super().__init__(**options)
        self.given = directions
        self.stale = stale
        self.drawn: list[int] = []
        self.slopes: list[Tensor] = []
        self.steps: list[dict[int, Tensor]] = []

    def noise(self, seed: int, landscape: Landscape) -> Iterator[tuple[int, Tensor]]:
        if seed not in self.drawn:
            self.drawn.append(seed)
        given = self.given[self.drawn.index(seed)]
        return zip(landscape.shared, map(tensor, given.values()), strict=True)

    def _slopes(self, seed: int, landscape: Landscape) -> Tensor:
        self.slopes.append(super()._slopes(seed, landscape))
        return self.slopes[-1]

    def points(self, landscape: Landscape, step: Step, weights: Tensor) -> Iterator[Point]:
        if self.stale is not None:
            left = [tensor(gradient) for gradient in self.stale.values()]
            fresh = landscape.gradient
            landscape.gradient = lambda shares: {p: g + left[p] for p, g in fresh(shares).items()}
        for tasks, offsets in super().points(landscape, step, weights):
            self.steps.append(dict(offsets))
            yield tasks, offsets


@seed("samo")
def samo(record: Record) -> None:
    for case in record.values():
        if "hyper" not in case:
            not_restored(case)
            continue
        trainer = case["source"].split("/")[2].split()[0]
        net = LinearNet(len(Batch.of(case).targets))
        stale = None
        for step in case.get("steps", [{}]):
            one_step({**case, **step}, trainer, net, stale)
            if "steps" in case:
                advance(net, step["grad_final"], case["hyper"]["sgd_lr"])
                # This trainer does not clear the gradients of the step before.
                stale = step["grad_final"] if trainer == "cityscapes" else None


def not_restored(case: Record) -> None:
    """That trainer leaves the parameters at the moved point; ours are back after every case, bit by bit."""
    assert_equal(flat(case["shared_shift"]), flat(case["eps_last_task"]).tolist(), "shift")


def advance(net: LinearNet, gradients: dict[str, Any], rate: float) -> None:
    with torch.no_grad():
        for parameter, gradient in zip(net.parameters(), gradients.values(), strict=True):
            parameter -= rate * tensor(gradient)


def options_of(hyper: Record, trainer: str) -> dict[str, Any]:
    return {
        "rho": hyper["rho"],
        "alpha": 1.0 - hyper["beta"],
        "mu": hyper["zo_eps"],
        "adaptive": hyper.get("adaptive", False),
        "layerwise": trainer != "nyuv2",
        "normalize_heads": trainer != "quantum_chemistry",
    }


def aggregation_of(hyper: Record, num_tasks: int) -> tuple[list[Strategy], float, float]:
    """Return the aggregation, the trainer's factor on its direction, and the tolerance."""
    method = hyper.get("method", "lswithsamo").removesuffix("withsamo")
    if method == "ls":
        return [], num_tasks, 1e-10
    if method == "pcgrad":
        return build("pcgrad(heads=raw)").strategies, 1, 1e-10
    if method == "mgda":
        return [TrainersMGDA()], num_tasks**2, 1e-10
    if method == "cagrad":
        return [TrainersCAGrad(hyper["c"])], num_tasks, 1e-6
    assert method == "fairgrad"
    fair = build({"fairgrad": {"alpha": hyper.get("alpha", 2.0), "max_norm": 0.0, "heads": "raw"}})
    return fair.strategies, num_tasks, 1e-6


def one_step(case: Record, trainer: str, net: LinearNet, stale: dict[str, Any] | None = None) -> None:
    hyper, batch = case["hyper"], Batch.of(case)
    options = options_of(hyper, trainer)
    aggregation, factor, tolerance = aggregation_of(hyper, len(batch.targets))

    def strategy(**more: Any) -> Recorded:
        return Recorded(case["z"], stale, **options, **more)

    perturbation = strategy()
    shown = rows(net, batch, perturbation)
    for task in range(len(batch.targets)):
        at = {key: value[str(task)] for key, value in case.items() if key in BY_TASK}
        offsets = [step.flatten() for step in perturbation.steps[task].values()]
        assert_equal(torch.cat(offsets[:3]), flat(at["eps_shared"]).tolist(), "step")
        head = at.get("eps_head") or at["eps_head_raw_unnormalised"]
        assert_equal(torch.cat(offsets[3:]), flat(head).tolist(), "step of the head")
        expected = flat(at["sam_grad_shared_per_task"])
        assert_equal(shown[task], expected.tolist(), "gradient at the moved point")
    if "zo_grad" in case and options["alpha"] < 1:
        estimates = case["zo_grad"].values() if isinstance(case["zo_grad"], dict) else case["zo_grad"]
        for task, estimate in enumerate(estimates):
            drawn = flat(case["z"][task]) * perturbation.slopes[task][task]
            assert_equal(drawn, flat(estimate).tolist(), "estimate")

    # A trainer's factor comes before its clipping, which adds 1e-6 to the norm.
    perturbation = strategy(max_norm=hyper["max_norm"] / factor)
    gradients(net, batch, Composition([*aggregation, perturbation], "golden"))
    final = case.get("shared_grad_final_after_aggregation_and_clip") or case["grad_final"]
    assert_written(net, final, factor, 1e-6 if hyper["max_norm"] else tolerance)
    heads = case.get("head_grad") or [dict(list(final.items())[3:])]
    assert_heads(net, [value for head in heads for value in head.values()])
