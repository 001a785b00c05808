"""Unconflicting projection of gradients: each gradient on its own is made harmless, then they are summed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtobal.solvers import dual_cone
from mtobal.strategies.base import Aggregation, Step
from mtobal.strategies.card import Card
from mtobal.strategies.gradient.preference import normalized_preference
from mtobal.strategies.per_task import PerTask, check_per_task
from mtobal.strategies.registry import register


def upgrad_weights(gramian: Tensor, preference: Tensor) -> Tensor:
    r"""Return the weights of the sum of the projections of ``u_k g_k`` on ``{d : J d >= 0}``.

    Parameters
    ----------
    gramian : Tensor of shape (K, K)
        ``G = J J^T``, float64 on the CPU.
    preference : Tensor of shape (K,)
        The preference u.

    Returns
    -------
    Tensor of shape (K,)
        Without a conflicting pair, the preference itself.

    See Also
    --------
    mtobal.solvers.dual_cone : the solver, and its answer for degenerate inputs.

    References
    ----------
    Quinton and Rey, Jacobian Descent for Multi-Objective Optimization, arXiv:2406.16232, equation 4.

    Examples
    --------
    >>> import torch
    >>> gramian = torch.tensor([[1.0, -1.0], [-1.0, 4.0]], dtype=torch.float64)
    >>> upgrad_weights(gramian, torch.tensor([0.5, 0.5], dtype=torch.float64))
    tensor([1.0000, 0.6250], dtype=torch.float64)
    """
    return torch.from_numpy(dual_cone(gramian.numpy(), np.diag(preference.numpy())).sum(0))


@register("upgrad")
class UPGrad(Aggregation):
    """Project every task gradient on the directions in which no task gets worse, and average.

    Parameters
    ----------
    preference : mapping from task to float, or sequence of floats, optional
        The weight of each projected gradient; only the ratios count. Uniform by default.
    **common
        ``scale`` and ``heads``, as in every aggregation.
    """

    card = Card(
        summary="Projects every gradient on the directions in which no task gets worse, and averages.",
        when="A safe first choice where tasks conflict: no task gets worse, each keeps as much of its gradient as "
        "that allows, and the direction grows with the gradients.",
        paper="Quinton and Rey, Jacobian Descent for Multi-Objective Optimization, arXiv:2406.16232.",
        defaults_source="The uniform preference 1/K of the paper. The projections are exact: there is no "
        "regularisation of the Gramian as in the authors' library.",
        scale="mean",
        heads="raw",
        non_conflicting=True,
    )

    def __init__(self, preference: PerTask | None = None, **common: Any) -> None:
        super().__init__(**common)
        check_per_task(preference, "the preference of upgrad", minimum=0.0)
        self.preference = preference

    def solve(self, gramian: Tensor, step: Step) -> Tensor:
        return upgrad_weights(gramian, normalized_preference("upgrad", self.preference, step))
