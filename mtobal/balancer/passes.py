"""The backward passes of the balanced loss, and what they keep from step to step."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from mtobal.balancer.again import Again
from mtobal.balancer.guard import Guard
from mtobal.balancer.records import Answer, Applied, Solution, restricted
from mtobal.errors import UsageError
from mtobal.gradients import (
    Accumulated,
    Backward,
    Decoded,
    Landscape,
    LookAhead,
    Partition,
    Point,
    Ranks,
    RepresentationGradients,
    Scheme,
    TaskGradients,
    attach_backward,
    cut_at,
    differentiate,
    find_partition,
    replayed,
    rng_state,
    run_decoders,
    split,
    stacked,
    when_backward_ends,
)
from mtobal.solvers import SolverError
from mtobal.strategies import Composition, Direction, Step


class Passes:
    """Builds the backward of the balanced loss of one step after the other.

    Attributes
    ----------
    strategy : Composition
    model : nn.Module or None
    shared_names : frozenset of str or None
        The parameters that the user declared shared.
    gradients : Scheme
        How per-task gradients are taken.
    guard : Guard
        What happens to what is not finite.
    tasks : tuple of str or None
        The names of all tasks; None before the first step.
    partition : Partition or None
        The same for the parameters.
    skipped : bool
        Whether the last step was skipped.
    failed_solves : int
        In how many steps the solver of an aggregation has failed.
    accumulates : bool
        Whether the batch at hand is one of several before a step of the optimizer, and not the last.
    accumulated : Accumulated or None
        What the batches before it have left.
    applied : Applied or None
        What the last step did.
    solution : Solution or None
        Weights of the aggregation, where one solution serves several steps.
    randomness : list of Tensor or None
        The strategies' random generators before the step at hand.
    """

    def __init__(
        self,
        strategy: Composition,
        model: nn.Module | None,
        shared_names: frozenset[str] | None,
        gradients: Scheme,
        guard: Guard,
        tasks: tuple[str, ...] | None,
    ) -> None:
        self.strategy = strategy
        self.model = model
        self.shared_names = shared_names
        self.gradients = gradients
        self.guard = guard
        self.tasks = tasks
        self.partition: Partition | None = None
        self.skipped = False
        self.failed_solves = 0
        self.accumulates = False
        self.accumulated: Accumulated | None = None
        self.applied: Applied | None = None
        self.solution: Solution | None = None
        self.randomness: list[Tensor] | None = None
        self._trainable: tuple[int, ...] = ()
        self._walked: frozenset[str] = frozenset()  # tasks whose graph has been searched for parameters

    @property
    def known_tasks(self) -> tuple[str, ...]:
        """The names of all tasks, from the first step on."""
        assert self.tasks is not None
        return self.tasks

    @property
    def known_partition(self) -> Partition:
        """The parameters, from the first step on."""
        assert self.partition is not None
        return self.partition

    def begin(self, step: Step, present: Mapping[str, Tensor], skips: bool, ranks: Ranks) -> None:
        """Get ready for a step: find its parameters, and remember where the random generators stand."""
        self._find_parameters(present, ranks)
        self.randomness = self.strategy.random_states()
        self.skipped = skips

    # ------------------------------------------------------------------ losses whose backward balances

    def balanced_loss(
        self,
        step: Step,
        present: Mapping[str, Tensor],
        dropped: Sequence[int],
        representation: Tensor | None,
        again: Again | None,
        part: Again | None,
        ranks: Ranks,
    ) -> Tensor:
        """Return the balanced loss of one batch.

        Parameters
        ----------
        step : Step
            With the losses of all ranks.
        present : mapping from task to scalar tensor with graph
            The losses of this rank.
        dropped : sequence of int
            Tasks that sit the step out although they had a loss.
        representation : Tensor or None
            The output of the shared encoder, with its graph.
        again : Again or None
            Runs the model once more, for a perturbation.
        part : Again or None
            Runs it on the share of the batch whose Gramian stands for that of all.
        ranks : Ranks
        """
        assert step.losses is not None
        shares, parameters = any(self.known_partition.shared_mask), self._inputs(ranks)
        aggregates = self.strategy.aggregation is not None and (shares or len(step.active) == 1)
        # Weights of accumulated batches are those of all of them, which are not here yet.
        joined = aggregates and again is None and not self.gradients.aggregates_alone
        joins = joined and (self.accumulates or self.accumulated is not None)
        weights = torch.ones_like(step.losses) if joins else self.strategy.loss_weights(step)
        value = (weights * step.losses).sum()
        backward: Backward
        inputs = parameters
        if again is not None and (shares or self.strategy.aggregation is None):
            backward = self._perturb(step, weights, present, again, ranks)
        elif aggregates:
            backward = self._aggregate(step, weights, present, representation, part, ranks)
        else:
            inputs = tuple(present.values())
            backward = self._weigh(step, weights, present, ranks)
            if ranks.size > 1 and (dropped or not present):  # the reducer waits for parameters of other tasks, too
                backward, inputs = _with_zeros(backward, parameters), (*inputs, *parameters)
        balanced = attach_backward(value, backward, inputs)
        if self.strategy.regulariser is None:
            return balanced
        step.require_representation(self.strategy.spec)
        assert representation is not None
        penalty = self.strategy.regulariser.penalty(representation, list(present.values()), step)
        return balanced + self._penalise(penalty, parameters)

    def skipped_loss(self, step: Step, ranks: Ranks) -> Tensor:
        """Return a loss whose backward leaves the batch at hand out, but not those accumulated before it."""
        assert step.losses is not None
        return attach_backward(step.losses.sum(), partial(self._skip, ranks), self._inputs(ranks))

    def accumulated_loss(self, ranks: Ranks) -> Tensor | None:
        """Return a zero whose backward aggregates the accumulated batches alone; None where there are none."""
        if self.accumulated is None:
            return None
        self.randomness = self.strategy.random_states()
        parameters = self._inputs(ranks)
        zero = torch.zeros((), device=parameters[0].device)
        return attach_backward(zero, lambda cotangent: self._flush(cotangent, ranks), parameters)

    # ------------------------------------------------------------------ parameters

    def _find_parameters(self, present: Mapping[str, Tensor], ranks: Ranks) -> None:
        """Sort the parameters at the first step of a task, and again when others have become trainable."""
        trainable = () if self.model is None else tuple(id(p) for p in self.model.parameters() if p.requires_grad)
        if self.model is None or trainable != self._trainable:
            self.partition, self._trainable, self._walked = None, trainable, frozenset()
        fresh = self.partition is None
        if fresh and (self.strategy.aggregation is not None or self.strategy.perturbation is not None):
            _refuse_sharded(self.strategy.spec, self.model)
        if fresh or not self._walked >= present.keys() or ranks.size > 1:
            assert self.tasks is not None
            losses = [present.get(task) for task in self.tasks]
            found = find_partition(losses, self.tasks, self.model, self.shared_names)
            self.partition = found if self.partition is None else self.partition.joined(found)
            self._walked |= present.keys()
        assert self.partition is not None
        if ranks.size > 1:
            if fresh:
                ranks.check_same(self.partition)
            self.partition = ranks.joined(self.partition)
        if self.strategy.aggregation is not None and len(present) > 1 and not any(self.partition.shared_mask):
            self._miss_shared(present)

    def _miss_shared(self, present: Iterable[str]) -> None:
        """Refuse to aggregate nothing, unless the shared parameters may only be frozen for a while."""
        if self.model is None or all(parameter.requires_grad for parameter in self.model.parameters()):
            raise UsageError(
                f"{self.strategy.spec!r} aggregates gradients of shared parameters, but no trainable parameter "
                f"is reached by two of the losses {', '.join(present)}."
            )
        warnings.warn(
            "no trainable parameter is shared, so only task-own parameters are trained until frozen ones become "
            "trainable.",
            RuntimeWarning,
            stacklevel=2,
        )

    def _inputs(self, ranks: Ranks) -> tuple[Tensor, ...]:
        """Return the parameters to which the balanced loss writes gradients.

        The reducer of several ranks sees by itself to those that no task reaches, and only to those.
        """
        assert self.partition is not None
        parameters = zip(self.partition.parameters.values(), self.partition.reach, strict=True)
        return tuple(parameter for parameter, tasks in parameters if ranks.size == 1 or tasks)

    def _penalise(self, penalty: Tensor, parameters: tuple[Tensor, ...]) -> Tensor:
        """Return a penalty in the graph of the losses whose backward leaves that graph to the balanced loss.

        Autograd runs what was built last first: the penalty before the losses.
        """
        if self.strategy.aggregation is None and self.strategy.perturbation is None:
            return penalty
        graph = [penalty]
        return attach_backward(
            penalty.detach(),
            lambda cotangent: differentiate([graph.pop()], [cotangent], parameters, retain_graph=True),
            parameters,
        )

    def further(self, ahead: LookAhead) -> Tensor:
        """Return a zero whose backward adds what the strategies want on top of the balanced gradients."""
        assert self.partition is not None
        assert ahead.extra is not None
        reach = zip(self.partition.parameters.values(), self.partition.reach, strict=True)
        reached = {id(parameter) for parameter, tasks in reach if tasks}
        pairs = [
            (parameter, part)
            for parameter, part in zip(ahead.parameters, ahead.extra, strict=True)
            if id(parameter) in reached
        ]
        zero = torch.zeros((), device=pairs[0][0].device)
        return attach_backward(
            zero, lambda cotangent: [float(cotangent) * part for _, part in pairs], [pair[0] for pair in pairs]
        )

    def _weigh(self, step: Step, weights: Tensor, losses: Mapping[str, Tensor], ranks: Ranks) -> Backward:
        """Return the backward of a plain weighted sum; its inputs are the losses of this rank."""
        detached = [loss.detach() for loss in losses.values()]
        accumulates = self.accumulates
        mine = [step.active.index(step.tasks.index(task)) for task in losses]

        def backward(cotangent: Tensor) -> list[Tensor | None]:
            self.applied = Applied(step, weights, weights, None)
            joined = self._join(step, accumulates)
            if joined is not None:
                scale = float(cotangent)
                if scale > 1:  # a gradient scaler's, which skips the step where gradients overflow
                    when_backward_ends(lambda: self._learn_if_finite(joined, ranks))
                else:
                    self._learn(joined, None)
            scaled = (cotangent * weights)[mine].unbind()
            return [
                weight.to(loss.device, loss.dtype).reshape(loss.shape)
                for weight, loss in zip(scaled, detached, strict=True)
            ]

        return backward

    def _join(self, step: Step, accumulates: bool) -> Step | None:
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

    def _learn_if_finite(self, step: Step, ranks: Ranks) -> None:
        """Let the strategies learn from a step unless its gradients have overflowed."""
        assert self.partition is not None
        gradients = [parameter.grad for parameter in self.partition.parameters.values()]
        if ranks.any(not _all_finite(gradients)):
            self._rewind()
            self.skipped = True
        else:
            self._learn(step, None)

    def _aggregate(
        self,
        step: Step,
        loss_weights: Tensor,
        losses: Mapping[str, Tensor],
        representation: Tensor | None,
        part: Again | None,
        ranks: Ranks,
    ) -> Backward:
        """Return the backward that aggregates per-task gradients; its inputs are the parameters."""
        partition, accumulates = self.partition, self.accumulates
        assert partition is not None
        values = list(losses.values())
        local = [step.tasks.index(task) for task in losses]
        mine = [step.active.index(task) for task in local]
        graph: list[Tensor] = []  # emptied, as the values are, when the gradients have been taken
        if self.gradients.reads_representation:
            step.require_representation(self.strategy.spec)
            assert representation is not None
            graph.append(representation)
            cut = cut_at(representation, losses, partition.parameters)
        device = values[0].device.type if values else "cpu"

        def balance(cotangent: Tensor) -> list[Tensor | None]:
            if graph:
                pulled = RepresentationGradients(values, graph, partition, cut, cotangent)
                gramian = _spread(pulled.gramian(), mine, len(step.active))
                if ranks.size > 1:
                    # The samples of different ranks are different rows of the representation.
                    gramian = ranks.sum(gramian) / ranks.size**2
                found = self._solve(gramian, step, loss_weights, pulled.scale)
                return self._finish(found, partial(_combine_local, pulled, mine), pulled.scale, ranks)
            solution = self.solution
            if solution is not None and self.accumulated is None and solution.serves(step, self.gradients.every):
                decoded = run_decoders(values, local, partition, cotangent)
                found = self._repeat(solution, step, loss_weights, accumulates)
                return _combine_local(decoded, mine, found)
            if part is not None:
                seen = self._on_part(part, list(losses), partition, cotangent, ranks)
                if seen is None:  # a task has no sample in that part: this batch is looked at whole
                    taken = self.gradients.take(values, local, partition, cotangent)
                    taken = self._widen(taken, partition, ranks)
                    if ranks.size > 1:
                        taken = ranks.average(taken, local, step.active, taken.partition)
                    return self._replace(taken, step, loss_weights, ranks, accumulates)
                decoded = run_decoders(values, local, partition, cotangent)
                return self._apply(seen, decoded, local, step, loss_weights, accumulates, ranks)
            if self.gradients.layers:
                decoded = run_decoders(values, local, partition, cotangent)
                layers, places = partition.restricted(self.gradients.layers)
                seen = decoded.look(places, layers)
                return self._apply(seen, decoded, local, step, loss_weights, accumulates, ranks)
            gradients = self.gradients.take(values, local, partition, cotangent)
            gradients = self._widen(gradients, partition, ranks)
            return self._balance(gradients, step, loss_weights, local, accumulates, ranks)

        def backward(cotangent: Tensor) -> list[Tensor | None]:
            with torch.autocast(device, enabled=False):
                balanced = self._complete(balance(cotangent), step.active, ranks)
            self.gradients.finished()
            return balanced

        return backward

    def _on_part(
        self, part: Again, tasks: Sequence[str], partition: Partition, cotangent: Tensor, ranks: Ranks
    ) -> TaskGradients | None:
        """Return the gradients of part of the batch; None if a task that the batch has is not in it."""
        with torch.enable_grad(), replayed(self.model, rng_state()):
            found = part.present()
            missing = [task for task in tasks if task not in found]
            if ranks.any(bool(missing)):
                return None
            values = [found[task] for task in tasks]
            with torch.no_grad():
                local = [self.known_tasks.index(task) for task in tasks]
                return self.gradients.take(values, local, partition, cotangent)

    def _apply(
        self,
        seen: TaskGradients,
        decoded: Decoded,
        local: list[int],
        step: Step,
        loss_weights: Tensor,
        accumulates: bool,
        ranks: Ranks,
    ) -> list[Tensor | None]:
        """Solve for weights by some gradients, and run backward once with these."""
        if ranks.size > 1:
            seen = ranks.average(seen, local, step.active, seen.partition)
        mine = [step.active.index(task) for task in local]
        found = self._solve(seen.gramian(), step, loss_weights, seen.scale, accumulates)
        return self._finish(found, partial(_combine_local, decoded, mine), seen.scale, ranks)

    def _perturb(
        self, step: Step, loss_weights: Tensor, losses: Mapping[str, Tensor], again: Again, ranks: Ranks
    ) -> Backward:
        """Return the backward that takes the gradients at other points; its inputs are the parameters."""
        partition, perturbation, accumulates = self.partition, self.strategy.perturbation, self.accumulates
        assert partition is not None
        assert perturbation is not None
        values = list(losses.values())
        device = values[0].device.type if values else "cpu"
        local = [step.tasks.index(task) for task in losses]

        def balance(cotangent: Tensor) -> list[Tensor | None]:
            landscape = Landscape(
                values,
                local,
                step.active,
                partition,
                cotangent,
                scheme=self.gradients,
                again=partial(again.losses, list(losses)),
                model=self.model,
                rng=again.rng,
                ranks=ranks,
                keeps_clean=perturbation.keeps_clean and self.strategy.aggregation is not None,
            )
            points = perturbation.points(landscape, step, loss_weights)
            if self.strategy.aggregation is None:
                return self._sum(landscape, points, step, loss_weights, accumulates, ranks)
            moved = self._widen(landscape.local_gradients(points), partition, ranks)
            sets = [moved] if landscape.clean is None else split(landscape.clean, moved)
            if ranks.size > 1:
                sets = [ranks.average(gradients, local, step.active, moved.partition) for gradients in sets]
            gradients = sets[0] if len(sets) == 1 else stacked(*sets)
            del moved, sets
            landscape.clean = None
            return self._replace(gradients, step, loss_weights, ranks, accumulates)

        def backward(cotangent: Tensor) -> list[Tensor | None]:
            with torch.autocast(device, enabled=False):
                return self._complete(balance(cotangent), step.active, ranks)

        return backward

    def _sum(
        self,
        landscape: Landscape,
        points: Iterable[Point],
        step: Step,
        loss_weights: Tensor,
        accumulates: bool,
        ranks: Ranks,
    ) -> list[Tensor | None]:
        """Return the plain weighted sum of the gradients at other points."""
        assert self.strategy.perturbation is not None
        gradients, broken = landscape.local_sum(points, loss_weights)
        if broken:
            self.guard.caught([step.tasks[task] for task in broken], "loss at the moved point")
            good = [place for place, task in enumerate(step.active) if task not in broken]
            if self.guard.policy == "skip" or not good:
                return self._finish(None, lambda _: [], landscape.scale, ranks)
            step, loss_weights = restricted(step, [step.active[place] for place in good]), loss_weights[good]
        factor = 1.0
        if self.strategy.perturbation.max_norm > 0:
            shared = {place: gradients[place] for place in landscape.shared}
            found = {place: gradient for place, gradient in shared.items() if gradient is not None}
            factor = self.strategy.perturbation.clip(_norm(landscape.mean(dict(found), step.active).values()))
            for place, gradient in found.items():
                gradients[place] = gradient * factor
        self.applied = Applied(step, loss_weights * factor, loss_weights, None)
        answer = Answer([], [], learn=lambda: self._learn(step, None, accumulates))
        return self._finish(answer, lambda _: gradients, landscape.scale, ranks)

    def _widen(self, gradients: TaskGradients, partition: Partition, ranks: Ranks) -> TaskGradients:
        """Take note of parameters that a task reaches for the first time in this step."""
        wider = gradients.partition if ranks.size == 1 else ranks.joined(gradients.partition)
        if self.partition is partition:
            self.partition = wider
        if wider.shared_mask == gradients.partition.shared_mask:
            return replace(gradients, partition=wider)
        return TaskGradients.of_rows(wider, gradients.rows(), gradients.scale)

    def _balance(
        self,
        gradients: TaskGradients,
        step: Step,
        loss_weights: Tensor,
        local: list[int],
        accumulates: bool,
        ranks: Ranks,
    ) -> list[Tensor | None]:
        """Aggregate the gradients of this batch, with those of others that were accumulated."""
        partition, kept = gradients.partition, self.accumulated
        joined = self._join(step, accumulates)
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
        return self._replace(gradients, step, loss_weights, ranks)

    def _replace(
        self, gradients: TaskGradients, step: Step, loss_weights: Tensor, ranks: Ranks, accumulates: bool = False
    ) -> list[Tensor | None]:
        """Replace the gradients of the active tasks, or two sets of them one below the other, by one."""
        assert self.strategy.aggregation is not None
        if self.strategy.aggregation.reads == "jacobian":
            return self._direct(gradients, step, loss_weights, ranks, accumulates)
        found = self._solve(gradients.gramian(), step, loss_weights, gradients.scale, accumulates)
        everyone = range(gradients.num_tasks)
        return self._finish(found, partial(_combine_local, gradients, everyone), gradients.scale, ranks)

    def _solve(
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
        learn = partial(self._learn, reduced, loss_weights, accumulates)
        try:
            solved = self.strategy.aggregation_weights(gramian, reduced, loss_weights)
            heads = self.strategy.head_weights(solved[: len(good)], reduced, loss_weights)
        except SolverError as error:
            solved, heads = self._unsolved(error, len(gramian), loss_weights)
            learn = partial(self._learn, reduced, None, accumulates, solved=False)
        scales = loss_weights.to(solved)
        weights = solved * scales.repeat(len(solved) // len(scales))
        if self.strategy.perturbation is not None:
            length = math.sqrt(max(float(weights @ gramian @ weights), 0.0))
            weights = weights * self.strategy.perturbation.clip(length)
        self.applied = Applied(
            reduced, weights if len(rows) == len(good) else None, heads, gramian[: len(good), : len(good)]
        )
        if self.gradients.every > 1:
            ratios = torch.where(scales != 0, heads / scales, 1.0)
            self.solution = Solution(list(reduced.active), solved, ratios)
        wide[0, rows] = weights
        wide[1, good] = heads.to(weights)
        on_shared, on_own = wide.tolist()
        return Answer(on_shared, on_own, learn)

    def _unsolved(self, error: SolverError, rows: int, loss_weights: Tensor) -> tuple[Tensor, Tensor]:
        """Answer a solver that failed with equal weights on the scale of the strategy, without a trace in it."""
        aggregation = self.strategy.aggregation
        assert aggregation is not None
        self._rewind()
        self.failed_solves += 1
        warnings.warn(f"{self.strategy.spec}: {error} Equal weights for this step.", RuntimeWarning, stacklevel=2)
        mean = aggregation.card.scale == "mean" and aggregation.scale == "native"
        equal = torch.full((rows,), 1.0 / len(loss_weights) if mean else 1.0, dtype=torch.float64)
        return equal, loss_weights.to("cpu", torch.float64)

    def _repeat(self, solution: Solution, step: Step, loss_weights: Tensor, accumulates: bool) -> Answer:
        """Weigh the tasks by an earlier solution and new loss weights."""
        scales = loss_weights.to(solution.weights)
        weights, heads = scales * solution.weights, scales * solution.heads
        self.applied = Applied(step, weights, heads, None)
        if not accumulates:
            solution.age += 1
            if self.strategy.loss_weighting is not None:
                self.strategy.loss_weighting.update(step)
        return Answer(weights.tolist(), heads.tolist())

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
            return self._finish(overflow, partial(_combine_local, gradients, range(size)), 1.0, ranks)
        if not good:
            return self._finish(None, lambda _: [], gradients.scale, ranks)
        reduced = restricted(step, [step.active[place] for place in good])
        if len(good) < count:
            rows = [start + place for start in range(0, size, count) for place in good]
            jacobian, loss_weights = jacobian.rows(rows), loss_weights[good]
        learn = partial(self._learn, reduced, loss_weights, accumulates)
        try:
            direction = self.strategy.aggregation_direction(jacobian, reduced, loss_weights)
            heads = self.strategy.head_weights(direction.weights, reduced, loss_weights)
        except SolverError as error:
            equal, heads = self._unsolved(error, len(jacobian.blocks[0]), loss_weights)
            scales = loss_weights.to(equal)
            blocks = jacobian.combine(equal * scales.repeat(len(equal) // len(scales)))
            direction = Direction(blocks, equal)
            learn = partial(self._learn, reduced, None, accumulates, solved=False)
        weights, blocks = direction.weights, direction.blocks
        if weights is not None:
            weights = weights * loss_weights.to(weights)
        if self.strategy.perturbation is not None and self.strategy.perturbation.max_norm > 0:
            factor = self.strategy.perturbation.clip(_norm(blocks))
            blocks = [block * factor for block in blocks]
            weights = None if weights is None else weights * factor
        self.applied = Applied(reduced, weights if size == count else None, heads, None)
        wide = torch.zeros(size, dtype=torch.float64)
        wide[good] = heads.to(wide)
        answer = Answer([], wide.tolist(), learn)
        return self._finish(answer, lambda found: gradients.insert(blocks, found.heads), gradients.scale, ranks)

    def _finish(
        self,
        answer: Answer | None,
        combine: Callable[[Answer], list[Tensor | None]],
        scale: float,
        ranks: Ranks,
    ) -> list[Tensor | None]:
        """Return the final gradients, and let the strategies learn from a step that will be taken."""
        if answer is None:
            self._rewind()
            self.skipped, self.applied = True, None
            return self._nothing(ranks)
        gradients = combine(answer)
        # A gradient scaler skips the step where gradients overflow.
        if answer.learn is None or (scale > 1 and ranks.any(not _all_finite(gradients))):
            self._rewind()
            self.skipped = True
        else:
            answer.learn()
        return gradients

    def _learn(
        self, step: Step, loss_weights: Tensor | None, accumulates: bool = False, solved: bool = True
    ) -> None:
        """Let the strategies learn from a step; an aggregation does not where its solver has failed."""
        if self.strategy.perturbation is not None or self.gradients.aggregates_alone:
            # Batches that are aggregated alone are learned from together.
            joined = self._join(step, accumulates)
            if joined is None:
                return
            step, loss_weights = joined, loss_weights if joined is step else None
        if self.strategy.aggregation is None or (solved and any(self.known_partition.shared_mask)):
            self.strategy.update(step, loss_weights)
        elif self.strategy.loss_weighting is not None:  # nothing was aggregated
            self.strategy.loss_weighting.update(step)

    def _rewind(self) -> None:
        """Put the strategies' random generators back, after a step that is not taken."""
        assert self.randomness is not None
        self.strategy.set_random_states(self.randomness)

    def _skip(self, ranks: Ranks, cotangent: Tensor) -> list[Tensor | None]:
        """Leave a batch out, but not those that were accumulated before it."""
        self.applied = None
        if self.accumulates or self.accumulated is None:
            return self._nothing(ranks)
        return self._flush(cotangent, ranks)

    def _flush(self, cotangent: Tensor, ranks: Ranks) -> list[Tensor | None]:
        """Aggregate the gradients of the accumulated batches alone."""
        assert self.partition is not None
        assert self.tasks is not None
        kept, self.accumulated = self.accumulated, None
        assert kept is not None
        self.skipped = False
        step = Step(self.tasks, tuple(kept.tasks), kept.losses())
        if (
            self.strategy.aggregation is None
            or self.strategy.perturbation is not None
            or self.gradients.aggregates_alone
        ):
            self._learn(step, None)
            return self._nothing(ranks)
        gradients = kept.gradients(self.partition, (float(cotangent) or 1.0) * kept.batches)
        weights = self.strategy.loss_weights(step)
        balanced = self._balance(gradients, step, weights, kept.tasks, False, ranks)
        return self._complete(balanced, step.active, ranks)

    def _nothing(self, ranks: Ranks) -> list[Tensor | None]:
        """Return no gradients, for a step that is skipped."""
        nothing: list[Tensor | None] = [None] * len(self.known_partition.parameters)
        return self._complete(nothing, range(len(self.known_tasks)), ranks)

    def _complete(
        self, gradients: list[Tensor | None], active: Iterable[int], ranks: Ranks
    ) -> list[Tensor | None]:
        """Write zeros where only other ranks have a gradient: their reducer waits for this one."""
        if ranks.size == 1:
            return gradients
        assert self.partition is not None
        places = zip(gradients, self.partition.parameters.values(), self.partition.reach, strict=True)
        return [
            torch.zeros_like(parameter) if gradient is None and not tasks.isdisjoint(active) else gradient
            for gradient, parameter, tasks in places
            if tasks
        ]

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


