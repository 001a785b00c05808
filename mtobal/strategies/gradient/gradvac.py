"""Gradient vaccine: gradients that are drawn towards the angles they usually have."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from mtobal.errors import UsageError
from mtobal.ops import Jacobian
from mtobal.solvers.nonnegative import unit_rows
from mtobal.strategies.base import Aggregation, Direction, JacobianAggregation, Step
from mtobal.strategies.card import Card, Reads
from mtobal.strategies.gradient.visits import draw_visits
from mtobal.strategies.registry import register

Granularity = Literal["whole", "layer", "matrix"]

# A correction divides by the sine of the target, which vanishes for parallel gradients.
_HIGHEST_TARGET = 1 - 1e-6
# What is left of a gradient that loses all but this share of its length is rounding.
_CANCELLED = 1e-7
_NO_TARGET = -2.0  # below every cosine


def gradvac_weights(gramian: Tensor, targets: Tensor, orders: Tensor, beta: float = 0.5) -> tuple[Tensor, Tensor]:
    r"""Return the weights of the sum of the corrected gradients, and the targets of the next step.

    Task i starts from ``g = g_i`` and visits the other tasks j in its own order. With the cosine c of g and
    ``g_j`` and the target t of the pair, g becomes, where ``c < t``,

    .. math:: g + \frac{\|g\| (t \sqrt{1 - c^2} - c \sqrt{1 - t^2})}{\|g_j\| \sqrt{1 - t^2}} g_j

    whose cosine with ``g_j`` is t. The target then moves to ``(1 - beta) t + beta c``, in either case. With
    targets of zero, the weights are those of PCGrad. All of it happens on coefficients and the Gramian.

    Parameters
    ----------
    gramian : Tensor of shape (K, K)
        ``G = J J^T``, float64 on the CPU.
    targets : Tensor of shape (K, K)
        The target of the pair (i, j) in row i, float64 on the CPU. Those above ``1 - 1e-6`` count as that.
    orders : Tensor of shape (K, K - 1), integers
        Row i lists the tasks that task i visits, in order.
    beta : float
        Share of the cosine in the next target.

    Returns
    -------
    weights : Tensor of shape (K,)
    targets : Tensor of shape (K, K)
        A pair without angle keeps its target and its gradients: one of them is zero, or a correction has
        cancelled g, as that of an opposite gradient does.

    References
    ----------
    Wang, Tsvetkov, Firat and Cao, Gradient Vaccine: Investigating and Improving Multi-task Optimization in
    Massively Multilingual Models, ICLR 2021, arXiv:2010.05874, algorithm 1.

    Examples
    --------
    >>> import torch
    >>> gramian = torch.tensor([[1.0, -1.0], [-1.0, 4.0]], dtype=torch.float64)
    >>> weights, targets = gradvac_weights(gramian, torch.zeros(2, 2).double(), torch.tensor([[1], [0]]))
    >>> weights, targets[0, 1]
    (tensor([2.0000, 1.2500], dtype=torch.float64), tensor(-0.2500, dtype=torch.float64))
    """
    cosines, norms = unit_rows(gramian.numpy())
    tasks, visits = np.arange(len(norms)), orders.numpy()
    old = targets.numpy()[tasks[:, None], visits]
    zero = norms == 0
    angled = ~(zero[:, None] | zero[visits])
    wanted = np.where(angled, np.minimum(old, _HIGHEST_TARGET), _NO_TARGET)
    wanted_sines = np.sqrt(np.maximum(1 - wanted * wanted, 0.0))
    met = np.empty_like(old)
    coefficients = np.diag(norms)  # of the current gradients, in the unit rows
    lengths = np.where(zero, 1.0, norms)  # of the current gradients
    for number, visited in enumerate(visits.T):
        found = np.einsum("ij,ij->i", coefficients, cosines[visited]) / lengths
        met[:, number] = np.maximum(found, -1.0, out=found)
        rows = np.flatnonzero(found < wanted[:, number])
        if not len(rows):
            continue
        cosine, sines = found[rows], wanted_sines[rows, number]
        # The part of g across g_j stays as it is, and with it the length of g.
        left = np.sqrt(np.maximum((1 - cosine) * (1 + cosine), 0.0)) / sines
        coefficients[rows, visited[rows]] += lengths[rows] * (wanted[rows, number] * left - cosine)
        lengths[rows] *= left
        cancelled = rows[left <= _CANCELLED]
        if len(cancelled):
            lengths[cancelled] = 1.0
            wanted[cancelled, number + 1 :] = _NO_TARGET
            angled[cancelled, number + 1 :] = False
    weights = np.divide(coefficients.sum(0), norms, out=np.ones_like(norms), where=~zero)
    moved = targets.numpy().copy()
    moved[tasks[:, None], visits] = np.where(angled, (1 - beta) * old + beta * np.minimum(met, 1.0), old)
    return torch.from_numpy(weights), torch.from_numpy(moved)


@register("gradvac")
class GradVac(JacobianAggregation):
    """Draw each pair of gradients that is further apart than usual to its usual angle, and sum.

    Parameters
    ----------
    beta : float
        How fast the target of a pair, a moving average of its cosine, follows: between 0 and 1.
    granularity : {"whole", "layer", "matrix"}
        Whether gradients are compared over all shared parameters, over those of each module, or over each
        parameter by itself.
    seed : int
        Seed of the orders in which each task visits the others, drawn anew at every step.
    **common
        ``scale`` and ``heads``, as in every aggregation.
    """

    card = Card(
        summary="Draws each pair of gradients that is further apart than usual to its usual angle, and sums.",
        when="Many related tasks whose gradients agree more often than not, as those of languages do. As in "
        "PCGrad, the result depends on the random order of the visits.",
        paper="Wang et al., Gradient Vaccine: Investigating and Improving Multi-task Optimization in Massively "
        "Multilingual Models, ICLR 2021, arXiv:2010.05874.",
        defaults_source="A share of 0.5 as in LibMTL and TorchJD (0.01 in the paper); the sum over tasks; heads "
        "keep their own gradient.",
        state="a target cosine for each ordered pair of tasks, and a random generator",
        scale="sum",
        heads="raw",
    )
    reads: ClassVar[Reads] = "gramian"

    def __init__(
        self, beta: float = 0.5, granularity: Granularity = "whole", seed: int = 0, **common: Any
    ) -> None:
        if granularity == "whole":
            Aggregation.__init__(self, **common)  # it has task weights, and the heads may get them
        else:
            super().__init__(**common)
        if not 0 <= beta <= 1:
            raise UsageError(f"gradvac: beta must lie between 0 and 1, not {beta}.")
        self.beta = beta
        self.granularity: Granularity = granularity
        if granularity != "whole":
            self.reads = "jacobian"  # type: ignore[misc]
        self.generator = torch.Generator().manual_seed(seed)
        self.targets: dict[str, Tensor] = {}  # of shape (K, K) by the group of parameters; "" is the whole
        self._next: dict[str, Tensor] = {}

    def solve(self, gramian: Tensor, step: Step) -> Tensor:
        return self._solve({"": gramian}, step)[""]

    def direct(self, jacobian: Jacobian, step: Step) -> Direction:
        if self.granularity == "whole":
            weights = self.solve(jacobian.gramian(), step)
            return Direction(jacobian.combine(weights), weights)
        groups = [name if self.granularity == "matrix" else name.rpartition(".")[0] for name in jacobian.names]
        products = [block @ block.T for block in jacobian.blocks]
        together = torch.stack([product.to(products[0].device, torch.float64) for product in products]).cpu()
        gramians: dict[str, Tensor] = {}
        for group, product in zip(groups, together, strict=True):
            gramians[group] = gramians[group] + product if group in gramians else product
        weights_of = self._solve(gramians, step)
        blocks = [
            weights_of[group].to(block) @ block for group, block in zip(groups, jacobian.blocks, strict=True)
        ]
        return Direction(blocks)

    def update(self, step: Step) -> None:
        self.targets |= self._next

    def get_extra_state(self) -> dict[str, Any]:
        return {**super().get_extra_state(), "targets": dict(self.targets)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state)
        self.targets = {group: targets.clone() for group, targets in state["targets"].items()}

    def _solve(self, gramians: dict[str, Tensor], step: Step) -> dict[str, Tensor]:
        """Return the weights of each group; all groups share the orders of the step."""
        orders = draw_visits(len(step.active), self.generator)
        active = list(step.active)
        found: dict[str, Tensor] = {}
        self._next = {}
        for group, gramian in gramians.items():
            targets = self._targets(group, step)
            if len(active) == len(targets):
                found[group], self._next[group] = gradvac_weights(gramian, targets, orders, self.beta)
            else:
                pairs = (torch.tensor(active)[:, None], torch.tensor(active))
                found[group], moved = gradvac_weights(gramian, targets[pairs], orders, self.beta)
                self._next[group] = targets.index_put(pairs, moved)
        return found

    def _targets(self, group: str, step: Step) -> Tensor:
        size = len(step.tasks)
        targets = self.targets.get(group)
        if targets is None:
            return torch.zeros(size, size, dtype=torch.float64)
        if len(targets) != size:
            raise UsageError(f"gradvac holds targets of {len(targets)} tasks, but this step has {size}.")
        return targets.to("cpu", torch.float64)
