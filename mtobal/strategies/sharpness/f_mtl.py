"""Task-based flat regions: each task's gradient at its own worst point nearby."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from mtobal.errors import UsageError
from mtobal.gradients import Landscape, Point, Row
from mtobal.ops import Jacobian
from mtobal.strategies.base import Aggregation, Direction, JacobianAggregation, Perturbation, Step, Strategy
from mtobal.strategies.card import Card
from mtobal.strategies.registry import register
from mtobal.strategies.sharpness.ball import ascent
from mtobal.strategies.sharpness.sam import check_radius

Mode = Literal["separate", "direct", "second", "each"]


@register("f_mtl")
class FMTL(Perturbation):
    r"""Move each task to its own worst point nearby, and aggregate what it loses and what it risks apart.

    Task i moves by ``rho g_i / ||g_i||`` in the shared parameters and by ``rho h_i / ||h_i||`` in its head, where
    it has the gradient ``s_i``. Its flatness ``f_i = s_i - g_i`` is a gradient of its own. Heads descend on their
    gradient at that point.

    Parameters
    ----------
    rho : float
        The distance in the shared parameters.
    rho_head : float, optional
        That in the head; by default the same.
    adaptive : bool
        Whether distances are measured relative to the parameters.
    norm : {"separate", "joint"}
        Whether shared parameters and head have a ball each, or one together, of radius `rho`.
    mode : {"separate", "direct", "second", "each"}
        What is aggregated by A: ``A(g) + A(f)``; ``A(s)``; ``A(A(g), A(f))``; or ``A`` of the K results of
        ``A(g_i, f_i)``. Without an aggregation all of them are the sum of the ``s_i``.
    """

    card = Card(
        summary="Takes each task's gradient at its own worst point nearby; aggregates losses and flatness apart.",
        when="When conflicts come from sharp minima and twice the backward passes are affordable. The radius must "
        "be tuned to the data set.",
        paper="Phan et al., Improving Multi-task Learning via Seeking Task-based Flat Regions, arXiv:2211.13723.",
        defaults_source="Separate aggregation and separate norms, as in the paper; rho=2 and adaptive=True as in "
        "the official code for NYUv2, Cityscapes and CelebA.",
        state="that of a second instance of the aggregation, for the flatness",
        scale="sum",
        degree=None,
    )
    forward_passes = "1 + K"
    backward_passes = "2K"

    def __init__(
        self,
        rho: float = 2.0,
        rho_head: float | None = None,
        adaptive: bool = True,
        norm: Literal["separate", "joint"] = "separate",
        mode: Mode = "separate",
    ) -> None:
        super().__init__()
        for radius in (rho, rho if rho_head is None else rho_head):
            check_radius("f_mtl", radius)
        if norm == "joint" and rho_head is not None:
            raise UsageError("f_mtl: norm=joint has one radius: leave rho_head out.")
        self.rho = rho
        self.rho_head = rho if rho_head is None else rho_head
        self.adaptive = adaptive
        self.norm = norm
        self.mode = mode
        self.keeps_clean = mode != "direct"
        self.flat: Aggregation | None = None
        self.pair: Aggregation | None = None

    def wrap(self, aggregation: Aggregation) -> None:
        super().wrap(aggregation)
        if self.mode == "each" and aggregation.card.state not in ("none", "a random generator"):
            raise UsageError(
                f"f_mtl: mode=each aggregates K + 1 times a step, and would mix up what {aggregation.card.name!r} "
                "remembers from step to step: choose another mode."
            )
        # What is remembered of losses, of flatness and of pairs must not mix.
        if self.mode in ("separate", "second"):
            self.flat = _sibling(aggregation, 1)
        if self.mode in ("second", "each"):
            self.pair = _sibling(aggregation, 2)

    @property
    def wrapped(self) -> list[Strategy]:
        return [aggregation for aggregation in (self.flat, self.pair) if aggregation is not None]

    def points(self, landscape: Landscape, step: Step, weights: Tensor) -> Iterator[Point]:
        for task, row in enumerate(landscape.gradients()):
            sign = math.copysign(1.0, float(weights[task]))
            yield (task,), self._offsets(row, landscape, landscape.own(task), sign)

    def _offsets(self, row: Row, landscape: Landscape, own: list[int], sign: float) -> Row:
        if self.norm == "joint":
            return ascent(row, landscape.parameters, sign * self.rho, adaptive=self.adaptive)
        head = {place: row[place] for place in own if place in row}
        shared = {place: gradient for place, gradient in row.items() if place not in head}
        return {
            **ascent(shared, landscape.parameters, sign * self.rho, adaptive=self.adaptive),
            **ascent(head, landscape.parameters, sign * self.rho_head, adaptive=self.adaptive),
        }

    def weights(self, aggregation: Aggregation, gramian: Tensor, step: Step) -> Tensor:
        count = len(step.active)
        if len(gramian) == count:
            return aggregation.weights(gramian, step)
        if self.mode == "each":
            assert self.pair is not None
            mix = torch.zeros(count, 2 * count, dtype=gramian.dtype)
            for task in range(count):
                rows = [task, count + task]
                mix[task, rows] = self.pair.weights(gramian[rows][:, rows], _pair(step, [task])).to(mix)
            return aggregation.weights(mix @ gramian @ mix.T, step).to(mix) @ mix
        assert self.flat is not None
        parts = [
            aggregation.weights(gramian[:count, :count], step).to(gramian),
            self.flat.weights(gramian[count:, count:], step).to(gramian),
        ]
        if self.pair is None:
            return torch.cat(parts)
        mix = torch.zeros(2, 2 * count, dtype=gramian.dtype)
        mix[0, :count], mix[1, count:] = parts
        outer: Tensor = self.pair.weights(mix @ gramian @ mix.T, _pair(step, range(count))).to(mix)
        return outer @ mix

    def direct(self, aggregation: JacobianAggregation, jacobian: Jacobian, step: Step) -> Direction:
        count = len(step.active)
        if len(jacobian.blocks[0]) == count:
            return aggregation.direct(jacobian, step)
        if self.mode == "each":
            pairs = [
                _direct(self.pair, jacobian.rows([task, count + task]), _pair(step, [task]))
                for task in range(count)
            ]
            return aggregation.direct(_joined(pairs, jacobian), step)
        losses = aggregation.direct(jacobian.rows(range(count)), step)
        flatness = _direct(self.flat, jacobian.rows(range(count, 2 * count)), step)
        if self.pair is None:
            blocks = [one + other for one, other in zip(losses.blocks, flatness.blocks, strict=True)]
        else:
            both = _joined([losses, flatness], jacobian)
            blocks = _direct(self.pair, both, _pair(step, range(count))).blocks
        return Direction(blocks, losses.weights)

    def update(self, step: Step) -> None:
        if self.flat is not None:
            self.flat.update(step)
        if self.pair is not None:
            self.pair.update(_pair(step, range(len(step.active))))


def _sibling(aggregation: Aggregation, number: int) -> Aggregation:
    """Return another instance with the same options and draws of its own."""
    sibling = copy.deepcopy(aggregation)
    if sibling.generator is not None:
        sibling.generator.manual_seed(sibling.generator.initial_seed() + number)
    return sibling


def _pair(step: Step, tasks: Sequence[int]) -> Step:
    """Return the step in which loss and flatness of some tasks stand for two tasks."""
    losses = None if step.losses is None else step.losses[list(tasks)].sum().repeat(2)
    return Step(("loss", "flatness"), (0, 1), losses, step.representation)


def _direct(aggregation: Aggregation | None, jacobian: Jacobian, step: Step) -> Direction:
    assert isinstance(aggregation, JacobianAggregation)
    return aggregation.direct(jacobian, step)


def _joined(directions: Sequence[Direction], like: Jacobian) -> Jacobian:
    """Return the Jacobian whose rows are some directions."""
    blocks = zip(*(direction.blocks for direction in directions), strict=True)
    return Jacobian(tuple(torch.stack(rows) for rows in blocks), like.names)
