"""Fast adaptive multitask optimization."""

from __future__ import annotations

from torch import Tensor

from mtobal.errors import UsageError
from mtobal.strategies.base import Step
from mtobal.strategies.card import Card
from mtobal.strategies.loss.learned import LearnedWeighting
from mtobal.strategies.per_task import PerTask, check_per_task, per_task
from mtobal.strategies.registry import register

# Added to the distance of a loss from its lower bound, as in the official code.
EPSILON = 1e-8


def famo_weights(logits: Tensor, losses: Tensor, bounds: Tensor) -> Tensor:
    r"""Return the task weights of FAMO's logits.

    ``w_k = z_k / (D_k c)`` with ``z = softmax(logits)``, ``D_k = L_k - b_k + 1e-8`` and ``c = sum_k z_k / D_k``:
    the derivative of ``sum_k (z_k / c) log D_k``, in which c counts as constant. At equal logits the weights
    are proportional to ``1 / D_k``.

    Parameters
    ----------
    logits, losses, bounds : Tensor of shape (K,)
        The bounds b lie below the losses.

    Returns
    -------
    Tensor of shape (K,)
        Not negative, with sum one. A loss at its bound takes all the weight.

    References
    ----------
    Liu, Feng, Stone and Liu, FAMO: Fast Adaptive Multitask Optimization, NeurIPS 2023, arXiv:2306.03792,
    algorithm 1.

    Examples
    --------
    >>> import torch
    >>> famo_weights(torch.zeros(2), torch.tensor([1.0, 3.0]), torch.zeros(2))
    tensor([0.7500, 0.2500])
    """
    return (logits - (losses - bounds + EPSILON).log()).softmax(0)


def famo_gradient(logits: Tensor, before: Tensor, after: Tensor, bounds: Tensor) -> Tensor:
    r"""Return the direction in which the logits descend.

    ``(diag(z) - z z^T) delta`` with the improvements ``delta_k = log D_k(before) - log D_k(after)``: a task that
    improves more than the others loses weight.

    Parameters
    ----------
    logits, before, after, bounds : Tensor of shape (K,)
        Losses of one batch before and after the optimizer's step.

    Returns
    -------
    Tensor of shape (K,)
        With sum zero.
    """
    shares = logits.softmax(0)
    improved = (before - bounds + EPSILON).log() - (after - bounds + EPSILON).log()
    return shares * (improved - (shares * improved).sum())


@register("famo")
class FAMO(LearnedWeighting):
    """Keep the relative improvements of all tasks equal, by a second look at the losses of each batch.

    Parameters
    ----------
    lr : float
        Learning rate of the logits, which have an Adam of their own.
    gamma : float
        Decay of the logits towards equal ones.
    min_losses : mapping or sequence of floats, optional
        Lower bounds of the losses, by default zero.
    """

    card = Card(
        summary="Keeps the relative improvements of all tasks equal, at the price of one more forward pass.",
        when="Many tasks, where one backward pass a task is too dear. Needs the losses of the batch once more "
        "after the optimizer's step: `balancer.step(closure, optimizer)` or the Lightning callback.",
        paper="Liu et al., FAMO: Fast Adaptive Multitask Optimization, NeurIPS 2023, arXiv:2306.03792.",
        defaults_source="As in the official runs on CelebA, NYUv2 and QM9.",
        state="K logits and the moments of their optimizer",
        scale="mean",
        heads="weighted",
    )

    forward_passes = "2"
    looks_again = True

    def __init__(self, lr: float = 0.025, gamma: float = 0.001, min_losses: PerTask | None = None) -> None:
        super().__init__(lr, weight_decay=gamma)
        check_per_task(min_losses, "famo: min_losses")
        self.min_losses = min_losses
        self._before: Tensor | None = None  # the losses whose second look is due

    def weigh(self, step: Step) -> Tensor:
        if self._before is not None:
            raise UsageError(
                "famo learns from the losses of a batch after the optimizer's step, and those of the last batch "
                "never came: train with balancer.step(closure, optimizer), or in Lightning without gradient "
                "accumulation."
            )
        losses = step.require_losses("famo")
        return famo_weights(self.current(step), losses, self._bounds(step, losses))

    def update(self, step: Step) -> None:
        self._before = step.require_losses("famo")

    def look_again(self, step: Step) -> None:
        if self._before is None:
            raise UsageError("famo: a second look at a batch comes after its backward pass, and once.")
        losses = step.require_losses("famo")
        gradient = famo_gradient(self.current(step), self._before, losses, self._bounds(step, losses))
        self.learn(step, gradient)
        self._before = None

    def set_extra_state(self, state: dict[str, object]) -> None:
        super().set_extra_state(state)
        self._before = None

    def _bounds(self, step: Step, losses: Tensor) -> Tensor:
        bounds = per_task(self.min_losses, 0.0, step, losses, "famo: min_losses")
        if (losses < bounds).any():
            below = [
                f"{step.tasks[task]!r} ({loss:.4g} < {bound:.4g})"
                for task, loss, bound in zip(step.active, losses.tolist(), bounds.tolist(), strict=True)
                if loss < bound
            ]
            raise UsageError(
                f"famo needs a lower bound of each loss, but that of task {', '.join(below)} lies below it: give "
                "bounds that no loss can pass, min_losses=."
            )
        return bounds
