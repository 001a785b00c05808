"""Impartial multi-task learning: the balance of the losses and that of the gradients."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mtobal.strategies.base import Aggregation, Step
from mtobal.strategies.card import Card
from mtobal.strategies.gradient.imtl_g import Form, imtl_g_weights
from mtobal.strategies.loss.imtl_l import IMTLL
from mtobal.strategies.loss.learned import OptimizerName
from mtobal.strategies.registry import register


def imtl_weights(gramian: Tensor, loss_scales: Tensor, form: Form = "descent") -> Tensor:
    r"""Return the weights of IMTL-G for the gradients of scaled losses, on the raw gradients.

    With ``alpha`` the weights of `imtl_g_weights` for the rows ``c_k g_k``, they are ``alpha_k c_k``.

    Parameters
    ----------
    gramian : Tensor of shape (K, K)
        ``G = J J^T``, float64 on the CPU.
    loss_scales : Tensor of shape (K,)
        The ``c_k = exp(s_k)`` of the learned log-weights s, float64 on the CPU.
    form : {"descent", "paper", "gramian"}
        As in `imtl_g_weights`.

    Returns
    -------
    Tensor of shape (K,)

    References
    ----------
    Liu, Li, Kuang, Xue, Chen, Yang, Liao and Zhang, Towards Impartial Multi-task Learning, ICLR 2021,
    algorithm 1.

    Examples
    --------
    >>> import torch
    >>> gramian = torch.tensor([[4.0, 0.0], [0.0, 9.0]], dtype=torch.float64)
    >>> imtl_weights(gramian, torch.tensor([1.5, 1.0], dtype=torch.float64))
    tensor([0.7500, 0.5000], dtype=torch.float64)
    """
    return imtl_g_weights(loss_scales[:, None] * gramian * loss_scales, form) * loss_scales


@register("imtl")
class IMTL(Aggregation):
    """Scale the losses to one another by `imtl_l`, and aggregate the gradients of the scaled ones by `imtl_g`.

    Weighted heads get the scale of their loss alone. So it is ``imtl_l+imtl_g``, under the paper's name.

    Parameters
    ----------
    form : {"descent", "paper", "gramian"}
        As in `imtl_g`.
    init : float
        Log-weight of a loss at the start.
    lr : float
        Learning rate of the log-weights, which have an optimizer of their own, without weight decay.
    optimizer : {"adam", "sgd"}
        That optimizer.
    **common
        ``scale`` and ``heads``, as in every aggregation.
    """

    card = Card(
        summary="Scales the losses to one another by imtl_l, and aggregates the scaled gradients by imtl_g.",
        when="Few tasks with positive losses of different magnitudes that must all improve at the same rate. "
        "Nearly dependent gradients make the weights large.",
        paper="Liu et al., Towards Impartial Multi-task Learning, ICLR 2021.",
        defaults_source="The paper's start at zero; the learning rate is that of imtl_l; heads get the scale of "
        "their loss, as in LibMTL.",
        state="K log-weights and the moments of their optimizer",
        scale="mean",
        heads="weighted",
    )

    def __init__(
        self,
        form: Form = "descent",
        init: float = 0.0,
        lr: float = 0.025,
        optimizer: OptimizerName = "adam",
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.form: Form = form
        self.loss_balance = IMTLL(init, lr, optimizer)

    def solve(self, gramian: Tensor, step: Step) -> Tensor:
        return imtl_weights(gramian, self.loss_balance.weigh(step).to(gramian), self.form)

    def head_weights(self, weights: Tensor | None, step: Step) -> Tensor:
        return self.loss_balance.weigh(step)

    def update(self, step: Step) -> None:
        self.loss_balance.update(step)
