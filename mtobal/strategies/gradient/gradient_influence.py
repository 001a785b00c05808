"""Dynamic reward weighting by gradient influence, for losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtobal.errors import UsageError
from mtobal.strategies.base import Aggregation, Step
from mtobal.strategies.card import Card
from mtobal.strategies.per_task import PerTask, check_per_task, per_task
from mtobal.strategies.registry import register


def influences(gramian: Tensor, max_norm: float | None = 1.0) -> Tensor:
    """Return the inner product of each gradient with the sum of all, itself included.

    Parameters
    ----------
    gramian : Tensor of shape (K, K)
        ``G = J J^T``.
    max_norm : float, optional
        Norm to which longer gradients are cut before; None for no bound.

    Returns
    -------
    Tensor of shape (K,)

    References
    ----------
    Learning to Optimize Multi-Objective Alignment Through Dynamic Reward Weighting, TACL 2026, arXiv:2509.11452.

    Examples
    --------
    >>> import torch
    >>> influences(torch.tensor([[1.0, -0.5], [-0.5, 1.0]]))
    tensor([0.5000, 0.5000])
    """
    if max_norm is not None:
        factors = (max_norm / gramian.diagonal().sqrt()).clamp(max=1.0)
        gramian = factors[:, None] * gramian * factors
    return gramian.sum(1)


@register("gradient_influence")
class GradientInfluence(Aggregation):
    """Move weight to the tasks whose gradient agrees with those of all.

    Parameters
    ----------
    rate : float
        How far the logarithm of a weight moves for an influence of one.
    max_norm : float, optional
        Norm to which gradients are cut for the influence; None for no bound.
    initial : mapping or sequence of floats, optional
        Positive weights to start from, whose sum is kept; by default one by the number of tasks.
    **common
        ``scale`` and ``heads``, as in every aggregation.
    """

    card = Card(
        summary="Moves weight to the tasks whose gradient agrees with the sum of all gradients.",
        when="Objectives of which those that pull the same way should lead; weight that a task has lost comes "
        "back slowly if ever. The paper claims dominating fronts in 6.1 fewer steps on average, in the alignment "
        "of language models with several rewards.",
        paper="Learning to Optimize Multi-Objective Alignment Through Dynamic Reward Weighting, TACL 2026, "
        "arXiv:2509.11452.",
        defaults_source="The official code on losses in place of rewards: gradients cut to a norm of one; the "
        "rate is its learning rate 1e-6 over its 1e-5. There the gradients are those of a few layers.",
        state="K logarithms of weights",
        scale="mean",
        heads="weighted",
        degree=None,
    )

    log_weights: Tensor | None

    def __init__(
        self,
        rate: float = 0.1,
        max_norm: float | None = 1.0,
        initial: PerTask | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        check_per_task(initial, "gradient_influence: initial", minimum=torch.finfo(torch.float64).tiny)
        if rate < 0 or (max_norm is not None and max_norm <= 0):
            raise UsageError(
                "gradient_influence: the rate must not be negative and max_norm positive, not "
                f"{rate} and {max_norm}."
            )
        self.rate = rate
        self.max_norm = max_norm
        self.initial = initial
        self.register_buffer("log_weights", None)

    def solve(self, gramian: Tensor, step: Step) -> Tensor:
        size = len(step.tasks)
        if self.log_weights is None:
            everyone = Step(step.tasks, tuple(range(size)))
            ones = torch.ones(size, dtype=torch.float64)
            start = per_task(self.initial, 1 / size, everyone, ones, "gradient_influence: initial")
            self.log_weights = start.log()
        if len(self.log_weights) != size:
            raise UsageError(f"gradient_influence holds {len(self.log_weights)} tasks, but this step has {size}.")
        active = list(step.active)
        known = self.log_weights[active]
        moved = known + self.rate * influences(gramian, self.max_norm)
        # Tasks that sit out keep their weight, so the others share out what they had.
        moved = moved.log_softmax(0) + known.logsumexp(0)
        self.log_weights = self.log_weights.index_copy(0, torch.tensor(active), moved)
        return moved.exp()
