"""Uncertainty weighting: one learned log-variance a task."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mtobal.errors import UsageError
from mtobal.strategies.base import LossWeighting, Step
from mtobal.strategies.card import Card
from mtobal.strategies.registry import register

Form = Literal["half", "laplace"]

# exp(30) is 1e13: a loss that drives its log-variance beyond has no minimum, as a negative one has not.
LOG_VARIANCE_LIMIT = 30.0


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
class UW(LossWeighting):
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
        degree=None,
    )

    log_variances: Tensor | None

    def __init__(
        self,
        form: Form = "half",
        init: float = 0.0,
        lr: float = 0.025,
        optimizer: Literal["adam", "sgd"] = "adam",
    ) -> None:
        super().__init__()
        if lr <= 0:
            raise UsageError(f"uw: the learning rate must be positive, not {lr}.")
        self.form: Form = form
        self.init = init
        self.lr = lr
        self.optimizer_name = optimizer
        self.register_parameter("log_variances", None)

    def make_optimizer(self) -> torch.optim.Optimizer:
        if self.optimizer_name == "adam":
            return torch.optim.Adam(self.parameters(), lr=self.lr)
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def weigh(self, step: Step) -> Tensor:
        losses = step.require_losses("uw")
        return uncertainty_weights(self._log_variances(step, losses).detach()[list(step.active)], self.form)

    def update(self, step: Step) -> None:
        losses = step.require_losses("uw")
        log_variances = self._log_variances(step, losses)
        active = list(step.active)
        gradient = torch.zeros_like(log_variances)
        gradient[active] = uncertainty_gradient(log_variances.detach()[active], losses, self.form)
        log_variances.grad = gradient
        if self.optimizer is None:
            self.optimizer = self.make_optimizer()
        self.optimizer.step()
        with torch.no_grad():
            log_variances.clamp_(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)

    def _log_variances(self, step: Step, losses: Tensor) -> Tensor:
        if self.log_variances is None:
            self.log_variances = nn.Parameter(losses.new_full((len(step.tasks),), self.init))
        if len(self.log_variances) != len(step.tasks):
            raise UsageError(f"uw holds {len(self.log_variances)} tasks, but this step has {len(step.tasks)}.")
        return self.log_variances
