"""Uncertainty weighting: one learned log-variance a task."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mtobal.strategies.base import Step
from mtobal.strategies.card import Card
from mtobal.strategies.loss.learned import LOG_LIMIT, LearnedWeighting, OptimizerName
from mtobal.strategies.registry import register

Form = Literal["half", "laplace"]


def uncertainty_weights(log_variances: Tensor, form: Form = "half") -> Tensor:
    r"""Return the task weights of learned log-variances ``s_k = log sigma_k^2``.

    ``w_k = exp(-s_k) / 2`` in the half form (a Gaussian likelihood), ``exp(-s_k)`` in the Laplace form.

    Parameters
    ----------
    log_variances : Tensor of shape (K,)
    form : {"half", "laplace"}

    Returns
    -------
    Tensor of shape (K,)
        Positive weights.
    """
    weights = torch.exp(-log_variances)
    return weights / 2 if form == "half" else weights


def uncertainty_gradient(log_variances: Tensor, losses: Tensor, form: Form = "half") -> Tensor:
    r"""Differentiate ``sum_k w_k(s) L_k + s_k / 2`` with respect to the log-variances.

    ``1/2 - w_k L_k``. It vanishes at ``s_k = log L_k`` in the half form and at ``log 2 L_k`` in the Laplace form.

    Parameters
    ----------
    log_variances, losses : Tensor of shape (K,)
    form : {"half", "laplace"}

    Returns
    -------
    Tensor of shape (K,)
    """
    return 0.5 - uncertainty_weights(log_variances, form) * losses


@register("uw")
class UW(LearnedWeighting):
    """Learn one log-variance a task, and weigh each loss by its inverse variance.

    Parameters
    ----------
    form : {"half", "laplace"}
        Likelihood behind the weights; see `uncertainty_weights`.
    init : float
        Log-variance at the start.
    lr : float
        Learning rate of the log-variances, which have an optimizer of their own, without weight decay.
    optimizer : {"adam", "sgd"}
        That optimizer.
    """

    card = Card(
        summary="Learns one log-variance a task and weighs each loss by its inverse variance.",
        when="Losses of different units or magnitudes, at no extra cost. Losses should be likelihoods; "
        "one that can be negative has no best variance.",
        paper="Kendall, Gal and Cipolla, Multi-Task Learning Using Uncertainty to Weigh Losses for Scene "
        "Geometry and Semantics, CVPR 2018, arXiv:1705.07115.",
        defaults_source="Half form and start at zero as in the benchmark of Nash-MTL, whose learning rate 0.025 "
        "it is too.",
        state="K log-variances and the moments of their optimizer",
        scale="own",
        heads="weighted",
    )

    def __init__(
        self, form: Form = "half", init: float = 0.0, lr: float = 0.025, optimizer: OptimizerName = "adam"
    ) -> None:
        super().__init__(lr, optimizer)
        self.form: Form = form
        self.init = init

    def weigh(self, step: Step) -> Tensor:
        return uncertainty_weights(self.current(step, self.init), self.form)

    def update(self, step: Step) -> None:
        losses = step.require_losses("uw")
        gradient = uncertainty_gradient(self.current(step, self.init), losses, self.form)
        self.learn(step, gradient, LOG_LIMIT)