def _refuse_sharded(spec: str, model: nn.Module | None) -> None:
    """Refuse a model of which every rank holds a part of each parameter: gradients of whole ones do not exist."""
    modules = [] if model is None else model.modules()
    kinds = {kind.__name__ for module in modules for kind in type(module).__mro__}
    if kinds & {"FSDPModule", "FullyShardedDataParallel"}:
        raise UsageError(
            f"{spec!r} needs per-task gradients of whole parameters, which a model under FSDP does not keep: use "
            "DistributedDataParallel, or a strategy that weighs losses, such as 'uw'."
        )


def _with_zeros(backward: Backward, tensors: Sequence[Tensor]) -> Backward:
    """Return a backward that gives zeros for some further inputs."""
    return lambda cotangent: [*backward(cotangent), *map(torch.zeros_like, tensors)]


def _combine_local(
    gradients: TaskGradients | RepresentationGradients | Decoded, places: Sequence[int], answer: Answer
) -> list[Tensor | None]:
    """Combine the gradients of this rank, whose tasks have these places among the active ones."""
    weights, heads = ([values[place] for place in places] for values in (answer.weights, answer.heads))
    return gradients.combine(weights, heads)


def _spread(gramian: Tensor, places: Sequence[int], size: int) -> Tensor:
    """Return a Gramian with rows of zeros for tasks that this rank has no loss of."""
    wide = gramian.new_zeros(size, size)
    index = torch.tensor(places, dtype=torch.long)
    wide[index[:, None], index] = gramian
    return wide


def _norm(tensors: Iterable[Tensor]) -> float:
    """Return one norm over all tensors."""
    return math.hypot(*(float(torch.linalg.vector_norm(tensor.double())) for tensor in tensors))


def _all_finite(gradients: Iterable[Tensor | None]) -> bool:
    return all(bool(gradient.isfinite().all()) for gradient in gradients if gradient is not None)
