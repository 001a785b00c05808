"""Strategies of different places, joined by the algebra of task weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtobal.errors import UsageError
from mtobal.strategies.base import Aggregation, LossWeighting, Step, Strategy


class Composition(nn.Module):
    """At most one strategy for each place of the step.

    A loss weighting with weights lambda turns losses L and Gramian G into ``lambda L`` and
    ``diag(lambda) G diag(lambda)``; the aggregation answers with w, and the gradient of the shared parameters
    becomes ``sum_k lambda_k w_k g_k``. A place left empty weighs every task with one.

    Parameters
    ----------
    strategies : sequence of Strategy
        In any order.
    spec : str
        The spec they were built from, for messages.
    """

    def __init__(self, strategies: Sequence[Strategy], spec: str) -> None:
        super().__init__()
        self.spec = spec
        self.loss_weighting: LossWeighting | None = None
        self.aggregation: Aggregation | None = None
        for strategy in strategies:
            if isinstance(strategy, LossWeighting):
                self._place("loss_weighting", strategy)
            elif isinstance(strategy, Aggregation):
                self._place("aggregation", strategy)
            else:
                raise UsageError(f"strategy spec {spec!r}: {strategy!r} fills no place of the step.")

    def _place(self, attribute: str, strategy: Strategy) -> None:
        taken = getattr(self, attribute)
        if taken is not None:
            first, second = (part.card.name or type(part).__name__ for part in (taken, strategy))
            raise UsageError(
                f"strategy spec {self.spec!r}: {first!r} and {second!r} both fill the place "
                f"{strategy.place!r}; keep one of them."
            )
        setattr(self, attribute, strategy)

    def __repr__(self) -> str:
        return f"Composition({self.spec!r})"

    def loss_weights(self, step: Step) -> Tensor:
        """Return the weights lambda of the active tasks, of shape (A,), on the device of the losses."""
        if self.loss_weighting is not None:
            weights = self.loss_weighting.weigh(step)
        elif step.losses is not None:
            weights = torch.ones_like(step.losses)
        else:
            weights = torch.ones(len(step.active), dtype=torch.float64)
        if weights.shape != (len(step.active),):
            raise UsageError(
                f"{self.spec!r} gave weights of shape {tuple(weights.shape)} for {len(step.active)} tasks."
            )
        return weights

    def aggregation_weights(self, gramian: Tensor, step: Step, loss_weights: Tensor) -> Tensor:
        """Return the weights w of the aggregation, given the Gramian of the unweighted gradients.

        Parameters
        ----------
        gramian : Tensor of shape (A, A)
            Gramian of the gradients of the raw losses, float64 on the CPU.
        step : Step
            The step with the raw losses.
        loss_weights : Tensor of shape (A,)
            What `loss_weights` returned for this step.

        Returns
        -------
        Tensor of shape (A,)
            To be multiplied with the loss weights, float64 on the CPU.
        """
        if self.aggregation is None:
            return torch.ones(len(gramian), dtype=torch.float64)
        scales = loss_weights.to("cpu", torch.float64)
        losses = None if step.losses is None else step.losses * loss_weights
        weighted_step = Step(tasks=step.tasks, active=step.active, losses=losses)
        weights = self.aggregation.weights(scales[:, None] * gramian * scales, weighted_step)
        weights = weights.to("cpu", torch.float64)
        if weights.shape != scales.shape:
            raise UsageError(
                f"{self.spec!r} gave weights of shape {tuple(weights.shape)} for {len(scales)} tasks."
            )
        return weights

    def update(self, step: Step) -> None:
        """Let every strategy learn from a step whose weights have been applied."""
        for strategy in (self.loss_weighting, self.aggregation):
            if strategy is not None:
                strategy.update(step)
