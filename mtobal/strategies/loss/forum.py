"""FORUM: validation losses are minimised together, under the constraint that the training loss is."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mtobal.errors import UsageError
from mtobal.gradients import LookAhead, inner_products, weighted_sum
from mtobal.gradients.lookahead import Gradient, Seen
from mtobal.solvers import min_norm, nonnegative_minimum
from mtobal.solvers.nonnegative import Array
from mtobal.strategies.base import Step
from mtobal.strategies.card import Card
from mtobal.strategies.loss.learned import LearnedWeighting
from mtobal.strategies.memory import simplex_share, with_share
from mtobal.strategies.registry import register

# How much more a constraint weighs than the objective, while the multipliers are found.
_PENALTY = 1e3
_ROUNDS = 50
_SETTLED = 1e-14


def forum_multipliers(gramian: Array, slopes: Array, square: float, rho: float) -> Array:
    r"""Find the weights of the objectives.

    Solves ``min || sum_k w_k f_k + nu q ||^2 - nu rho ||q||^2`` over ``w >= 0, sum w = 1`` and
    ``nu >= max(0, sum_k w_k pi_k)`` with ``pi_k = rho - f_k . q / ||q||^2``. At the solution nu is its bound, so
    that only the weights are left: with ``t = sum_k w_k f_k . q``, the objective is
    ``||f_w||^2 - t^2 / ||q||^2 + rho t`` where ``t <= rho ||q||^2``, ``||f_w||^2`` beyond, and convex. So one
    of three solutions is that of the whole: of the first piece, of the second, or of the line between both.

    Parameters
    ----------
    gramian : array of shape (K, K)
        ``f_k . f_l`` of rows of length one or zero.
    slopes : array of shape (K,)
        ``f_k . q``.
    square : float
        ``||q||^2``. Without a constraint, where it is zero, the weights are those of the min-norm point.
    rho : float
        Not negative.

    Returns
    -------
    array of shape (K,)
        w.

    References
    ----------
    Ye, Lin, Cao, Zhang and Tsang, A First-Order Multi-Gradient Algorithm for Multi-Objective Bi-Level
    Optimization, ECAI 2024, arXiv:2401.09257, problem 14.

    Examples
    --------
    >>> import numpy as np
    >>> forum_multipliers(np.eye(2), np.array([0.0, 0.0]), square=1.0, rho=0.1)
    array([0.5, 0.5])
    """
    length = np.sqrt(square)
    if length == 0:
        return min_norm(gramian)
    cosines = slopes / length
    bound = rho * length
    across = gramian - np.outer(cosines, cosines)
    inner = _simplex_minimum(across, bound * cosines)
    if cosines @ inner <= bound:
        return inner
    outer = min_norm(gramian)
    if cosines @ outer >= bound:
        return outer
    return _simplex_minimum(across, np.zeros_like(cosines), cosines - bound)


def forum_constraint(weights: Array, slopes: Array, square: float, rho: float) -> float:
    """Return nu, the weight of the constraint: zero where the objectives alone lower it enough.

    See `forum_multipliers` for the parameters. With it, ``(f_w + nu q) . q >= rho ||q||^2``.
    """
    return max(0.0, rho - float(weights @ slopes) / square) if square > 0 else 0.0


def _simplex_minimum(matrix: Array, linear: Array, plane: Array | None = None) -> Array:
    """Minimise ``w^T M w + linear^T w`` on the simplex, and where it is given on ``plane^T w = 0``.

    By the method of multipliers, whose inner problems are solved exactly; it takes a few rounds.
    """
    scale = max(np.abs(matrix).max(), np.abs(linear).max(), np.finfo(np.float64).tiny)
    sides = [np.ones_like(linear)]
    if plane is not None:
        sides.append(plane / max(np.abs(plane).max(), np.finfo(np.float64).tiny))
    equalities = np.stack(sides)
    wanted = np.zeros(len(sides))
    wanted[0] = 1.0
    hessian = 2 * matrix / (scale * _PENALTY) + equalities.T @ equalities
    multipliers = np.zeros_like(wanted)
    for _ in range(_ROUNDS):
        weights = nonnegative_minimum(hessian, equalities.T @ (wanted + multipliers) - linear / (scale * _PENALTY))
        missing = wanted - equalities @ weights
        multipliers += missing
        if np.abs(missing).max() <= _SETTLED:
            break
    return np.asarray(weights / weights.sum())


@register("forum")
class FORUM(LearnedWeighting):
    """Minimise the validation losses of all tasks, under the constraint that the training loss is minimal.

    The training loss is a sum under learned weights of sum one. The constraint says that it may not exceed what a
    few inner steps would make of it; it needs first derivatives only, and adds the gradient of the training loss
    to that of the validation losses as far as these do not lower it enough by themselves.

    Where the training batch serves as validation batch too, the weights of its losses are those of both roles;
    where there is another, they are those of the constraint alone, and the weighted gradients of the validation
    losses come on top.

    Parameters
    ----------
    rho : float
        How fast the constraint is to be met.
    inner_lr : float
        Learning rate of the inner steps.
    inner_steps : int
        Their number.
    lr : float
        Learning rate of the logits of the training weights, which have an Adam of their own.
    """

    card = Card(
        summary="Minimises the validation losses of all tasks, under the constraint that the training loss is "
        "minimal.",
        when="A few tasks that matter equally, and a validation set. Dear: a backward pass a task and those of "
        "the inner steps, and as much memory as K copies of the parameters. Needs to look ahead: "
        "`balancer.step(closure, optimizer, validation=...)` or the Lightning callback; without a validation "
        "batch the training batch serves as one, for a pass less in each direction.",
        paper="Ye et al., A First-Order Multi-Gradient Algorithm for Multi-Objective Bi-Level Optimization, "
        "ECAI 2024, arXiv:2401.09257.",
        defaults_source="The official code.",
        state="K logits, the moments of their optimizer, the averaged multipliers and the count of epochs",
        scale="own",
        heads="weighted",
        degree=None,
    )

    forward_passes = "inner_steps + 3"
    backward_passes = "K + inner_steps + 1"
    looks_ahead = True

    epochs: Tensor
    multipliers: Tensor | None

    def __init__(self, rho: float = 0.1, inner_lr: float = 0.1, inner_steps: int = 5, lr: float = 1e-3) -> None:
        super().__init__(lr)
        if rho < 0:
            raise UsageError(f"forum: rho must not be negative, but is {rho}.")
        if inner_lr <= 0:
            raise UsageError(f"forum: the inner learning rate must be positive, not {inner_lr}.")
        if inner_steps < 1:
            raise UsageError(f"forum: there must be at least 1 inner step, not {inner_steps}.")
        self.rho = rho
        self.inner_lr = inner_lr
        self.inner_steps = inner_steps
        self.register_buffer("epochs", torch.zeros((), dtype=torch.int64))
        self.register_buffer("multipliers", None)
        self._weights: Tensor | None = None  # of all tasks, for the step ahead

    def weigh(self, step: Step) -> Tensor:
        if self._weights is None:
            raise UsageError(
                "forum finds its weights ahead of a step: train by balancer.step(closure, optimizer)."
            )
        return self._weights[list(step.active)].to(step.require_losses("forum"))

    def look_ahead(self, ahead: LookAhead) -> None:
        here = ahead.training()
        step = Step(here.tasks, here.active, here.losses)
        shares = self.current(step).softmax(0)
        if ahead.validates:
            slope = here.gradient(shares)
            there = ahead.validation()
            objectives = there.gradients()
        else:
            there, objectives = here, here.gradients()
            slope = weighted_sum(objectives, shares)
        gaps = here.losses - self._minimise(ahead, here, slope, shares)
        # How the constraint changes with the logits, which the objectives do not depend on.
        logits = ahead.mean(shares * (gaps - (shares * gaps).sum()), here)
        products = ahead.mean(inner_products([*objectives, slope]), here, there)
        products[-1, -1] += float(logits.double().square().sum())
        factors, nu = self._solve(products, Step(there.tasks, there.active, there.losses))

        weights = torch.zeros(len(here.tasks), dtype=torch.float64)
        weights[list(here.active)] = nu * shares.to(weights)
        if ahead.validates:
            ahead.extra = weighted_sum(objectives, factors)
        else:
            weights[list(there.active)] += factors
        self._weights = weights
        self.learn(step, nu * logits)

    def update(self, step: Step) -> None:
        self._weights = None

    def end_epoch(self) -> None:
        self.epochs += 1

    def set_extra_state(self, state: dict[str, object]) -> None:
        super().set_extra_state(state)
        self._weights = None

    def _solve(self, products: Tensor, step: Step) -> tuple[Tensor, float]:
        """Return the factors on the gradients of the validation losses, and the one on that of the constraint.

        Parameters
        ----------
        products : Tensor of shape (A + 1, A + 1)
            The inner products of these gradients, that of the constraint being the last.
        step : Step
            The tasks of the validation batch.
        """
        norms = products.diag()[:-1].sqrt()
        scales = torch.where(norms > 0, norms, 1.0)
        slopes = (products[-1, :-1] / scales).numpy()
        square = float(products[-1, -1])
        cosines = (products[:-1, :-1] / scales / scales[:, None]).numpy()
        found = torch.from_numpy(forum_multipliers(cosines, slopes, square, self.rho))
        share = simplex_share(self.multipliers, step).lerp(found, float(self.epochs + 1) ** -0.75)
        self.multipliers = with_share(self.multipliers, share, step)
        return share / scales, forum_constraint(share.numpy(), slopes, square, self.rho)

    def _minimise(self, ahead: LookAhead, here: Seen, slope: Gradient, shares: Tensor) -> Tensor:
        """Return the training losses after the inner steps, or after those before the first that diverges."""
        way = [-self.inner_lr * part for part in slope]
        losses = here.losses
        for number in range(self.inner_steps):
            with ahead.displaced(way):
                if number == self.inner_steps - 1:
                    reached = ahead.training_losses(here.active)
                else:
                    seen = ahead.training()
                    reached = seen.losses
                    slope = seen.gradient(shares)
            if not reached.isfinite().all():
                break
            losses = reached
            way = [one.sub_(other, alpha=self.inner_lr) for one, other in zip(way, slope, strict=True)]
        return losses
