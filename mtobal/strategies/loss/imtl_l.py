"""The loss balance of impartial multi-task learning."""

from __future__ import annotations

from torch import Tensor

from mtobal.strategies.base import Step
from mtobal.strategies.card import Card
from mtobal.strategies.loss.learned import LOG_LIMIT, LearnedWeighting, OptimizerName
from mtobal.strategies.registry import register


def impartial_loss_gradient(log_weights: Tensor, losses: Tensor) -> Tensor:
    r"""Differentiate ``sum_k exp(s_k) L_k - s_k`` with respect to the log-weights s.

    ``exp(s_k) L_k - 1``. It vanishes where every weighted loss is one.

    Parameters
    ----------
    log_weights, losses : Tensor of shape (K,)

    Returns
    -------
    Tensor of shape (K,)

    References
    ----------
    Liu, Li, Kuang, Xue, Chen, Yang, Liao and Zhang, Towards Impartial Multi-Task Learning, ICLR 2021.
    """
    return log_weights.exp() * losses - 1


@register("imtl_l")
class IMTLL(LearnedWeighting):
    """Learn one log-weight a task such that all weighted losses become one.

    Parameters
    ----------
    init : float
        Log-weight at the start.
    lr : float
        Learning rate of the log-weights, which have an optimizer of their own, without weight decay.
    optimizer : {"adam", "sgd"}
        That optimizer.
    """

    card = Card(
        summary="Learns one log-weight a task such that all weighted losses become one.",
        when="Positive losses of different magnitudes, at no extra cost; without the assumption of a likelihood "
        "the same as `uw` with twice the weights.",
        paper="Liu et al., Towards Impartial Multi-Task Learning, ICLR 2021, the loss balance IMTL-L.",
        defaults_source="Start at zero as in the paper; the learning rate is that of `uw`.",
        state="K log-weights and the moments of their optimizer",
        scale="own",
        heads="weighted",
    )

    def __init__(self, init: float = 0.0, lr: float = 0.025, optimizer: OptimizerName = "adam") -> None:
        super().__init__(lr, optimizer)
        self.init = init

    def weigh(self, step: Step) -> Tensor:
        return self.current(step, self.init).exp()

    def update(self, step: Step) -> None:
        losses = step.require_losses("imtl_l")
        self.learn(step, impartial_loss_gradient(self.current(step, self.init), losses), LOG_LIMIT)
