"""Exact Pareto Optimal search: descend to the Pareto front where it meets the user's preference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtobal.errors import UsageError
from mtobal.solvers import epo_weights as solve_epo
from mtobal.strategies.base import Aggregation, Step
from mtobal.strategies.card import Card
from mtobal.strategies.gradient.preference import normalized_preference
from mtobal.strategies.per_task import PerTask, check_per_task
from mtobal.strategies.registry import register


def epo_weights(
    gramian: Tensor, losses: Tensor, preference: Tensor, *, eps: float = 1e-4, relaxed: bool = False
) -> Tensor:
    r"""Return the simplex weights that bring ``r_k L_k`` closer together, or descend where they agree.

    Parameters
    ----------
    gramian : Tensor of shape (K, K)
        ``G = J J^T``, float64 on the CPU.
    losses : Tensor of shape (K,)
        Not negative.
    preference : Tensor of shape (K,)
        The preference r: the larger, the smaller the loss shall be.
    eps : float
        Non-uniformity of ``r_k L_k`` below which they are in balance.
    relaxed : bool
        Whether a descent step may leave the balance.

    Returns
    -------
    Tensor of shape (K,)
        Where the conditions contradict each other, and where all gradients are zero, the preference itself,
        scaled to sum one.

    See Also
    --------
    mtobal.solvers.epo_weights : the linear programmes.

    References
    ----------
    Mahapatra and Rajan, Multi-Task Learning with User Preferences: Gradient Descent with Controlled Ascent in
    Pareto Optimization, ICML 2020.

    Examples
    --------
    >>> import torch
    >>> losses, preference = torch.tensor([4.0, 1.0]), torch.tensor([0.5, 0.5])
    >>> epo_weights(torch.eye(2, dtype=torch.float64), losses, preference)
    tensor([1., 0.], dtype=torch.float64)
    """
    wanted = preference.double()
    solved = solve_epo(
        gramian.numpy(), losses.double().cpu().numpy(), wanted.numpy(), threshold=eps, relaxed=relaxed
    )
    return wanted / wanted.sum() if solved is None else torch.from_numpy(solved)


@register("epo")
class EPO(Aggregation):
    """Search the point of the Pareto front where the product of preference and loss is the same for every task.

    Parameters
    ----------
    preference : mapping from task to float, or sequence of floats, optional
        The larger, the smaller the loss of the task shall become; only the ratios count. Uniform by default.
    eps : float
        Non-uniformity of the products below which a step descends instead of balancing.
    relaxed : bool
        Whether a descent step may leave the balance.
    **common
        ``scale`` and ``heads``, as in every aggregation.
    """

    card = Card(
        summary="Searches the point of the Pareto front where preference times loss is the same for every task.",
        when="When you can say how large the losses should be relative to each other. While it balances, a loss "
        "that is ahead may grow.",
        paper="Mahapatra and Rajan, Multi-Task Learning with User Preferences: Gradient Descent with Controlled "
        "Ascent in Pareto Optimization, ICML 2020.",
        defaults_source="eps and the restricted descent as in the official code; scale=sum is the factor K of its "
        "training loop. The uniform preference asks for equal losses.",
        scale="mean",
        heads="weighted",
    )

    def __init__(
        self, preference: PerTask | None = None, eps: float = 1e-4, relaxed: bool = False, **common: Any
    ) -> None:
        super().__init__(**common)
        check_per_task(preference, "the preference of epo", minimum=0.0)
        if not eps > 0:
            raise UsageError(f"epo: eps must be positive, got {eps}.")
        self.preference = preference
        self.eps = eps
        self.relaxed = relaxed

    def solve(self, gramian: Tensor, step: Step) -> Tensor:
        losses = step.require_losses("epo")
        if (losses < 0).any():
            raise UsageError(f"epo needs losses that are not negative, not {losses.tolist()}.")
        preference = normalized_preference("epo", self.preference, step)
        return epo_weights(gramian, losses, preference, eps=self.eps, relaxed=self.relaxed)
