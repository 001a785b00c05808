"""Gradient normalisation: gradients of one length, longer for tasks that lag behind."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from mtobal.errors import UsageError, unknown_name
from mtobal.ops import Jacobian, row_norms
from mtobal.strategies.base import Direction, JacobianAggregation, Step
from mtobal.strategies.card import Card
from mtobal.strategies.loss.positive import positive_losses
from mtobal.strategies.registry import register

Form = Literal["paper", "softmax"]

# A weight that a step would make negative restarts from here: it can grow back, and its head still learns.
LEAST_WEIGHT = 1e-3


def gradnorm_gradient(weights: Tensor, norms: Tensor, losses: Tensor, initial: Tensor, alpha: float) -> Tensor:
    r"""Differentiate ``sum_k |w_k n_k - t_k|`` with respect to the weights.

    The targets ``t_k = mean(w n) r_k^alpha`` count as constants. The relative rate ``r_k`` is ``L_k / L_k(0)``
    over its mean.

    Parameters
    ----------
    weights, norms, losses, initial : Tensor of shape (K,)
        The weights w, the norms n of the gradients at the chosen layer, the losses and those at the start. A task
        whose initial loss is zero counts as neither ahead nor behind.
    alpha : float
        How strongly the tasks are held together; zero asks for gradients of one length.

    Returns
    -------
    Tensor of shape (K,)
        ``sign(w_k n_k - t_k) n_k``; zero where a task is on target.

    References
    ----------
    Chen, Badrinarayanan, Lee and Rabinovich, GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep
    Multitask Networks, ICML 2018, arXiv:1711.02257, algorithm 1.

    Examples
    --------
    >>> import torch
    >>> one = torch.ones(2)
    >>> gradnorm_gradient(one, norms=torch.tensor([3.0, 1.0]), losses=one, initial=one, alpha=1.5)
    tensor([ 3., -1.])
    """
    ratios = torch.where(initial > 0, losses / initial.where(initial > 0, 1.0), 1.0)
    mean = ratios.mean()
    rates = ratios / mean if mean > 0 else torch.ones_like(ratios)
    lengths = weights * norms
    return torch.sign(lengths - lengths.mean() * rates**alpha) * norms


@register("gradnorm")
class GradNorm(JacobianAggregation):
    """Learn weights that bring the gradients at one layer to one length, longer for tasks that lag behind.

    Parameters
    ----------
    alpha : float
        How strongly tasks that lag behind, as their loss relative to the first one tells, are pushed.
    lr : float
        Learning rate of the weights.
    layer : str, optional
        Dotted name of the module or parameter at which gradients are measured; by default the module of the last
        shared parameter.
    form : {"paper", "softmax"}
        The paper takes a gradient step on the weights and divides by their mean, so that they add up to the
        number of tasks. ``softmax`` learns the logits of weights that do so by themselves.
    **common
        ``scale`` and ``heads``, as in every aggregation.
    """

    card = Card(
        summary="Learns weights that bring the gradients at one layer to one length, longer where a task lags.",
        when="Positive losses whose gradients differ in length, where all tasks should train at a similar pace. "
        "The weights move by the norms themselves, so the learning rate depends on their scale.",
        paper="Chen et al., GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask "
        "Networks, ICML 2018, arXiv:1711.02257.",
        defaults_source="The paper: alpha 1.5 (0.12 for tasks that are alike), a learning rate of 0.025, the last "
        "shared layer, and heads under the weighted loss.",
        state="K weights and the first loss of each task",
        scale="sum",
        heads="weighted",
        degree=None,
    )

    learned: Tensor | None
    initial: Tensor | None

    def __init__(
        self, alpha: float = 1.5, lr: float = 0.025, layer: str | None = None, form: Form = "paper", **common: Any
    ) -> None:
        super().__init__(**common)
        if alpha < 0:
            raise UsageError(f"gradnorm: alpha must not be negative, not {alpha}.")
        if lr <= 0:
            raise UsageError(f"gradnorm: the learning rate must be positive, not {lr}.")
        self.alpha = alpha
        self.lr = lr
        self.layer = layer
        self.form: Form = form
        self.register_buffer("learned", None)  # the weights, or their logits; both start at one
        self.register_buffer("initial", None)  # zero for a task that has had no positive loss yet
        self._next: tuple[Tensor, Tensor] | None = None

    def direct(self, jacobian: Jacobian, step: Step) -> Direction:
        learned, initial = self._state(step)
        losses = positive_losses(step, "gradnorm").to("cpu", torch.float64)
        active = list(step.active)
        initial[active] = initial[active].where(initial[active] > 0, losses)
        weights = self._weights(learned)[active]
        gradient = gradnorm_gradient(weights, self._norms(jacobian), losses, initial[active], self.alpha)
        self._next = self._moved(learned, active, weights, gradient), initial
        return Direction(jacobian.combine(weights), weights)

    def update(self, step: Step) -> None:
        if self._next is not None:
            self.learned, self.initial = self._next

    def _state(self, step: Step) -> tuple[Tensor, Tensor]:
        size = len(step.tasks)
        if self.learned is None or self.initial is None:
            return torch.ones(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
        if len(self.learned) != size:
            raise UsageError(f"gradnorm holds {len(self.learned)} tasks, but this step has {size}.")
        return self.learned.clone(), self.initial.clone()

    def _weights(self, learned: Tensor) -> Tensor:
        return learned if self.form == "paper" else len(learned) * learned.softmax(0)

    def _moved(self, learned: Tensor, active: list[int], weights: Tensor, gradient: Tensor) -> Tensor:
        """Return what is learned after a step; tasks that sit it out keep their share or their logit."""
        moved = learned.clone()
        if self.form == "softmax":
            pull = (weights * gradient).sum() / len(learned)
            moved[active] -= self.lr * weights * (gradient - pull)
            return moved
        moved[active] = (moved[active] - self.lr * gradient).clamp(min=LEAST_WEIGHT)
        return moved * (len(moved) / moved.sum())

    def _norms(self, jacobian: Jacobian) -> Tensor:
        """Return the norm of each task's gradient at the layer."""
        modules = [name.rpartition(".")[0] for name in jacobian.names]
        if self.layer is None:
            chosen = [module == modules[-1] for module in modules]
        else:
            chosen = [f"{name}.".startswith(f"{self.layer}.") for name in jacobian.names]
        if self.layer is not None and not any(chosen):
            raise unknown_name("layer of gradnorm among the shared parameters", self.layer, set(modules))
        return row_norms(block for block, inside in zip(jacobian.blocks, chosen, strict=True) if inside)
