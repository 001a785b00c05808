"""Auto-Lambda: weights that let one step on the training losses lower the validation losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mtobal.errors import UsageError, unknown_name
from mtobal.gradients import LookAhead
from mtobal.strategies.base import Step
from mtobal.strategies.card import Card
from mtobal.strategies.loss.learned import LearnedWeighting
from mtobal.strategies.registry import register

Form = Literal["raw", "softmax"]

# Length of the displacements by which the losses are compared, as in the official code.
REACH = 0.01


def auto_lambda_gradient(ahead: Tensor, behind: Tensor, reach: float) -> Tensor:
    r"""Differentiate the validation loss after a virtual step with respect to the weights of the step.

    After ``theta' = theta - a sum_k w_k grad L_k(theta)``, the derivative of the validation loss with respect to
    ``w_k`` is the slope of ``L_k`` at theta along ``u = -a grad L_val(theta')``. Central differences give it
    without second derivatives, and exactly where the loss is quadratic.

    Parameters
    ----------
    ahead, behind : Tensor of shape (K,)
        The training losses at ``theta + reach u`` and at ``theta - reach u``.
    reach : float
        Positive.

    Returns
    -------
    Tensor of shape (K,)

    References
    ----------
    Liu, James, Davison and Johns, Auto-Lambda: Disentangling Dynamic Task Relationships, TMLR 2022,
    arXiv:2202.03091, equation 7.

    Examples
    --------
    >>> import torch
    >>> auto_lambda_gradient(torch.tensor([1.5, 0.9]), torch.tensor([0.5, 1.1]), reach=0.5)
    tensor([ 1.0000, -0.2000])
    """
    return (ahead - behind) / (2 * reach)


@register("auto_lambda")
class AutoLambda(LearnedWeighting):
    """Learn the weights with which one step on the training losses lowers the validation losses most.

    Parameters
    ----------
    primary : sequence of str, optional
        The tasks whose validation losses count; the others help them. By default all.
    form : {"raw", "softmax"}
        ``raw`` learns the weights themselves, which may become negative; its virtual step has the optimizer's
        momentum and weight decay. ``softmax`` learns weights of sum one by a virtual step without both, as LibMTL
        does.
    lr : float, optional
        Learning rate of the weights, which have an Adam of their own; by default 1e-4, and 1e-3 for ``softmax``.
    init : float
        Where raw weights start.
    """

    card = Card(
        summary="Learns the weights with which one step on the training losses lowers the validation losses most.",
        when="A few primary tasks that others should help, and a validation set to measure it. A step costs about "
        "four times as much as with equal weights. Needs to look ahead: `balancer.step(closure, optimizer, "
        "validation=...)` or the Lightning callback; without a validation batch the training batch serves as one.",
        paper="Liu et al., Auto-Lambda: Disentangling Dynamic Task Relationships, TMLR 2022, arXiv:2202.03091.",
        defaults_source="The official code; form=softmax as in LibMTL.",
        state="K weights and the moments of their optimizer",
        scale="own",
        heads="weighted",
        degree=None,
        raises_losses=True,
    )

    forward_passes = "5"
    backward_passes = "3"
    looks_ahead = True

    def __init__(
        self,
        primary: Sequence[str] | None = None,
        form: Form = "raw",
        lr: float | None = None,
        init: float = 0.1,
    ) -> None:
        super().__init__({"raw": 1e-4, "softmax": 1e-3}[form] if lr is None else lr)
        if primary is not None and not primary:
            raise UsageError(f"auto_lambda: primary must be a list of tasks, not {primary!r}.")
        if not math.isfinite(init):
            raise UsageError(f"auto_lambda: init must be finite, not {init}.")
        self.primary = primary
        self.form: Form = form
        self.init = init

    def weigh(self, step: Step) -> Tensor:
        if self.form == "softmax":
            return self.current(step).softmax(0)
        return self.current(step, self.init)

    def look_ahead(self, ahead: LookAhead) -> None:
        here = ahead.training()
        step = Step(here.tasks, here.active, here.losses)
        weights = self.weigh(step)
        way = ahead.virtual_step(here.gradient(weights), whole=self.form == "raw")
        with ahead.displaced(way):
            there = ahead.validation()
            chosen = self._primary(there.tasks)
            counted = torch.tensor([float(task in chosen) for task in there.active]).to(there.losses)
            back = ahead.virtual_step(there.gradient(counted))
        length = math.sqrt(sum(float(part.double().square().sum()) for part in back))
        if length != 0:
            reach = REACH / length
            with ahead.displaced(back, reach):
                further = ahead.training_losses(here.active)
            with ahead.displaced(back, -reach):
                behind = ahead.training_losses(here.active)
            gradient = auto_lambda_gradient(further, behind, reach)
        else:  # the validation losses stand at a minimum, or the learning rate is zero
            gradient = torch.zeros_like(weights)
        gradient = ahead.mean(gradient, here, there)
        if self.form == "softmax":
            gradient = weights * (gradient - (weights * gradient).sum())
        self.learn(step, gradient)

    def _primary(self, tasks: tuple[str, ...]) -> set[int]:
        """Return the indices of the tasks whose validation losses count."""
        if self.primary is None:
            return set(range(len(tasks)))
        for name in self.primary:
            if name not in tasks:
                raise unknown_name("task in auto_lambda: primary", name, tasks)
        return {tasks.index(name) for name in self.primary}
