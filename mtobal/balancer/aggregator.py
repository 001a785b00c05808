"""From the gradients of all tasks to one, by what the strategies say, and what these learn from it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from mtobal.balancer.guard import Guard
from mtobal.balancer.parameters import Parameters
from mtobal.balancer.records import Answer, Applied, Solution, restricted
from mtobal.gradients import Accumulated, Decoded, Ranks, RepresentationGradients, Scheme, TaskGradients
from mtobal.solvers import SolverError
from mtobal.strategies import Composition, Direction, Step


class Aggregator:
    """Puts one gradient in the place of those of all tasks, and lets the strategies learn from the step.

    Parameters
    ----------
    strategy : Composition
    scheme : Scheme
        How per-task gradients are taken.
    guard : Guard
        What happens to what is not finite.
    parameters : Parameters

    Attributes
    ----------
    accumulates : bool
        Whether the batch at hand is one of several before a step of the optimizer, and not the last.
    accumulated : Accumulated or None
        What the batches before it have left.
    applied : Applied or None
        What the last step did.
    solution : Solution or None
        Weights of the aggregation, where one solution serves several steps.
    skipped : bool
        Whether the last step was skipped.
    failed_solves : int
        In how many steps the solver of an aggregation has failed.
    """

    def __init__(self, strategy: Composition, scheme: Scheme, guard: Guard, parameters: Parameters) -> None:
        self.strategy = strategy
        self.scheme = scheme
        self.guard = guard
        self.parameters = parameters
        self.accumulates = False
        self.accumulated: Accumulated | None = None
        self.applied: Applied | None = None
        self.solution: Solution | None = None
        self.skipped = False
        self.failed_solves = 0
        self._randomness: list[Tensor] | None = None  # the strategies' generators before the step at hand

    def begin(self, skips: bool = False) -> None:
        """Get ready for a step, which may be skipped from the start."""
        self._randomness = self.strategy.random_states()
        self.skipped = skips

    def aggregate(
        self,
        gradients: TaskGradients,
        step: Step,
        loss_weights: Tensor,
        local: list[int],
        accumulates: bool,
        ranks: Ranks,
    ) -> list[Tensor | None]:
        """Aggregate the gradients that this rank has of a batch, with those of others that were accumulated."""
        if self.scheme.aggregates_alone:
            if ranks.size > 1:
                gradients = ranks.average(gradients, local, step.active, gradients.partition)
            return self.aggregate_alone(gradients, step, loss_weights, ranks, accumulates)
        partition, kept = gradients.partition, self.accumulated
        joined = self.join(step, accumulates)
        if joined is None:
            assert self.accumulated is not None
            self.accumulated.add_gradients(local, gradients)
            return [None] * len(partition.parameters)
        if kept is not None:
            kept.add_gradients(local, gradients)
            gradients = kept.gradients(partition, gradients.scale * kept.batches)
            step, local = joined, kept.tasks
            loss_weights = self.strategy.loss_weights(step)
        if ranks.size > 1:
            gradients = ranks.average(gradients, local, step.active, partition)
        return self.aggregate_alone(gradients, step, loss_weights, ranks)

    def leave_out(self, ranks: Ranks, cotangent: Tensor) -> list[Tensor | None]:
        """Leave a batch out, but not those that were accumulated before it."""
        self.applied = None
        if self.accumulates or self.accumulated is None:
            return self.parameters.nothing(ranks)
        return self.flush(ranks, cotangent)

    def flush(self, ranks: Ranks, cotangent: Tensor) -> list[Tensor | None]:
        """Aggregate the gradients of the accumulated batches alone."""
        kept, self.accumulated = self.accumulated, None
        assert kept is not None
        self.skipped = False
        step = Step(self.parameters.known_tasks, tuple(kept.tasks), kept.losses())
        if (
            self.strategy.aggregation is None
            or self.strategy.perturbation is not None
            or self.scheme.aggregates_alone
        ):
            self.learn(step, None)
            return self.parameters.nothing(ranks)
        partition = self.parameters.known_partition
        gradients = kept.gradients(partition, (float(cotangent) or 1.0) * kept.batches)
        weights = self.strategy.loss_weights(step)
        balanced = self.aggregate(gradients, step, weights, kept.tasks, False, ranks)
        return self.parameters.complete(balanced, step.active, ranks)

    def aggregate_alone(
        self, gradients: TaskGradients, step: Step, loss_weights: Tensor, ranks: Ranks, accumulates: bool = False
    ) -> list[Tensor | None]:
        """Aggregate the gradients of one batch on all ranks, or two sets of them one below the other."""
        assert self.strategy.aggregation is not None
        if self.strategy.aggregation.reads == "jacobian":
            return self._direct(gradients, step, loss_weights, ranks, accumulates)
        found = self.solve(gradients.gramian(), step, loss_weights, gradients.scale, accumulates)
        everyone = range(gradients.num_tasks)
        return self.finish(found, partial(combine_local, gradients, everyone), gradients.scale, ranks)

    def solve(
        self, gramian: Tensor, step: Step, loss_weights: Tensor, scale: float, accumulates: bool = False
    ) -> Answer | None:
        """Weigh the rows by what the strategy makes of their Gramian; None where the step is skipped."""
        count = len(step.active)
        good = self._finite_tasks(gramian.diag().isfinite().view(-1, count).all(0), step, scale)
        if good is None:
            return self._overflow(step, len(gramian))
        if not good:
            return None
        rows = [start + place for start in range(0, len(gramian), count) for place in good]
        wide = torch.zeros(2, len(gramian), dtype=torch.float64)
        if len(good) < count:
            gramian, loss_weights = gramian[rows][:, rows], loss_weights[good]
        reduced = restricted(step, [step.active[place] for place in good])
        learn = partial(self.learn, reduced, loss_weights, accumulates)
        try:
            solved = self.strategy.aggregation_weights(gramian, reduced, loss_weights)
            heads = self.strategy.head_weights(solved[: len(good)], reduced, loss_weights)
        except SolverError as error:
            solved, heads = self._unsolved(error, len(gramian), loss_weights)
            learn = partial(self.learn, reduced, None, accumulates, solved=False)
        scales = loss_weights.to(solved)
        weights = solved * scales.repeat(len(solved) // len(scales))
        if self.strategy.perturbation is not None:
            length = math.sqrt(max(float(weights @ gramian @ weights), 0.0))
            weights = weights * self.strategy.perturbation.clip(length)
        self.applied = Applied(
            reduced, weights if len(rows) == len(good) else None, heads, gramian[: len(good), : len(good)]
        )
        if self.scheme.every > 1:
            ratios = torch.where(scales != 0, heads / scales, 1.0)
            self.solution = Solution(list(reduced.active), solved, ratios)
        wide[0, rows] = weights
        wide[1, good] = heads.to(weights)
        on_shared, on_own = wide.tolist()
        return Answer(on_shared, on_own, learn)

    def _direct(
        self, gradients: TaskGradients, step: Step, loss_weights: Tensor, ranks: Ranks, accumulates: bool = False
    ) -> list[Tensor | None]:
        """Replace the gradients by what a strategy makes of their Jacobian."""
        jacobian = gradients.jacobian()
        finite = torch.stack([torch.stack([b.isfinite().all() for b in row.unbind()]) for row in jacobian.blocks])
        count, size = len(step.active), gradients.num_tasks
        good = self._finite_tasks(finite.all(0).view(-1, count).all(0), step, gradients.scale)
        if good is None:
            overflow = self._overflow(step, size)
            return self.finish(overflow, partial(combine_local, gradients, range(size)), 1.0, ranks)
        if not good:
            return self.finish(None, lambda _: [], gradients.scale, ranks)
        reduced = restricted(step, [step.active[place] for place in good])
        if len(good) < count:
            rows = [start + place for start in range(0, size, count) for place in good]
            jacobian, loss_weights = jacobian.rows(rows), loss_weights[good]
        learn = partial(self.learn, reduced, loss_weights, accumulates)
        try:
            direction = self.strategy.aggregation_direction(jacobian, reduced, loss_weights)
            heads = self.strategy.head_weights(direction.weights, reduced, loss_weights)
        except SolverError as error:
            equal, heads = self._unsolved(error, len(jacobian.blocks[0]), loss_weights)
            scales = loss_weights.to(equal)
            blocks = jacobian.combine(equal * scales.repeat(len(equal) // len(scales)))
            direction = Direction(blocks, equal)
            learn = partial(self.learn, reduced, None, accumulates, solved=False)
        weights, blocks = direction.weights, direction.blocks
        if weights is not None:
            weights = weights * loss_weights.to(weights)
        if self.strategy.perturbation is not None and self.strategy.perturbation.max_norm > 0:
            factor = self.strategy.perturbation.clip(norm_of(blocks))
            blocks = [block * factor for block in blocks]
            weights = None if weights is None else weights * factor
        self.applied = Applied(reduced, weights if size == count else None, heads, None)
        wide = torch.zeros(size, dtype=torch.float64)
        wide[good] = heads.to(wide)
        answer = Answer([], wide.tolist(), learn)
        return self.finish(answer, lambda found: gradients.insert(blocks, found.heads), gradients.scale, ranks)

    def repeat(self, solution: Solution, step: Step, loss_weights: Tensor, accumulates: bool) -> Answer:
        """Weigh the tasks by an earlier solution and new loss weights."""
        scales = loss_weights.to(solution.weights)
        weights, heads = scales * solution.weights, scales * solution.heads
        self.applied = Applied(step, weights, heads, None)
        if not accumulates:
            solution.age += 1
            if self.strategy.loss_weighting is not None:
                self.strategy.loss_weighting.update(step)
        return Answer(weights.tolist(), heads.tolist())

    def _unsolved(self, error: SolverError, rows: int, loss_weights: Tensor) -> tuple[Tensor, Tensor]:
        """Answer a solver that failed with equal weights on the scale of the strategy, without a trace in it."""
        aggregation = self.strategy.aggregation
        assert aggregation is not None
        self.rewind()
        self.failed_solves += 1
        warnings.warn(f"{self.strategy.spec}: {error} Equal weights for this step.", RuntimeWarning, stacklevel=2)
        mean = aggregation.card.scale == "mean" and aggregation.scale == "native"
        equal = torch.full((rows,), 1.0 / len(loss_weights) if mean else 1.0, dtype=torch.float64)
        return equal, loss_weights.to("cpu", torch.float64)

    def finish(
        self,
        answer: Answer | None,
        combine: Callable[[Answer], list[Tensor | None]],
        scale: float,
        ranks: Ranks,
    ) -> list[Tensor | None]:
        """Return the final gradients, and let the strategies learn from a step that will be taken."""
        if answer is None:
            self.rewind()
            self.skipped, self.applied = True, None
            return self.parameters.nothing(ranks)
        gradients = combine(answer)
        # A gradient scaler skips the step where gradients overflow.
        if answer.learn is None or (scale > 1 and ranks.any(not _all_finite(gradients))):
            self.rewind()
            self.skipped = True
        else:
            answer.learn()
        return gradients

    def join(self, step: Step, accumulates: bool) -> Step | None:
        """Return the step of all accumulated batches with their mean losses; None if more of them are to come."""
        assert step.losses is not None
        if accumulates or self.accumulated is not None:
            if self.accumulated is None:
                self.accumulated = Accumulated()
            self.accumulated.add_losses(step.active, step.losses)
        if accumulates:
            return None
        if self.accumulated is None:
            return step
        kept, self.accumulated = self.accumulated, None
        return replace(step, active=tuple(kept.tasks), losses=kept.losses())

    def learn(
        self, step: Step, loss_weights: Tensor | None, accumulates: bool = False, solved: bool = True
    ) -> None:
        """Let the strategies learn from a step; an aggregation does not where its solver has failed."""
        if self.strategy.perturbation is not None or self.scheme.aggregates_alone:
            # Batches that are aggregated alone are learned from together.
            joined = self.join(step, accumulates)
            if joined is None:
                return
            step, loss_weights = joined, loss_weights if joined is step else None
        if self.strategy.aggregation is None or (solved and any(self.parameters.known_partition.shared_mask)):
            self.strategy.update(step, loss_weights)
        elif self.strategy.loss_weighting is not None:  # nothing was aggregated
            self.strategy.loss_weighting.update(step)

    def learn_if_finite(self, step: Step, ranks: Ranks) -> None:
        """Let the strategies learn from a step unless its gradients have overflowed."""
        gradients = [parameter.grad for parameter in self.parameters.known_partition.parameters.values()]
        if ranks.any(not _all_finite(gradients)):
            self.rewind()
            self.skipped = True
        else:
            self.learn(step, None)

    def rewind(self) -> None:
        """Put the strategies' random generators back, after a step that is not taken."""
        assert self._randomness is not None
        self.strategy.set_random_states(self._randomness)

    def _finite_tasks(self, finite: Tensor, step: Step, scale: float) -> list[int] | None:
        """Return the places of the active tasks that go on: none in a skipped step.

        None instead of a list where a gradient scaler will see to it.
        """
        good = finite.nonzero().flatten().tolist()
        if len(good) == len(step.active):
            return good
        bad = [step.tasks[task] for task, fine in zip(step.active, finite.tolist(), strict=True) if not fine]
        if scale > 1:
            return None
        self.guard.caught(bad, "gradient")
        return good if self.guard.policy == "drop_task" else []

    def _overflow(self, step: Step, rows: int) -> Answer:
        """Answer gradients that have overflowed under a loss scale with weights of one, and learn nothing.

        The gradient scaler expects to see the overflow: it skips the step and lowers the loss scale.
        """
        ones = torch.ones(len(step.active), dtype=torch.float64)
        self.applied = Applied(step, ones, ones, None)
        return Answer([1.0] * rows, [1.0] * rows)


def combine_local(
    gradients: TaskGradients | RepresentationGradients | Decoded, places: Sequence[int], answer: Answer
) -> list[Tensor | None]:
    """Combine the gradients of this rank, whose tasks have these places among the active ones."""
    weights, heads = ([values[place] for place in places] for values in (answer.weights, answer.heads))
    return gradients.combine(weights, heads)


def norm_of(tensors: Iterable[Tensor]) -> float:
    """Return one norm over all tensors."""
    return math.hypot(
        *(
            float(torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float64)))
            for tensor in tensors
        )
    )


def _all_finite(gradients: Iterable[Tensor | None]) -> bool:
    return all(bool(gradient.isfinite().all()) for gradient in gradients if gradient is not None)
