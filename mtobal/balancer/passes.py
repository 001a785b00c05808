"""The backward passes of the balanced loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from mtobal.balancer.again import Again
from mtobal.balancer.aggregator import Aggregator, combine_local, norm_of
from mtobal.balancer.guard import Guard
from mtobal.balancer.parameters import Parameters
from mtobal.balancer.records import Answer, Applied, restricted
from mtobal.gradients import (
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
    replayed,
    rng_state,
    run_decoders,
    split,
    stacked,
    when_backward_ends,
)
from mtobal.strategies import Composition, Step


class Passes:
    """Builds the backward of the balanced loss of one step after the other.

    Parameters
    ----------
    strategy : Composition
    model : nn.Module or None
    scheme : Scheme
        How per-task gradients are taken.
    guard : Guard
        What happens to what is not finite.
    parameters : Parameters
    aggregator : Aggregator
        What becomes of the gradients.
    """

    def __init__(
        self,
        strategy: Composition,
        model: nn.Module | None,
        scheme: Scheme,
        guard: Guard,
        parameters: Parameters,
        aggregator: Aggregator,
    ) -> None:
        self.strategy = strategy
        self.model = model
        self.scheme = scheme
        self.guard = guard
        self.parameters = parameters
        self.aggregator = aggregator

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
        shares = any(self.parameters.known_partition.shared_mask)
        aggregates = self.strategy.aggregation is not None and (shares or len(step.active) == 1)
        # Weights of accumulated batches are those of all of them, which are not here yet.
        joined = aggregates and again is None and not self.scheme.aggregates_alone
        joins = joined and (self.aggregator.accumulates or self.aggregator.accumulated is not None)
        weights = torch.ones_like(step.losses) if joins else self.strategy.loss_weights(step)
        value = (weights * step.losses).sum()
        if again is not None and (shares or self.strategy.aggregation is None):
            balanced = self._attach(value, self._perturb(step, weights, present, again, ranks), ranks)
        elif aggregates:
            backward = self._aggregate(step, weights, present, representation, part, ranks)
            balanced = self._attach(value, backward, ranks)
        else:
            backward, inputs = self._weigh(step, weights, present, ranks), tuple(present.values())
            if ranks.size > 1 and (dropped or not present):  # the reducer waits for parameters of other tasks, too
                parameters = self.parameters.inputs(ranks).values()
                backward, inputs = _with_zeros(backward, parameters), (*inputs, *parameters)
            balanced = attach_backward(value, backward, inputs)
        if self.strategy.regulariser is None:
            return balanced
        step.require_representation(self.strategy.spec)
        assert representation is not None
        penalty = self.strategy.regulariser.penalty(representation, list(present.values()), step)
        return balanced + self._penalise(penalty, ranks)

    def skipped_loss(self, step: Step, ranks: Ranks) -> Tensor:
        """Return a loss whose backward leaves the batch at hand out, but not those accumulated before it."""
        assert step.losses is not None
        return self._attach(step.losses.sum(), partial(self.aggregator.leave_out, ranks), ranks)

    def accumulated_loss(self, ranks: Ranks) -> Tensor | None:
        """Return a zero whose backward aggregates the accumulated batches alone; None where there are none."""
        if self.aggregator.accumulated is None:
            return None
        self.aggregator.begin()
        zero = torch.zeros((), device=next(iter(self.parameters.inputs(ranks).values())).device)
        return self._attach(zero, partial(self.aggregator.flush, ranks), ranks)

    def _attach(self, value: Tensor, backward: Backward, ranks: Ranks) -> Tensor:
        """Return a value whose backward gives the parameters their gradients.

        Which of them are its inputs is settled now: a later look at the batch may reach further ones.
        """
        inputs = self.parameters.inputs(ranks)

        def write(cotangent: Tensor) -> list[Tensor | None]:
            gradients = backward(cotangent)
            return [_seen_by_hooks(parameter, gradients[place], ranks) for place, parameter in inputs.items()]

        return attach_backward(value, write, list(inputs.values()))

    def _penalise(self, penalty: Tensor, ranks: Ranks) -> Tensor:
        """Return a penalty in the graph of the losses whose backward leaves that graph to the balanced loss.

        Autograd runs what was built last first: the penalty before the losses.
        """
        if self.strategy.aggregation is None and self.strategy.perturbation is None:
            return penalty
        graph, parameters = [penalty], list(self.parameters.inputs(ranks).values())
        return attach_backward(
            penalty.detach(),
            lambda cotangent: differentiate([graph.pop()], [cotangent], parameters, retain_graph=True),
            parameters,
        )

    def further(self, ahead: LookAhead) -> Tensor:
        """Return a zero whose backward adds what the strategies want on top of the balanced gradients."""
        assert ahead.extra is not None
        partition = self.parameters.known_partition
        reach = zip(partition.parameters.values(), partition.reach, strict=True)
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
        accumulates = self.aggregator.accumulates
        mine = [step.active.index(step.tasks.index(task)) for task in losses]

        def backward(cotangent: Tensor) -> list[Tensor | None]:
            self.aggregator.applied = Applied(step, weights, weights, None)
            joined = self.aggregator.join(step, accumulates)
            if joined is not None:
                scale = float(cotangent)
                if scale > 1:  # a gradient scaler's, which skips the step where gradients overflow
                    when_backward_ends(lambda: self.aggregator.learn_if_finite(joined, ranks))
                else:
                    self.aggregator.learn(joined, None)
            scaled = (cotangent * weights)[mine].unbind()
            return [
                weight.to(loss.device, loss.dtype).reshape(loss.shape)
                for weight, loss in zip(scaled, detached, strict=True)
            ]

        return backward

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
        partition, accumulates = self.parameters.known_partition, self.aggregator.accumulates
        values = list(losses.values())
        local = [step.tasks.index(task) for task in losses]
        mine = [step.active.index(task) for task in local]
        graph: list[Tensor] = []  # emptied, as the values are, when the gradients have been taken
        if self.scheme.reads_representation:
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
                found = self.aggregator.solve(gramian, step, loss_weights, pulled.scale)
                return self.aggregator.finish(found, partial(combine_local, pulled, mine), pulled.scale, ranks)

            def decode() -> Decoded:
                decoded = run_decoders(values, local, partition, cotangent)
                self.parameters.remember(decoded.partition, partition)
                return decoded

            solution = self.aggregator.solution
            if (
                solution is not None
                and self.aggregator.accumulated is None
                and solution.serves(step, self.scheme.every)
            ):
                decoded = decode()
                found = self.aggregator.repeat(solution, step, loss_weights, accumulates)
                return combine_local(decoded, mine, found)
            if part is not None:
                seen = self._on_part(part, list(losses), partition, cotangent, ranks)
                if seen is not None:
                    decoded = decode()
                    return self._apply(seen, decoded, local, step, loss_weights, accumulates, ranks)
            if self.scheme.layers:
                decoded = decode()
                layers, places = partition.restricted(self.scheme.layers)
                seen = decoded.look(places, layers)
                return self._apply(seen, decoded, local, step, loss_weights, accumulates, ranks)
            gradients = self.scheme.take(values, local, partition, cotangent)
            gradients = self.parameters.widen(gradients, partition, ranks)
            return self.aggregator.aggregate(gradients, step, loss_weights, local, accumulates, ranks)

        def backward(cotangent: Tensor) -> list[Tensor | None]:
            with torch.autocast(device, enabled=False):
                balanced = self.parameters.complete(balance(cotangent), step.active, ranks)
            self.scheme.finished()
            return balanced

        return backward

    def _on_part(
        self, part: Again, tasks: Sequence[str], partition: Partition, cotangent: Tensor, ranks: Ranks
    ) -> TaskGradients | None:
        """Return the gradients of part of the batch; None if a task that the batch has is not in that part."""
        with torch.enable_grad(), replayed(self.model, rng_state()):
            found = part.present()
            missing = [task for task in tasks if task not in found]
            if ranks.any(bool(missing)):
                return None
            values = [found[task] for task in tasks]
            with torch.no_grad():
                local = [self.parameters.known_tasks.index(task) for task in tasks]
                taken = self.scheme.take(values, local, partition, cotangent)
                return self.parameters.widen(taken, partition, ranks)

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
        found = self.aggregator.solve(seen.gramian(), step, loss_weights, seen.scale, accumulates)
        return self.aggregator.finish(found, partial(combine_local, decoded, mine), seen.scale, ranks)

    def _perturb(
        self, step: Step, loss_weights: Tensor, losses: Mapping[str, Tensor], again: Again, ranks: Ranks
    ) -> Backward:
        """Return the backward that takes the gradients at other points; its inputs are the parameters."""
        partition, accumulates = self.parameters.known_partition, self.aggregator.accumulates
        perturbation = self.strategy.perturbation
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
                scheme=self.scheme,
                again=partial(again.losses, list(losses)),
                model=self.model,
                rng=again.rng,
                ranks=ranks,
                keeps_clean=perturbation.keeps_clean and self.strategy.aggregation is not None,
            )
            points = perturbation.points(landscape, step, loss_weights)
            if self.strategy.aggregation is None:
                return self._sum(landscape, points, step, loss_weights, accumulates, ranks)
            moved = self.parameters.widen(landscape.local_gradients(points), partition, ranks)
            sets = [moved] if landscape.clean is None else split(landscape.clean, moved)
            if ranks.size > 1:
                sets = [ranks.average(gradients, local, step.active, moved.partition) for gradients in sets]
            gradients = sets[0] if len(sets) == 1 else stacked(*sets)
            del moved, sets
            landscape.clean = None
            return self.aggregator.aggregate_alone(gradients, step, loss_weights, ranks, accumulates)

        def backward(cotangent: Tensor) -> list[Tensor | None]:
            with torch.autocast(device, enabled=False):
                return self.parameters.complete(balance(cotangent), step.active, ranks)

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
                return self.aggregator.finish(None, lambda _: [], landscape.scale, ranks)
            step, loss_weights = restricted(step, [step.active[place] for place in good]), loss_weights[good]
        factor = 1.0
        if self.strategy.perturbation.max_norm > 0:
            shared = {place: gradients[place] for place in landscape.shared}
            found = {place: gradient for place, gradient in shared.items() if gradient is not None}
            factor = self.strategy.perturbation.clip(norm_of(landscape.mean(dict(found), step.active).values()))
            for place, gradient in found.items():
                gradients[place] = gradient * factor
        self.aggregator.applied = Applied(step, loss_weights * factor, loss_weights, None)
        answer = Answer([], [], learn=lambda: self.aggregator.learn(step, None, accumulates))
        return self.aggregator.finish(answer, lambda _: gradients, landscape.scale, ranks)


def _with_zeros(backward: Backward, tensors: Iterable[Tensor]) -> Backward:
    """Return a backward that gives zeros for some further inputs."""
    return lambda cotangent: [*backward(cotangent), *map(torch.zeros_like, tensors)]


def _seen_by_hooks(parameter: Tensor, gradient: Tensor | None, ranks: Ranks) -> Tensor | None:
    """Return zeros for a parameter without a gradient that has hooks, which torch would call with None."""
    if gradient is not None or not parameter._backward_hooks:
        return gradient
    if ranks.size == 1 and parameter.grad is None:
        when_backward_ends(partial(_forget_zeros, parameter))
    return torch.zeros_like(parameter)


def _forget_zeros(parameter: Tensor) -> None:
    if parameter.grad is not None and not parameter.grad.any():
        parameter.grad = None


def _spread(gramian: Tensor, places: Sequence[int], size: int) -> Tensor:
    """Return a Gramian with rows of zeros for tasks that this rank has no loss of."""
    wide = gramian.new_zeros(size, size)
    index = torch.tensor(places, dtype=torch.long)
    wide[index[:, None], index] = gramian
    return wide
