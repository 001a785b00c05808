"""Sharpness-aware multi-task optimisation: a step that is part the mean gradient, part the task's own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor

from mtobal.errors import UsageError
from mtobal.gradients import Landscape, Point, Row
from mtobal.strategies.base import Perturbation, Step
from mtobal.strategies.card import Card
from mtobal.strategies.registry import register
from mtobal.strategies.sharpness.ball import ascent, norm, tensor_norm
from mtobal.strategies.sharpness.sam import check_radius

Probe = tuple[int, float]
"""The seed of a random direction, and the slope of a task's loss along it."""


def mixed(overall: Tensor | None, local: Tensor, alpha: float, *, layerwise: bool = True) -> Tensor:
    """Return the mixture of a global and a local gradient of one parameter.

    Parameters
    ----------
    overall, local : Tensor
        The global gradient, where there is one, and the local one.
    alpha : float
        The share of the global one.
    layerwise : bool
        Whether the local one is first brought to the norm of the global one. A local one without a norm then
        contributes nothing.

    Examples
    --------
    >>> import torch
    >>> mixed(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 10.0]), alpha=0.5)
    tensor([1.5000, 1.5000])
    """
    share: Tensor | float = 1.0 - alpha
    if layerwise:
        length = tensor_norm(local)
        target = torch.zeros_like(length) if overall is None else tensor_norm(overall)
        share = share * torch.where(length > 0, target / length, 0.0).to(local)
    return local * share if overall is None else alpha * overall + local * share


