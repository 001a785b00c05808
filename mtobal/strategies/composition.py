"""Strategies of different places, joined by the algebra of task weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from mtobal.errors import UsageError
from mtobal.gradients import LookAhead
from mtobal.ops import Jacobian
from mtobal.strategies.base import (
    Aggregation,
    Direction,
    JacobianAggregation,
    LossWeighting,
    Perturbation,
    Regulariser,
    Revision,
    Step,
    Strategy,
    Validation,
)


class Composition(nn.Module):
    """At most one strategy for each place of the step.

    A loss weighting with weights lambda turns losses L and Gramian G into ``lambda L`` and
    ``diag(lambda) G diag(lambda)``; the aggregation answers with w, and the gradient of the shared parameters
    becomes ``sum_k lambda_k w_k g_k``. A place left empty weighs every task with one. Weights that a revision
    takes from validations are factors of lambda. A perturbation changes where the gradients g_k are taken.

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
        self.perturbation: Perturbation | None = None
        self.revision: Revision | None = None
        self.regulariser: Regulariser | None = None
        for strategy in strategies:
            if isinstance(strategy, LossWeighting):
                self._place("loss_weighting", strategy)
            elif isinstance(strategy, Aggregation):
                self._place("aggregation", strategy)
            elif isinstance(strategy, Perturbation):
                self._place("perturbation", strategy)
            elif isinstance(strategy, Revision):
                self._place("revision", strategy)
            elif isinstance(strategy, Regulariser):
                self._place("regulariser", strategy)
            else:
                raise UsageError(f"strategy spec {spec!r}: {strategy!r} fills no place of the step.")
        self._wrap(self.perturbation, self.aggregation)

    def _place(self, attribute: str, strategy: Strategy) -> None:
        taken = getattr(self, attribute)
        if taken is not None:
            first, second = (part.card.name or type(part).__name__ for part in (taken, strategy))
            raise UsageError(
                f"strategy spec {self.spec!r}: {first!r} and {second!r} both fill the place "
                f"{strategy.place!r}; keep one of them."
            )
        setattr(self, attribute, strategy)

    def _wrap(self, perturbation: Perturbation | None, aggregation: Aggregation | None) -> None:
        if perturbation is not None and aggregation is not None:
            perturbation.wrap(aggregation)

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
        if self.revision is not None:
            weights = weights * self.revision.weigh(step)
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
            Gramian of the gradients of the raw losses, float64 on the CPU. A perturbation that keeps the gradients
            of where the parameters stand gets (2 A, 2 A).
        step : Step
            The step with the raw losses.
        loss_weights : Tensor of shape (A,)
            What `loss_weights` returned for this step.

        Returns
        -------
        Tensor of shape (A,)
            One weight a row, to be multiplied with the loss weights, float64 on the CPU.
        """
        if self.aggregation is None:
            return torch.ones(len(gramian), dtype=torch.float64)
        scales = loss_weights.to("cpu", torch.float64).repeat(len(gramian) // len(loss_weights))
        weighted_step = _weighted(step, loss_weights)
        weighted = scales[:, None] * gramian * scales
        if self.perturbation is None:
            weights = self.aggregation.weights(weighted, weighted_step)
        else:
            weights = self.perturbation.weights(self.aggregation, weighted, weighted_step)
        weights = weights.to("cpu", torch.float64)
        if weights.shape != scales.shape:
            raise UsageError(
                f"{self.spec!r} gave weights of shape {tuple(weights.shape)} for {len(scales)} tasks."
            )
        return weights

    def aggregation_direction(self, jacobian: Jacobian, step: Step, loss_weights: Tensor) -> Direction:
        """Return the direction of an aggregation that reads the Jacobian of the unweighted losses.

        Its weights, if it has any, are to be multiplied with the loss weights.
        """
        assert isinstance(self.aggregation, JacobianAggregation)
        if self.loss_weighting is not None or self.revision is not None:
            jacobian = jacobian.scaled(loss_weights.repeat(len(jacobian.blocks[0]) // len(loss_weights)))
        weighted_step = _weighted(step, loss_weights)
        if self.perturbation is None:
            found = self.aggregation.direct(jacobian, weighted_step)
        else:
            found = self.perturbation.direct(self.aggregation, jacobian, weighted_step)
        factor = self.aggregation.factor(step)
        if factor == 1.0:
            return found
        weights = None if found.weights is None else factor * found.weights
        return Direction([block * factor for block in found.blocks], weights)

    def head_weights(self, weights: Tensor | None, step: Step, loss_weights: Tensor) -> Tensor:
        """Return the weights on the task-own gradients, given the aggregation's own on the shared ones."""
        scales = loss_weights.to("cpu", torch.float64)
        if self.aggregation is None or self.aggregation.heads == "raw":
            return scales
        return scales * self.aggregation.head_weights(weights, _weighted(step, loss_weights)).to(scales)

    @property
    def strategies(self) -> list[Strategy]:
        """The strategies of the places that are filled."""
        places = (self.loss_weighting, self.aggregation, self.perturbation, self.revision, self.regulariser)
        filled: list[Strategy] = [strategy for strategy in places if strategy is not None]
        return filled if self.perturbation is None else [*filled, *self.perturbation.wrapped]

    @property
    def looks_again(self) -> bool:
        """Whether a strategy wants the losses of the same batch once more after the optimizer's step."""
        return any(strategy.looks_again for strategy in self.strategies)

    @property
    def repeats(self) -> bool:
        """Whether a batch is run more than once, with the random numbers of the first run."""
        return self.looks_again or self.perturbation is not None

    def look_again(self, step: Step) -> None:
        """Let the strategies that look again learn from the losses after the optimizer's step."""
        for strategy in self.strategies:
            if strategy.looks_again:
                strategy.look_again(step)

    @property
    def looks_ahead(self) -> bool:
        """Whether a strategy tries out steps before each step."""
        return any(strategy.looks_ahead for strategy in self.strategies)

    def look_ahead(self, ahead: LookAhead) -> None:
        """Let the strategies that look ahead try out steps."""
        for strategy in self.strategies:
            if strategy.looks_ahead:
                strategy.look_ahead(ahead)

    def random_states(self) -> list[Tensor]:
        """Return the states of all random generators."""
        return [s.generator.get_state() for s in self.strategies if s.generator is not None]

    def set_random_states(self, states: Sequence[Tensor]) -> None:
        """Restore what `random_states` returned."""
        generators = [strategy.generator for strategy in self.strategies if strategy.generator is not None]
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)

    def revise(self, validation: Validation) -> None:
        """Let the strategy that reads validations, if there is one, take new weights from it."""
        if self.revision is not None:
            self.revision.revise(validation)

    def end_epoch(self) -> None:
        """Tell every strategy that an epoch has ended."""
        for strategy in self.strategies:
            strategy.end_epoch()

    def update(self, step: Step, loss_weights: Tensor | None = None) -> None:
        """Let every strategy learn from a step whose weights have been applied.

        The aggregation learns from the losses that it was shown, those under the loss weights, if there are any.
        """
        if self.loss_weighting is not None:
            self.loss_weighting.update(step)
        shown = step if loss_weights is None else _weighted(step, loss_weights)
        if self.aggregation is not None:
            self.aggregation.update(shown)
        if self.perturbation is not None:
            self.perturbation.update(shown)


def _weighted(step: Step, loss_weights: Tensor) -> Step:
    """Return the step as the aggregation sees it, with weighted losses."""
    losses = None if step.losses is None else step.losses * loss_weights.to(step.losses)
    return replace(step, losses=losses)
