"""Fair resource allocation: alpha-fair gains of the tasks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtobal.errors import UsageError
from mtobal.solvers import equilibrium
from mtobal.strategies.base import Step
from mtobal.strategies.card import Card
from mtobal.strategies.gradient.clipping import ClippedAggregation
from mtobal.strategies.registry import register


def fairgrad_weights(gramian: Tensor, alpha: float = 1.0) -> Tensor:
    r"""Return the weights of the alpha-fair direction, ``(G w)_k = w_k^(-1/alpha)``.

    The direction ``J^T w`` maximises ``sum_k (g_k . d)^(1-alpha) / (1-alpha)`` among all d of its norm: the plain
    sum of the gradients as alpha goes to zero, Nash bargaining at one, and the more for the task that gains
    least the larger alpha is. It has degree ``(1 - alpha) / (1 + alpha)`` in J.

    Parameters
    ----------
    gramian : Tensor of shape (K, K)
        ``G = J J^T``, float64 on the CPU.
    alpha : float
        Positive.

    Returns
    -------
    Tensor of shape (K,)
        Positive. Where a row is zero or the origin is in the hull of the rows, no solution exists: then the
        simplex weights of the min-norm point, which is zero.

    See Also
    --------
    mtobal.solvers.equilibrium : the solver.

    References
    ----------
    Ban and Ji, Fair Resource Allocation in Multi-Task Learning, ICML 2024, arXiv:2402.15638, equation 4.

    Examples
    --------
    >>> import torch
    >>> fairgrad_weights(torch.tensor([[4.0, 0.0], [0.0, 9.0]], dtype=torch.float64), alpha=0.5)
    tensor([0.6300, 0.4807], dtype=torch.float64)
    """
    return torch.from_numpy(equilibrium(gramian.numpy(), alpha))


@register("fairgrad")
class FairGrad(ClippedAggregation):
    """Follow the direction in which the gains of the tasks are alpha-fair.

    Parameters
    ----------
    alpha : float
        From 0.05 to 20: how much it counts that the task that gains least gains more. One is Nash bargaining.
    max_norm : float
        The largest norm of the direction on the shared parameters. Zero means no clipping.
    **common
        ``scale`` and ``heads``, as in every aggregation. Weighted heads get the weights before clipping.
    """

    card = Card(
        summary="Follows the direction in which the gains of the tasks are alpha-fair.",
        when="To choose between the sum of the gradients (small alpha), Nash bargaining (one) and helping the "
        "task that gains least (large alpha). No progress at all while the gradient of a task is zero.",
        paper="Ban and Ji, Fair Resource Allocation in Multi-Task Learning, ICML 2024, arXiv:2402.15638.",
        defaults_source="The official code: alpha 1, clipped to a norm of one, heads with their own gradient; "
        "without its factor K in front of the clipping.",
        scale="own",
        heads="raw",
        degree=0.0,
        non_conflicting=True,
    )

    def __init__(self, alpha: float = 1.0, max_norm: float = 1.0, **common: Any) -> None:
        super().__init__(max_norm, **common)
        if not 0.05 <= alpha <= 20:
            # With gradients whose norms differ a millionfold, the powers leave the range of float64 beyond that.
            raise UsageError(
                f"fairgrad: alpha must lie between 0.05 and 20, not {alpha}: below it is the plain sum, ew."
            )
        self.alpha = alpha

    def solve_unclipped(self, gramian: Tensor, step: Step) -> Tensor:
        return fairgrad_weights(gramian, self.alpha)