@register("samo")
class SAMO(Perturbation):
    r"""Take each task's gradient at a point that the mean of the losses and the task's own loss choose together.

    Task k moves by ``rho m_k / ||m_k||`` in the shared parameters, where ``m_k = alpha g_0 + (1 - alpha) z_k``
    with the gradient ``g_0`` of the mean of the losses and an estimate ``z_k`` of the gradient of its own, and by
    `rho` along its gradient in its head. The estimate needs two forward passes and no memory: a random direction
    is drawn from a seed, and drawn again when it is needed, and of the difference of the two losses only the sign
    matters, because each layer of the estimate is brought to the norm of that layer of ``g_0``.

    Parameters
    ----------
    rho : float
        The distance, in the shared parameters and again in the head.
    alpha : float
        The share of the gradient of the mean. One leaves the estimates out: all tasks move by the same step.
    mu : float
        How far the two forward passes are from where the parameters stand.
    adaptive : bool
        Whether distances are measured relative to the parameters.
    local : {"forward", "exact"}
        The estimate from forward passes, or the gradient itself from one backward pass a task.
    directions : int
        How many random directions an estimate is the mean of.
    shared_direction : bool
        Whether all tasks share their directions: then 2 forward passes do instead of 2 K.
    layerwise : bool
        Whether each parameter of the estimate is brought to the norm of that of ``g_0``. False is the official
        code for NYUv2.
    normalize_heads : bool
        Whether a head moves by `rho`, or by its share of the gradient of the mean, whatever that is. False is the
        official code for QM9.
    probe : {"eval", "train"}
        The mode of the modules in these forward passes: ``eval``, as in the official code, has no dropout and the
        running statistics of batch norms.
    max_norm : float
        The largest norm of the direction on the shared parameters, heads left out; zero means no clipping.
    seed : int
        Seed of the random directions.
    """

    card = Card(
        summary="Takes each task's gradient where the mean loss, and in part the task's own, is highest nearby.",
        when="To reach flat minima of all tasks with the memory of the aggregation alone. In many dimensions a "
        "random direction says little about a gradient, so the task's share is mostly noise of the right size: "
        "local=exact and alpha=1 tell whether it matters.",
        paper="SAMO, Sharpness-Aware Multi-task Optimisation, ICCV 2025, arXiv:2507.07883.",
        defaults_source="rho, alpha and mu of the released training scripts. Their gradient clipping at norm 1 is "
        "max_norm=1, and the factor K that they put on the direction is scale='sum' of the aggregation.",
        state="a random generator",
        scale="sum",
        degree=None,
    )
    forward_passes = "1 + 3K"
    backward_passes = "1 + K"

    def __init__(
        self,
        rho: float = 0.001,
        alpha: float = 0.5,
        mu: float = 0.01,
        adaptive: bool = False,
        local: Literal["forward", "exact"] = "forward",
        directions: int = 1,
        shared_direction: bool = False,
        layerwise: bool = True,
        normalize_heads: bool = True,
        probe: Literal["eval", "train"] = "eval",
        max_norm: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_radius("samo", rho)
        if not 0 <= alpha <= 1:
            raise UsageError(f"samo: alpha must lie between 0 and 1, not {alpha}.")
        if not 0 < mu < math.inf:
            raise UsageError(f"samo: mu must be positive and finite, not {mu}.")
        if directions < 1:
            raise UsageError(f"samo: directions must be at least 1, not {directions}.")
        if not max_norm >= 0:
            raise UsageError(f"samo: max_norm must not be negative, not {max_norm}.")
        if local == "exact" and (shared_direction or directions > 1):
            raise UsageError("samo: local=exact draws no directions: leave directions and shared_direction out.")
        self.rho = rho
        self.alpha = alpha
        self.mu = mu
        self.adaptive = adaptive
        self.local = local
        self.directions = directions
        self.shared_direction = shared_direction
        self.layerwise = layerwise
        self.normalize_heads = normalize_heads
        self.probe = probe
        self.max_norm = max_norm
        self.generator = torch.Generator().manual_seed(seed)

    def points(self, landscape: Landscape, step: Step, weights: Tensor) -> Iterator[Point]:
        shares = weights / len(step.active)
        if self.local == "exact" and self.alpha < 1:
            rows = list(landscape.gradients())
            overall = _weighted_sum(rows, shares.tolist())
            for task, weight in enumerate(weights.tolist()):
                row, rows[task] = rows[task], {}
                own = ((place, weight * gradient) for place, gradient in row.items())
                yield (task,), self._offsets(landscape, task, overall, own)
                del row, own
        else:
            overall = landscape.gradient(shares)
            probes = self._probes(landscape, weights.tolist())
            for task in range(len(step.active)):
                yield (task,), self._offsets(landscape, task, overall, self._estimate(landscape, probes[task]))

    def noise(self, seed: int, landscape: Landscape) -> Iterator[tuple[int, Tensor]]:
        """Draw a random direction in the shared parameters; the same seed draws the same."""
        generators: dict[torch.device, torch.Generator] = {}
        for place in landscape.shared:
            like = landscape.parameters[place]
            if like.device not in generators:
                generators[like.device] = torch.Generator(like.device).manual_seed(seed)
            source = generators[like.device]
            yield place, torch.randn(like.shape, generator=source, dtype=like.dtype, device=like.device)

    def _probes(self, landscape: Landscape, weights: list[float]) -> list[list[Probe]]:
        """Return the directions of each task, with the slopes of its loss under its weight."""
        probes: list[list[Probe]] = [[] for _ in weights]
        if self.alpha == 1:
            return probes
        everyone = range(len(weights))
        for _ in range(self.directions):
            for tasks in [everyone] if self.shared_direction else [[task] for task in everyone]:
                seed = int(torch.randint(2**62, (), generator=self.generator))
                slopes = self._slopes(seed, landscape)
                for task in tasks:
                    slope = float(slopes[task]) * weights[task]
                    probes[task].append((seed, slope if math.isfinite(slope) else 0.0))
        if self.layerwise and self.directions == 1:  # the norm is that of the global gradient, whatever the slope
            return [[(seed, float(slope > 0) - float(slope < 0))] for [(seed, slope)] in probes]
        return probes

    def _slopes(self, seed: int, landscape: Landscape) -> Tensor:
        """Return the slopes of all losses along a direction, of shape (A,)."""
        ahead, behind = (
            landscape.losses(
                ((place, signed * draw) for place, draw in self.noise(seed, landscape)),
                training=self.probe == "train",
            )
            for signed in (self.mu, -self.mu)
        )
        return (ahead - behind) / (2 * self.mu)

    def _estimate(self, landscape: Landscape, probes: list[Probe]) -> Iterator[tuple[int, Tensor]]:
        """Go through the estimate of a task's gradient, one parameter after the other."""
        for draws in zip(*(self.noise(seed, landscape) for seed, _ in probes), strict=True):
            terms = [slope * draw for (_, draw), (_, slope) in zip(draws, probes, strict=True)]
            yield draws[0][0], torch.stack(terms).mean(0) if len(terms) > 1 else terms[0]

    def _offsets(self, landscape: Landscape, task: int, overall: Row, local: Iterable[tuple[int, Tensor]]) -> Row:
        """Return by how much the shared parameters and the head of a task move."""
        shared = dict.fromkeys(landscape.shared)
        steps = {
            place: mixed(overall.get(place), gradient, self.alpha, layerwise=self.layerwise)
            for place, gradient in local
            if place in shared
        }
        for place in shared:
            if place not in steps and place in overall:
                steps[place] = self.alpha * overall[place]
        offsets = ascent(steps, landscape.parameters, self.rho, adaptive=self.adaptive)
        head = {place: overall[place] for place in landscape.own(task) if place in overall}
        if self.normalize_heads:
            return {**offsets, **ascent(head, landscape.parameters, self.rho, adaptive=self.adaptive)}
        return {**offsets, **head} if math.isfinite(norm(list(head.values()))) else offsets


def _weighted_sum(rows: list[Row], weights: list[float]) -> Row:
    """Return the weighted sum of gradients."""
    total: Row = {}
    for row, weight in zip(rows, weights, strict=True):
        for place, gradient in row.items():
            total[place] = total[place] + weight * gradient if place in total else weight * gradient
    return total
