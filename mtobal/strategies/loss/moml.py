"""Multi-objective meta learning: task weights that lower the validation losses of all tasks at once."""

from __future__ import annotations

import torch
from torch import Tensor

from mtobal.errors import UsageError
from mtobal.gradients import LookAhead, inner_products, weighted_sum
from mtobal.solvers import min_norm
from mtobal.strategies.base import Step
from mtobal.strategies.card import Card
from mtobal.strategies.loss.learned import LearnedWeighting
from mtobal.strategies.registry import register


def moml_hypergradients(products: Tensor, weights: Tensor, inner_lr: float) -> Tensor:
    r"""Differentiate each validation loss after one inner step with respect to the logits of the weights.

    After ``theta' = theta - a sum_k w_k g_k`` with ``w = softmax(s)``, the derivative of the validation loss j is
    ``-a (diag(w) - w w^T) V g^T`` with the inner products of its gradient at theta' and those ``g_k`` at theta.

    Parameters
    ----------
    products : Tensor of shape (J, K)
        ``grad L_j^val(theta') . grad L_k(theta)``.
    weights : Tensor of shape (K,)
        Softmax weights.
    inner_lr : float

    Returns
    -------
    Tensor of shape (J, K)
        Each row has sum zero.
    """
    centred = products - (products * weights).sum(1, keepdim=True)
    return -inner_lr * weights * centred


def moml_direction(hypergradients: Tensor) -> Tensor:
    r"""Return the min-norm point of the hypergradients, each divided by its norm.

    Parameters
    ----------
    hypergradients : Tensor of shape (J, K)
        float64 on the CPU. One that is zero makes the point zero.

    Returns
    -------
    Tensor of shape (K,)
        Its negative lowers all validation losses at once, unless it is zero.

    References
    ----------
    Ye, Lin, Yue, Guo, Xiao and Zhang, Multi-Objective Meta Learning, NeurIPS 2021, arXiv:2102.07121, algorithm 1.

    Examples
    --------
    >>> import torch
    >>> moml_direction(torch.tensor([[1.0, -1.0], [3.0, -3.0]]).double())
    tensor([ 0.7071, -0.7071], dtype=torch.float64)
    """
    norms = hypergradients.norm(dim=1, keepdim=True)
    rows = hypergradients / norms.where(norms > 0, 1.0)
    weights = torch.from_numpy(min_norm((rows @ rows.T).numpy()))
    direction: Tensor = weights @ rows
    return direction


@register("moml")
class MOML(LearnedWeighting):
    """Learn weights of sum one, by a direction in which the validation losses of all tasks fall.

    Each step tries an inner step of plain gradient descent on the weighted training losses, and moves the weights
    by the min-norm point of the derivatives of all validation losses after it.

    Parameters
    ----------
    inner_lr : float
        Learning rate of the inner step.
    lr : float
        Learning rate of the logits of the weights, which have an Adam of their own.
    """

    card = Card(
        summary="Learns weights of sum one, by a direction in which the validation losses of all tasks fall.",
        when="A few tasks that matter equally, and a validation set that shows overfitting. A step costs two "
        "backward passes a task, and as much memory as K copies of the parameters. Needs to look ahead: "
        "`balancer.step(closure, optimizer, validation=...)` or the Lightning callback; without a validation "
        "batch the training batch serves as one.",
        paper="Ye et al., Multi-Objective Meta Learning, NeurIPS 2021, arXiv:2102.07121.",
        defaults_source="The official code for one inner step, that of FORUM; hypergradients are normalised as in "
        "LibMTL. The step itself is on the training batch alone.",
        state="K logits and the moments of their optimizer",
        scale="mean",
        heads="weighted",
        degree=None,
    )

    forward_passes = "3"
    backward_passes = "2K + 1"
    looks_ahead = True

    def __init__(self, inner_lr: float = 0.1, lr: float = 1e-3) -> None:
        super().__init__(lr)
        if inner_lr <= 0:
            raise UsageError(f"moml: the inner learning rate must be positive, not {inner_lr}.")
        self.inner_lr = inner_lr

    def weigh(self, step: Step) -> Tensor:
        return self.current(step).softmax(0)

    def look_ahead(self, ahead: LookAhead) -> None:
        here = ahead.training()
        step = Step(here.tasks, here.active, here.losses)
        weights = self.weigh(step)
        rows = here.gradients()
        with ahead.displaced(weighted_sum(rows, weights), -self.inner_lr):
            there = ahead.validation()
            rows += there.gradients()
        size = len(here.active)
        products = ahead.mean(inner_products(rows)[size:, :size], here, there)
        gradient = moml_direction(moml_hypergradients(products, weights.to(products), self.inner_lr))
        self.learn(step, gradient)
