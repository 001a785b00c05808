"""The places of a training step and the base class of the strategies that fill each of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from mtobal.errors import UsageError
from mtobal.gradients import Landscape, LookAhead, Point
from mtobal.ops import Jacobian
from mtobal.strategies.card import Card, Heads, Reads


@dataclass(frozen=True)
class Step:
    """What a strategy may read in one training step, besides the gradients.

    Attributes
    ----------
    tasks : tuple of str
        The names of all K tasks of the training, in their fixed order.
    active : tuple of int
        Indices of the A tasks that have a loss in this step; the others sit it out.
    losses : Tensor of shape (A,) or None
        The detached losses of the active tasks, or None where only gradients are known.
    representation : Tensor or None
        The detached output of the shared encoder, one row a sample, if the training loop gives it.
    """

    tasks: tuple[str, ...]
    active: tuple[int, ...]
    losses: Tensor | None = None
    representation: Tensor | None = None

    @classmethod
    def of(cls, num_tasks: int, losses: Tensor | None = None) -> Step:
        """Build the step in which `num_tasks` unnamed tasks are all active."""
        names = tuple(str(task) for task in range(num_tasks))
        return cls(tasks=names, active=tuple(range(num_tasks)), losses=losses)

    def require_losses(self, strategy: str) -> Tensor:
        """Return the losses, or say that `strategy` cannot do without them."""
        if self.losses is None:
            raise UsageError(f"{strategy} reads the losses: pass losses=, one value a task.")
        return self.losses

    def require_representation(self, strategy: str) -> Tensor:
        """Return the shared representation, or say that `strategy` cannot do without it."""
        if self.representation is None:
            raise UsageError(
                f"{strategy} reads the shared representation: call balancer(losses, representation=z) with the "
                "output of the encoder, or return it from training_step under 'representation'."
            )
        return self.representation


class Strategy(nn.Module):
    """A method that fills one place of the step.

    All state lives in `state_dict`: parameters and buffers as in any module, and beside them the strategy's
    own random generator and the optimizer of its learned parameters. State whose shape depends on the number
    of tasks is registered as None and created at the first step; loading creates it from the saved shape.

    Attributes
    ----------
    looks_again : bool
        Whether the strategy wants the losses of the same batch once more, after the optimizer's step.
    looks_ahead : bool
        Whether the strategy tries out steps before each step, and wants a validation batch for it.
    generator : torch.Generator or None
        Source of all random draws of the strategy, on the CPU so that every rank draws the same.
    optimizer : torch.optim.Optimizer or None
        Updates the strategy's learned parameters, apart from the user's optimizer.
    """

    place: ClassVar[str]
    reads: ClassVar[Reads]
    forward_passes: ClassVar[str] = "1"
    backward_passes: ClassVar[str]
    looks_again: ClassVar[bool] = False
    looks_ahead: ClassVar[bool] = False
    card: ClassVar[Card] = Card()

    def __init__(self) -> None:
        super().__init__()
        self.generator: torch.Generator | None = None
        self.optimizer: torch.optim.Optimizer | None = None

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Build the optimizer of the learned parameters; strategies that learn some override this."""
        raise NotImplementedError(f"{type(self).__name__} has learned parameters but no optimizer.")

    def update(self, step: Step) -> None:
        """Learn from a step whose weights have been applied. Nothing to do for a stateless strategy."""

    def look_again(self, step: Step) -> None:
        """Learn from the losses of the same batch after the optimizer's step, where `looks_again` is set."""

    def look_ahead(self, ahead: LookAhead) -> None:
        """Try out steps before a step, where `looks_ahead` is set, and learn from them."""

    def end_epoch(self) -> None:
        """Take note that an epoch of training has ended."""

    def get_extra_state(self) -> dict[str, Any]:
        """Return the state that is neither parameter nor buffer."""
        return {
            "generator": None if self.generator is None else self.generator.get_state(),
            "optimizer": None if self.optimizer is None else self.optimizer.state_dict(),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_extra_state` returned."""
        if self.generator is not None and state["generator"] is not None:
            self.generator.set_state(state["generator"].cpu())
        self.optimizer = None
        if state["optimizer"] is not None:
            self.optimizer = self.make_optimizer()
            self.optimizer.load_state_dict(state["optimizer"])

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # What is not saved was not there yet.
        for name, parameter in self._parameters.items():
            saved = state_dict.get(prefix + name)
            if saved is None:
                self._parameters[name] = None
            elif parameter is None or parameter.shape != saved.shape:
                self._parameters[name] = nn.Parameter(torch.empty_like(saved))
        for name, buffer in self._buffers.items():
            saved = state_dict.get(prefix + name)
            if saved is None:
                self._buffers[name] = None
            elif buffer is None or buffer.shape != saved.shape:
                self._buffers[name] = torch.empty_like(saved)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class LossWeighting(Strategy):
    """Turns the losses of the active tasks into one weight each."""

    place = "loss weighting"
    reads: ClassVar[Reads] = "losses"
    backward_passes = "1"

    def weigh(self, step: Step) -> Tensor:
        """Return the task weights.

        Parameters
        ----------
        step : Step
            The step at hand.

        Returns
        -------
        Tensor of shape (A,)
            The weight of each active task, without graph, on the device of the losses.
        """
        raise NotImplementedError


class Aggregation(Strategy):
    """Turns the Gramian of the task gradients into one weight each.

    Parameters
    ----------
    scale : {"native", "sum"}
        ``native`` keeps the scale of the paper; ``sum`` asks for weights on the scale of the plain sum, so that
        a learning rate tuned for equal weights keeps its meaning.
    heads : {"raw", "weighted"} or None
        The gradient of task-own parameters: the plain one of their loss, or the weighted one.
        None follows the official code of the method, as its card says.
    """

    place = "gradient aggregation"
    reads: ClassVar[Reads] = "gramian"
    backward_passes = "K"

    def __init__(self, *, scale: Literal["native", "sum"] = "native", heads: Heads | None = None) -> None:
        super().__init__()
        if scale == "sum" and self.card.scale == "own":
            raise UsageError(
                f"{type(self).__name__} has a scale of its own, on which no factor gives that of the sum: "
                "leave scale='native'."
            )
        self.scale = scale
        self.heads: Heads = self.card.heads if heads is None else heads

    def solve(self, gramian: Tensor, step: Step) -> Tensor:
        """Return the task weights on the native scale.

        Parameters
        ----------
        gramian : Tensor of shape (A, A)
            ``G = J J^T`` of the active tasks, float64 on the CPU.
        step : Step
            The step at hand.

        Returns
        -------
        Tensor of shape (A,)
            Weights w; the gradient of the shared parameters becomes ``J^T w``.
        """
        raise NotImplementedError

    def factor(self, step: Step) -> float:
        """Return what the native scale is multiplied with to reach the scale that was asked for."""
        return float(len(step.active)) if self.scale == "sum" and self.card.scale == "mean" else 1.0

    def weights(self, gramian: Tensor, step: Step) -> Tensor:
        """Solve for the task weights and bring them to the scale that was asked for."""
        return self.solve(gramian, step) * self.factor(step)

    def head_weights(self, weights: Tensor | None, step: Step) -> Tensor:
        """Return the weights on task-own gradients where heads are weighted, given those on shared ones if any."""
        assert weights is not None
        return weights


class RepresentationAggregation(Aggregation):
    """Turns the Gramian of the gradients with respect to the shared representation into task weights.

    The encoder then needs one backward pass whatever the number of tasks.
    """

    reads: ClassVar[Reads] = "representation"
    backward_passes = "1 and K of the heads"


@dataclass(frozen=True)
class Direction:
    """What a strategy makes of a Jacobian.

    Attributes
    ----------
    blocks : list of Tensor
        The direction, one block of shape (n,) a parameter, in the order of the Jacobian's blocks.
    weights : Tensor of shape (A,) or None
        The task weights, where the direction is ``J^T w``; None where it is no such sum.
    """

    blocks: list[Tensor]
    weights: Tensor | None = None


class JacobianAggregation(Aggregation):
    """Turns the Jacobian itself into a direction, for methods that a Gramian does not suffice."""

    reads: ClassVar[Reads] = "jacobian"

    def __init__(self, *, scale: Literal["native", "sum"] = "native", heads: Heads | None = None) -> None:
        super().__init__(scale=scale, heads=heads)
        if heads == "weighted" and self.card.heads == "raw":
            raise UsageError(f"{type(self).__name__} has no task weights that the heads could get: heads=raw.")

    def direct(self, jacobian: Jacobian, step: Step) -> Direction:
        """Return the direction on the native scale.

        Parameters
        ----------
        jacobian : Jacobian
            One row an active task, one block a shared parameter; not to be modified.
        step : Step
            The step at hand.

        Returns
        -------
        Direction
        """
        raise NotImplementedError


class Perturbation(Strategy):
    """Chooses the points at which the gradients of the tasks are taken, in place of where the parameters stand.

    It wraps whatever aggregation there is. The losses that it is shown are those under the loss weights.

    Attributes
    ----------
    keeps_clean : bool
        Whether an aggregation is shown 2 A rows: the gradients where the parameters stand, and by how much those
        at the chosen points differ from them. Otherwise it is shown the gradients at the chosen points.
    max_norm : float
        The largest norm of the direction on the shared parameters; zero means no clipping.
    """

    place = "perturbation"
    reads: ClassVar[Reads] = "gradients"
    keeps_clean: bool = False
    max_norm: float = 0.0

    def points(self, landscape: Landscape, step: Step, weights: Tensor) -> Iterator[Point]:
        """Go through the points, each with the tasks whose gradients are taken there.

        Parameters
        ----------
        landscape : Landscape
            The losses of the batch as functions of the parameters, without loss scale.
        step : Step
            The step at hand.
        weights : Tensor of shape (A,)
            The loss weights.

        Yields
        ------
        Point
            Numbers of active tasks, every task in one of them, and offsets by the place of the parameter.
        """
        raise NotImplementedError

    def wrap(self, aggregation: Aggregation) -> None:
        """Take note of the aggregation that it is composed with, if there is one."""
        if aggregation.reads == "representation":
            raise UsageError(
                f"{self.card.name!r} and {aggregation.card.name!r} do not go together: one takes the gradients of "
                "the parameters at other points, the other those of the representation."
            )

    @property
    def wrapped(self) -> list[Strategy]:
        """Further strategies that it holds."""
        return []

    def weights(self, aggregation: Aggregation, gramian: Tensor, step: Step) -> Tensor:
        """Return one weight a row, given the Gramian of the rows under the loss weights."""
        return aggregation.weights(gramian, step)

    def direct(self, aggregation: JacobianAggregation, jacobian: Jacobian, step: Step) -> Direction:
        """Return the direction on the native scale, given the rows under the loss weights."""
        return aggregation.direct(jacobian, step)

    def clip(self, norm: float) -> float:
        """Return the factor on a direction of this norm."""
        return self.max_norm / norm if 0 < self.max_norm < norm else 1.0


@dataclass(frozen=True)
class Validation:
    """What a validation found.

    Attributes
    ----------
    tasks : tuple of str
        The names of all K tasks of the training, in their fixed order.
    losses : Tensor of shape (K,)
        Mean validation losses, float64 on the CPU and equal on all ranks; NaN for a task that has none.
    metrics : Tensor of shape (K,) or None
        The main metric of each task, in the same way, if they are known.
    higher_is_better : tuple of bool or None
        For each of these metrics.
    """

    tasks: tuple[str, ...]
    losses: Tensor
    metrics: Tensor | None = None
    higher_is_better: tuple[bool, ...] | None = None

    def require_metrics(self, strategy: str) -> tuple[Tensor, tuple[bool, ...]]:
        """Return the metrics and their directions, or say that `strategy` cannot do without them."""
        if self.metrics is None or self.higher_is_better is None:
            raise UsageError(f"{strategy} reads metrics: give one a task, and whether higher is better.")
        return self.metrics, self.higher_is_better


class Revision(Strategy):
    """Gives the tasks new weights after each validation; they multiply those of a loss weighting, if there is one.

    The first validation comes before the first step of training.
    """

    place = "revision"
    reads: ClassVar[Reads] = "validation"
    forward_passes = "1 and those of validation"
    backward_passes = "1"

    revised: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("revised", None)

    def initial(self, tasks: tuple[str, ...]) -> Tensor:
        """Return the weights of all K tasks before the first validation, float64 on the CPU."""
        raise NotImplementedError

    def learn(self, validation: Validation) -> Tensor:
        """Learn from a validation.

        Parameters
        ----------
        validation : Validation
            What it found.

        Returns
        -------
        Tensor of shape (K,)
            The weights of all tasks until the next validation, float64 on the CPU.
        """
        raise NotImplementedError

    def revise(self, validation: Validation) -> None:
        """Take new weights from a validation."""
        if self.revised is not None and len(self.revised) != len(validation.tasks):
            raise UsageError(
                f"{self.card.name} holds {len(self.revised)} tasks, but this validation has "
                f"{len(validation.tasks)}."
            )
        self.revised = self.learn(validation)

    def weigh(self, step: Step) -> Tensor:
        """Return the weights of the active tasks, of shape (A,), on the device of the losses."""
        known = self.initial(step.tasks) if self.revised is None else self.revised
        weights = known[list(step.active)]
        return weights if step.losses is None else weights.to(step.losses)


class Regulariser(Strategy):
    """Adds a term to the loss that looks at the shared representation and at the losses computed from it."""

    place = "regulariser"
    reads: ClassVar[Reads] = "representation"

    def penalty(self, representation: Tensor, losses: Sequence[Tensor], step: Step) -> Tensor:
        """Return the extra term.

        Parameters
        ----------
        representation : Tensor of shape (B, C, ...)
            The output of the shared encoder, in the graph of the losses.
        losses : sequence of Tensor
            The scalar losses of the active tasks, with graph, which must outlive the call.
        step : Step
            The step at hand.

        Returns
        -------
        Tensor
            A scalar with graph, to be added to the loss.
        """
        raise NotImplementedError
