"""Dual-balancing: logarithms of the losses, and gradients of one length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtobal.errors import UsageError
from mtobal.ops import Jacobian, row_norms
from mtobal.strategies.base import Direction, JacobianAggregation, Step
from mtobal.strategies.card import Card
from mtobal.strategies.loss.positive import positive_losses
from mtobal.strategies.memory import RowMemory
from mtobal.strategies.registry import register

EPSILON = 1e-8


def log_factors(losses: Tensor) -> Tensor:
    """Differentiate ``log(L_k + 1e-8)`` by the losses."""
    return 1 / (losses + EPSILON)


def length_factors(norms: Tensor) -> Tensor:
    """Return the factors that bring rows to the length of the longest, ``max_j n_j / (n_k + 1e-8)``.

    Examples
    --------
    >>> import torch
    >>> length_factors(torch.tensor([4.0, 1.0, 2.0]))
    tensor([1., 4., 2.])
    """
    return norms.max() / (norms + EPSILON)


@register("db_mtl")
class DBMTL(JacobianAggregation):
    r"""Sum averaged gradients of the logarithms of the losses, all brought to the length of the longest.

    With ``q_k`` the gradient of ``log(L_k + 1e-8)``, the average is ``m_k = (1 - beta_t) q_k + beta_t m_k``, from
    zero at the start, with ``beta_t = beta / t^beta_sigma`` at step t. The direction is
    ``sum_k max_j ||m_j|| / (||m_k|| + 1e-8) m_k``.

    Parameters
    ----------
    beta : float
        Share of the average that is kept, from 0, which averages nothing, to below 1.
    beta_sigma : float
        How fast it falls over the steps; zero keeps it.
    **common
        ``scale`` and ``heads``, as in every aggregation. Weighted heads get the gradient of their logarithm.
    """

    card = Card(
        summary="Sums averaged gradients of the logarithms of the losses, all brought to one length.",
        when="Positive losses of different magnitudes whose gradients differ in length too. A task that has "
        "converged still pulls as hard as the others. It keeps as much memory as K copies of the shared "
        "parameters.",
        paper="Lin et al., Dual-Balancing for Multi-Task Learning, 2023, arXiv:2308.12029.",
        defaults_source="beta 0.9 and beta_sigma 0 as in LibMTL, by the authors of the method.",
        state="averaged gradients of all tasks (K times the shared parameters), and the count of the steps",
        scale="own",
        heads="weighted",
        degree=None,
    )

    steps: Tensor

    def __init__(self, beta: float = 0.9, beta_sigma: float = 0.0, **common: Any) -> None:
        super().__init__(**common)
        if not 0 <= beta < 1:
            raise UsageError(f"db_mtl: beta must lie between 0 and 1, and be less than 1, not {beta}.")
        if beta_sigma < 0:
            raise UsageError(f"db_mtl: beta_sigma must not be negative, not {beta_sigma}.")
        self.beta = beta
        self.beta_sigma = beta_sigma
        self.averages = RowMemory("db_mtl")
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def direct(self, jacobian: Jacobian, step: Step) -> Direction:
        factors = log_factors(positive_losses(step, "db_mtl").double())
        beta = self.beta / (int(self.steps) + 1) ** self.beta_sigma

        def average(rows: Tensor, gradients: Tensor) -> Tensor:
            return rows.mul_(beta).addcmul_(gradients, ((1 - beta) * factors).to(rows)[:, None])

        averages = Jacobian(tuple(self.averages.update(jacobian, step, average)), jacobian.names)
        return Direction(averages.combine(length_factors(row_norms(averages.blocks))))

    def head_weights(self, weights: Tensor | None, step: Step) -> Tensor:
        return log_factors(step.require_losses("db_mtl").double())

    def update(self, step: Step) -> None:
        self.steps += 1
