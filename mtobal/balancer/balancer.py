"""The balanced loss: one autograd node whose backward hands every parameter its balanced gradient."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mtobal.balancer.guard import Guard, Policy
from mtobal.errors import UsageError
from mtobal.gradients import (
    Accumulated,
    Backward,
    Decoded,
    Partition,
    Ranks,
    RepresentationGradients,
    RNGState,
    Scheme,
    Shared,
    TaskGradients,
    attach_backward,
    cut_at,
    declared_shared,
    find_partition,
    replayed,
    rng_state,
    run_decoders,
    when_backward_ends,
)
from mtobal.ops import cosines
from mtobal.strategies import Composition, Spec, Step, build
from mtobal.strategies.spec import parse

Losses = Mapping[str, Tensor | None]
Closure = Callable[[], Losses | tuple[Losses, Tensor]]


class Balancer:
    """Balance several losses in any training loop.

    Calling it with the losses of a batch gives a scalar; the ordinary backward of that scalar writes balanced
    gradients, so gradient accumulation, clipping, loss scaling and the optimizer stay what they are. A strategy
    that only weighs losses costs one backward pass; one that aggregates gradients runs one pass a task inside
    that backward, and none outside of it.

    Parameters
    ----------
    strategy : str, mapping or Strategy
        As in `mtobal.strategies.build`, for example ``"uw+pcgrad"``.
    model : nn.Module, optional
        Whose parameters are trained. Parameters outside of it that a loss reaches are found as well; without a
        model, every leaf tensor that a loss reaches is a parameter.
    tasks : iterable of str, optional
        Names of all tasks, in order. By default those of the first step.
    shared : module, dotted name, or iterable of modules, parameters or dotted names, optional
        The shared parameters. By default those that at least two losses reach.
    gradients : str
        How per-task gradients are taken; a strategy that weighs losses needs none. Exact, and equal to each other
        up to rounding, are

        - ``auto``, the default: ``ghost``, and ``loop`` for a strategy that reads the gradients themselves;
        - ``loop``: one backward pass a task, all gradients written out;
        - ``ghost``: one backward pass a task, without the gradients of those weights for which inner products and
          weighted sum are cheaper to have from the inputs and cotangents of the layer;
        - ``batched``, or ``batched(memory=1e9)``: one backward pass for all tasks at once, by `torch.vmap`, or in
          turns where their cotangents would take more than so many bytes.

        Approximations are

        - ``representation``, unless the strategy asks for it: inner products of the gradients with respect to the
          shared representation, and one backward pass through the encoder;
        - ``every(n=10)``, alone or as in ``loop+every(n=10)``: the strategy solves for its weights at every tenth
          step, and keeps them in between, where one backward pass is enough.

    nonfinite : {"skip", "drop_task", "raise"}
        What happens when a loss or a task's gradient is infinite or not a number: the step is skipped, that task
        sits the step out, or training stops. Each time a warning names the task.
    patience : int
        After so many such steps in a row, training stops in any case.

    Attributes
    ----------
    strategy : Composition
        The strategies, each in its place.
    skipped : bool
        Whether the last step was skipped, because something in it was not finite.
    guard : Guard
        Counts of the steps in which a loss or a gradient was not finite, by task.
    partition : Partition or None
        Shared, task-own and unused parameters; None before the first step. Printing it shows counts by module.

    Examples
    --------
    >>> import torch, mtobal
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Linear(3, 2)
    >>> balancer = mtobal.Balancer("pcgrad", model)
    >>> output = model(torch.ones(4, 3))
    >>> loss = balancer({"left": output[:, 0].square().mean(), "right": output.sum()})
    >>> loss.backward()
    >>> model.weight.grad.shape, balancer.weights["left"] >= 1.0
    (torch.Size([2, 3]), True)
    """

    def __init__(
        self,
        strategy: Spec,
        model: nn.Module | None = None,
        *,
        tasks: Iterable[str] | None = None,
        shared: Shared | None = None,
        gradients: str = "auto",
        nonfinite: Policy = "skip",
        patience: int = 10,
    ) -> None:
        if model is not None and not isinstance(model, nn.Module):
            raise UsageError(f"model must be a torch.nn.Module, not {type(model).__name__}.")
        if shared is not None and model is None:
            raise UsageError("shared= names parameters of the model: pass the model too.")
        self.strategy: Composition = build(strategy)
        self.model = model
        self.tasks: tuple[str, ...] | None = None if tasks is None else tuple(tasks)
        self.partition: Partition | None = None
        self._shared = None if shared is None or model is None else declared_shared(model, shared)
        aggregation = self.strategy.aggregation
        self.gradients = Scheme(parse(gradients), "losses" if aggregation is None else aggregation.reads)
        self._trainable: tuple[int, ...] = ()
        self._walked: frozenset[str] = frozenset()  # tasks whose graph has been searched for parameters
        self.guard = Guard(nonfinite, patience)
        self.skipped = False
        self._accumulates = False
        self._accumulated: Accumulated | None = None
        self._applied: _Applied | None = None
        self._randomness: list[Tensor] | None = None  # of the strategies, before the step at hand
        self._solution: _Solution | None = None  # kept where one serves several steps

    def __repr__(self) -> str:
        return f"Balancer({self.strategy.spec!r}, tasks={self.tasks})"

    # ------------------------------------------------------------------ the balanced loss

    def __call__(self, losses: Losses, *, representation: Tensor | None = None) -> Tensor:
        """Join the losses of one batch into the balanced loss.

        Parameters
        ----------
        losses : mapping from task to scalar tensor or None
            A task that is None or absent sits this step out.
        representation : Tensor, optional
            The output of the shared encoder that all decoders read, for strategies that read it.

        Returns
        -------
        Tensor
            A scalar whose value is the sum of the losses under the strategy's loss weights, and whose backward
            writes the balanced gradients. Without grad mode, as in validation, the plain sum of the losses; no
            state changes.

        Raises
        ------
        NotFiniteError
            A loss that is not finite, by the policy or for the `patience`-th time in a row.
        UsageError
            No loss, a task that was not there at the first step, a loss that is no scalar or has no graph, or no
            parameter that two tasks share.
        """
        ranks = Ranks.now()
        present = self._present(losses, alone=ranks.size == 1)
        if not torch.is_grad_enabled():
            return torch.stack([loss.detach() for loss in present.values()]).sum()
        assert self.tasks is not None
        device = next(iter(present.values())).device.type if present else "cpu"
        with torch.autocast(device, enabled=False):  # it would run products of gradients in half precision
            self.guard.begin()
            step, bad = self._share(present, representation, ranks)
            if bad:
                self.guard.caught([self.tasks[task] for task in bad], "loss")
                present = {task: loss for task, loss in present.items() if self.tasks.index(task) not in bad}
                step = _restricted(step, [task for task in step.active if task not in bad])
            self._find_parameters(present, ranks)
            assert self.partition is not None
            parameters = tuple(self.partition.parameters.values())
            self._randomness = self.strategy.random_states()
            self.skipped = bool(bad) and (self.guard.policy == "skip" or not step.active)
            if self.skipped:
                assert step.losses is not None
                return attach_backward(step.losses.sum(), partial(self._skip, ranks), parameters)
            aggregates = self.strategy.aggregation is not None
            if not present and not aggregates:  # another rank has losses
                return attach_backward(torch.zeros(()), lambda _: self._nothing(ranks), parameters)
            assert step.losses is not None
            # Weights of accumulated batches are those of all of them, which are not here yet.
            joins = aggregates and (self._accumulates or self._accumulated is not None)
            weights = torch.ones_like(step.losses) if joins else self.strategy.loss_weights(step)
            value = (weights * step.losses).sum()
            if not aggregates:
                inputs = tuple(present.values())
                local = [step.tasks.index(task) for task in present]
                return attach_backward(value, self._weigh(step, weights, local, inputs, ranks), inputs)
            return attach_backward(
                value, self._aggregate(step, weights, present, representation, ranks), parameters
            )

    @contextmanager
    def accumulating(self) -> Iterator[None]:
        """Collect the gradients of the batches inside, for a later one to aggregate.

        Call the balancer and its backward inside for every batch but the last of an optimizer's step, and outside
        for the last one. Aggregation then sees the gradients of all batches together, and the update is that of
        one large batch. Without it, each batch is aggregated alone. A strategy that only weighs losses weighs
        each batch by its own losses, and learns from the mean losses of all.

        Examples
        --------
        >>> import torch, mtobal
        >>> model = torch.nn.Linear(3, 2)
        >>> balancer = mtobal.Balancer("mgda", model)
        >>> def losses(inputs):
        ...     return {"left": model(inputs)[:, 0].square().mean(), "right": model(inputs).square().sum()}
        >>> with balancer.accumulating():
        ...     (balancer(losses(torch.ones(4, 3))) / 2).backward()
        >>> model.weight.grad is None
        True
        >>> (balancer(losses(torch.zeros(4, 3))) / 2).backward()
        >>> model.weight.grad.shape
        torch.Size([2, 3])
        """
        self._accumulates = True
        try:
            yield
        finally:
            self._accumulates = False

    def flush(self) -> Tensor | None:
        """Return the balanced loss of the accumulated batches alone, where the last one of a step has none.

        Returns
        -------
        Tensor or None
            Their backward writes the balanced gradients; the value is zero. None where nothing is accumulated.
        """
        if self._accumulated is None:
            return None
        assert self.partition is not None
        ranks = Ranks.now()
        self._randomness = self.strategy.random_states()
        parameters = tuple(self.partition.parameters.values())
        device = parameters[0].device
        return attach_backward(torch.zeros((), device=device), lambda c: self._flush(c, ranks), parameters)

    def step(self, closure: Closure, optimizer: torch.optim.Optimizer) -> Tensor:
        """Take a whole training step.

        Parameters
        ----------
        closure : callable
            Runs the model on the batch and returns the losses by task, or a pair of these and the shared
            representation. Strategies that look at the batch more than once call it again.
        optimizer : torch.optim.Optimizer
            The user's; its gradients are cleared first.

        Returns
        -------
        Tensor
            The balanced loss, detached.
        """
        optimizer.zero_grad()
        before = rng_state() if self.strategy.looks_again else None
        losses, representation = _outcome(closure())
        loss = self(losses, representation=representation)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if before is not None and not self.skipped:
            self.look_again([(closure, before)])
        return loss.detach()

    def look_again(self, looks: Iterable[tuple[Closure, RNGState]]) -> None:
        """Show the strategies the losses of the same data after the optimizer's step.

        Parameters
        ----------
        looks : iterable of (callable, RNGState)
            For each batch of the step, what returns its losses by task, as in `step`, and what `rng_state`
            returned before the first run. It runs without gradients, with the random numbers of the first run
            and without a trace in the batch norms.
        """
        if self._applied is None:
            raise UsageError("there has been no step yet whose batch could be looked at again.")
        ranks, again = Ranks.now(), Accumulated()
        for closure, rng in looks:
            with torch.no_grad(), replayed(self.model, rng):
                losses, _ = _outcome(closure())
                step, bad = self._share(self._present(losses, alone=ranks.size == 1), None, ranks)
            assert step.losses is not None
            if bad:
                self.guard.caught([step.tasks[task] for task in bad], "loss after the optimizer's step")
                return
            again.add_losses(step.active, step.losses)
        before = self._applied.step
        if tuple(again.tasks) != before.active:
            raise UsageError(
                f"the second look at a batch has losses of tasks {_names(before, again.tasks)}, the first had "
                f"those of {_names(before, before.active)}."
            )
        self.strategy.look_again(replace(before, losses=again.losses()))

    def end_epoch(self) -> None:
        """Tell the strategies that an epoch of training has ended; some weigh by the averages of epochs."""
        self.strategy.end_epoch()

    # ------------------------------------------------------------------ what was applied

    @property
    def weights(self) -> dict[str, float]:
        """Weights that the last step put on the gradients of the shared parameters, by active task.

        Empty before the first step, and for a strategy whose direction is no weighted sum of the gradients.
        """
        if self._applied is None or self._applied.weights is None:
            return {}
        return _by_task(self._applied.step, self._applied.weights)

    @property
    def head_weights(self) -> dict[str, float]:
        """Weights that the last step put on the gradients of the task-own parameters, by active task."""
        return {} if self._applied is None else _by_task(self._applied.step, self._applied.heads)

    @property
    def losses(self) -> dict[str, float]:
        """Losses of the last step, by active task."""
        if self._applied is None or self._applied.step.losses is None:
            return {}
        return _by_task(self._applied.step, self._applied.step.losses)

    @property
    def gradient_norms(self) -> dict[str, float]:
        """Norms of the gradients of the raw losses in the last step, by active task.

        Empty for a strategy that takes no per-task gradients, and for one that reads the Jacobian itself.
        """
        if self._applied is None or self._applied.gramian is None:
            return {}
        return _by_task(self._applied.step, self._applied.gramian.diag().clamp(min=0).sqrt())

    @property
    def cosines(self) -> dict[tuple[str, str], float]:
        """Cosines between the gradients of the raw losses in the last step, by pair of active tasks.

        A pair with a gradient of zero is left out. Empty where `gradient_norms` is.
        """
        if self._applied is None or self._applied.gramian is None:
            return {}
        table = cosines(self._applied.gramian)
        pairs = itertools.combinations(enumerate(self.gradient_norms), 2)
        found = {(one, other): float(table[i, j]) for (i, one), (j, other) in pairs}
        return {pair: cosine for pair, cosine in found.items() if not math.isnan(cosine)}

    @property
    def conflict_rate(self) -> float | None:
        """Share of the pairs of tasks whose gradients point against each other; None where `cosines` is empty."""
        cosines = self.cosines.values()
        return sum(cosine < 0 for cosine in cosines) / len(cosines) if cosines else None

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the strategies and the task names: tensors, numbers, strings and lists only."""
        return {
            "spec": self.strategy.spec,
            "tasks": None if self.tasks is None else list(self.tasks),
            "strategy": dict(self.strategy.state_dict()),
            "solution": None if self._solution is None else asdict(self._solution),
            "guard": self.guard.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, before or after the first step."""
        if state["spec"] != self.strategy.spec:
            raise UsageError(
                f"the saved state belongs to strategy {state['spec']!r}, not to {self.strategy.spec!r}."
            )
        if state["tasks"] is not None:
            saved = tuple(state["tasks"])
            if self.tasks is not None and self.tasks != saved:
                raise UsageError(f"the saved state belongs to tasks {saved}, not to {self.tasks}.")
            self.tasks = saved
        self.strategy.load_state_dict(state["strategy"])
        self._solution = None if state["solution"] is None else _Solution(**state["solution"])
        self.guard.load_state_dict(state["guard"])

    # ------------------------------------------------------------------ inside

    def _present(self, losses: Losses, alone: bool) -> dict[str, Tensor]:
        """Check the losses and keep those that take part in the step, in the order of the tasks."""
        if not isinstance(losses, Mapping) or not losses:
            raise UsageError(
                f"expected the losses as a mapping from task to scalar tensor, got {_kind(losses)}: "
                'balancer({"seg": loss_seg, "depth": loss_depth}).'
            )
        if self.tasks is None:
            self.tasks = tuple(str(task) for task in losses)
        for task in losses:
            if task not in self.tasks:
                raise UsageError(
                    f"task {task!r} was not among the tasks of the first step ({', '.join(self.tasks)}): pass "
                    "tasks= with all names, and leave out or give None for a task that a batch lacks."
                )
        present: dict[str, Tensor] = {}
        for task in self.tasks:
            loss = losses.get(task)
            if loss is None:
                continue
            if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
                raise UsageError(f"the loss of task {task!r} must be a scalar tensor, got {_kind(loss)}.")
            if torch.is_grad_enabled() and not loss.requires_grad:
                if loss.item() == 0:  # no valid label in this batch
                    continue
                raise UsageError(
                    f"the loss of task {task!r} has no graph: was it detached, or made from a number? "
                    "Give None for a task that sits a batch out."
                )
            present[task] = loss
        if not present and alone:
            raise UsageError("no task has a loss in this batch: skip its step.")
        return present

    def _share(
        self, present: Mapping[str, Tensor], representation: Tensor | None, ranks: Ranks
    ) -> tuple[Step, list[int]]:
        """Return the step that all ranks take together, and the tasks whose loss is not finite on one of them."""
        assert self.tasks is not None
        local = [self.tasks.index(task) for task in present]
        values = _stack(present) if present else torch.zeros(0)
        finite = values.isfinite().tolist()
        detached = None if representation is None else representation.detach()
        bad = [task for task, good in zip(local, finite, strict=True) if not good]
        if ranks.size == 1:
            return Step(self.tasks, tuple(local), values, detached), bad
        table = torch.zeros(3, len(self.tasks), dtype=torch.float64)  # present, not finite, loss
        table[0, local] = 1.0
        table[1, bad] = 1.0
        table[2, local] = torch.where(values.isfinite(), values, 0).to(table)
        count, broken, total = ranks.sum(table)
        active = tuple(count.nonzero().flatten().tolist())
        if not active:
            raise UsageError("no task has a loss in this batch, on any rank: skip its step.")
        means = (total[list(active)] / count[list(active)]).to(values.device, values.dtype)
        return Step(self.tasks, active, means, detached), broken.nonzero().flatten().tolist()

    def _find_parameters(self, present: Mapping[str, Tensor], ranks: Ranks) -> None:
        """Sort the parameters at the first step of a task, and again when others have become trainable."""
        trainable = () if self.model is None else tuple(id(p) for p in self.model.parameters() if p.requires_grad)
        if self.model is None or trainable != self._trainable:
            self.partition, self._trainable, self._walked = None, trainable, frozenset()
        fresh = self.partition is None
        if fresh or not self._walked >= present.keys():
            assert self.tasks is not None
            losses = [present.get(task) for task in self.tasks]
            found = find_partition(losses, self.tasks, self.model, self._shared)
            self.partition = found if self.partition is None else self.partition.joined(found)
            self._walked |= present.keys()
        assert self.partition is not None
        if ranks.size > 1:
            if fresh:
                ranks.check_same(self.partition)
            self.partition = ranks.joined(self.partition)
        if self.strategy.aggregation is not None and len(present) > 1 and not any(self.partition.shared_mask):
            raise UsageError(
                f"{self.strategy.spec!r} aggregates gradients of shared parameters, but no trainable parameter "
                f"is reached by two of the losses {', '.join(present)}."
            )

    def _weigh(
        self, step: Step, weights: Tensor, local: list[int], losses: Iterable[Tensor], ranks: Ranks
    ) -> Backward:
        """Return the backward of a plain weighted sum; its inputs are the losses of this rank."""
        detached = [loss.detach() for loss in losses]
        accumulates = self._accumulates
        mine = [step.active.index(task) for task in local]

        def backward(cotangent: Tensor) -> list[Tensor | None]:
            self._applied = _Applied(step, weights, weights, None)
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
        if accumulates or self._accumulated is not None:
            if self._accumulated is None:
                self._accumulated = Accumulated()
            self._accumulated.add_losses(step.active, step.losses)
        if accumulates:
            return None
        if self._accumulated is None:
            return step
        kept, self._accumulated = self._accumulated, None
        return replace(step, active=tuple(kept.tasks), losses=kept.losses())

    def _learn_if_finite(self, step: Step, ranks: Ranks) -> None:
        """Let the strategies learn from a step unless its gradients have overflowed."""
        assert self.partition is not None
        gradients = [parameter.grad for parameter in self.partition.parameters.values()]
        if ranks.any(not _all_finite(gradients)):
            self._rewind()
        else:
            self._learn(step, None)

    def _aggregate(
        self,
        step: Step,
        loss_weights: Tensor,
        losses: Mapping[str, Tensor],
        representation: Tensor | None,
        ranks: Ranks,
    ) -> Backward:
        """Return the backward that aggregates per-task gradients; its inputs are the parameters."""
        partition, accumulates = self.partition, self._accumulates
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
            solution = self._solution
            if solution is not None and self._accumulated is None and solution.serves(step, self.gradients.every):
                decoded = run_decoders(values, local, partition, cotangent)
                found = self._repeat(solution, step, loss_weights, accumulates)
                return _combine_local(decoded, mine, found)
            gradients = self.gradients.take(values, local, partition, cotangent)
            gradients = self._widen(gradients, partition, ranks)
            return self._balance(gradients, step, loss_weights, local, accumulates, ranks)

        def backward(cotangent: Tensor) -> list[Tensor | None]:
            with torch.autocast(device, enabled=False):
                return self._complete(balance(cotangent), step.active, ranks)

        return backward

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
        partition, kept = gradients.partition, self._accumulated
        joined = self._join(step, accumulates)
        if joined is None:
            assert self._accumulated is not None
            self._accumulated.add_gradients(local, gradients)
            return [None] * len(partition.parameters)
        if kept is not None:
            kept.add_gradients(local, gradients)
            gradients = kept.gradients(partition, gradients.scale * kept.batches)
            step, local = joined, kept.tasks
            loss_weights = self.strategy.loss_weights(step)
        if ranks.size > 1:
            gradients = ranks.average(gradients, local, step.active, partition)
        assert self.strategy.aggregation is not None
        if self.strategy.aggregation.reads == "jacobian":
            return self._direct(gradients, step, loss_weights, ranks)
        found = self._solve(gradients.gramian(), step, loss_weights, gradients.scale)
        everyone = range(len(step.active))
        return self._finish(found, partial(_combine_local, gradients, everyone), gradients.scale, ranks)

    def _solve(self, gramian: Tensor, step: Step, loss_weights: Tensor, scale: float) -> _Answer | None:
        """Weigh the tasks by what the strategy makes of their Gramian; None where the step is skipped."""
        good = self._finite_tasks(gramian.diag().isfinite(), step, scale)
        if good is None:
            return self._overflow(step)
        if not good:
            return None
        if len(good) < len(step.active):
            gramian, loss_weights = gramian[good][:, good], loss_weights[good]
        reduced = _restricted(step, [step.active[place] for place in good])
        solved = self.strategy.aggregation_weights(gramian, reduced, loss_weights)
        heads = self.strategy.head_weights(solved, reduced, loss_weights)
        scales = loss_weights.to(solved)
        weights = solved * scales
        self._applied = _Applied(reduced, weights, heads, gramian)
        if self.gradients.every > 1:
            ratios = torch.where(scales != 0, heads / scales, 1.0)
            self._solution = _Solution(list(reduced.active), solved, ratios)
        wide = torch.zeros(2, len(step.active), dtype=torch.float64)
        wide[:, good] = torch.stack([weights, heads.to(weights)])
        on_shared, on_own = wide.tolist()
        return _Answer(on_shared, on_own, learn=lambda: self._learn(reduced, loss_weights))

    def _repeat(self, solution: _Solution, step: Step, loss_weights: Tensor, accumulates: bool) -> _Answer:
        """Weigh the tasks by an earlier solution and new loss weights."""
        scales = loss_weights.to(solution.weights)
        weights, heads = scales * solution.weights, scales * solution.heads
        self._applied = _Applied(step, weights, heads, None)
        if not accumulates:
            solution.age += 1
            if self.strategy.loss_weighting is not None:
                self.strategy.loss_weighting.update(step)
        return _Answer(weights.tolist(), heads.tolist())

    def _direct(
        self, gradients: TaskGradients, step: Step, loss_weights: Tensor, ranks: Ranks
    ) -> list[Tensor | None]:
        """Replace the gradients by what a strategy makes of their Jacobian."""
        jacobian = gradients.jacobian()
        finite = torch.stack([torch.stack([b.isfinite().all() for b in row.unbind()]) for row in jacobian.blocks])
        good = self._finite_tasks(finite.all(0), step, gradients.scale)
        if good is None:
            overflow = self._overflow(step)
            return self._finish(overflow, partial(_combine_local, gradients, range(len(step.active))), 1.0, ranks)
        if not good:
            return self._finish(None, lambda _: [], gradients.scale, ranks)
        reduced = _restricted(step, [step.active[place] for place in good])
        if len(good) < len(step.active):
            jacobian, loss_weights = jacobian.rows(good), loss_weights[good]
        direction = self.strategy.aggregation_direction(jacobian, reduced, loss_weights)
        heads = self.strategy.head_weights(direction.weights, reduced, loss_weights)
        weights = None if direction.weights is None else direction.weights * loss_weights.to(direction.weights)
        self._applied = _Applied(reduced, weights, heads, None)
        wide = torch.zeros(len(step.active), dtype=torch.float64)
        wide[good] = heads.to(wide)
        answer = _Answer([], wide.tolist(), learn=lambda: self._learn(reduced, loss_weights))
        return self._finish(
            answer, lambda found: gradients.insert(direction.blocks, found.heads), gradients.scale, ranks
        )

    def _finish(
        self,
        answer: _Answer | None,
        combine: Callable[[_Answer], list[Tensor | None]],
        scale: float,
        ranks: Ranks,
    ) -> list[Tensor | None]:
        """Return the final gradients, and let the strategies learn from a step that will be taken."""
        if answer is None:
            self._rewind()
            self.skipped, self._applied = True, None
            return self._nothing(ranks)
        gradients = combine(answer)
        # A gradient scaler skips the step where gradients overflow.
        if answer.learn is None or (scale > 1 and ranks.any(not _all_finite(gradients))):
            self._rewind()
        else:
            answer.learn()
        return gradients

    def _learn(self, step: Step, loss_weights: Tensor | None) -> None:
        """Let the strategies learn from a step."""
        self.strategy.update(step, loss_weights)

    def _rewind(self) -> None:
        """Put the strategies' random generators back, after a step that is not taken."""
        assert self._randomness is not None
        self.strategy.set_random_states(self._randomness)

    def _skip(self, ranks: Ranks, cotangent: Tensor) -> list[Tensor | None]:
        """Leave a batch out, but not those that were accumulated before it."""
        self._applied = None
        if self._accumulates or self._accumulated is None:
            return self._nothing(ranks)
        return self._flush(cotangent, ranks)

    def _flush(self, cotangent: Tensor, ranks: Ranks) -> list[Tensor | None]:
        """Aggregate the gradients of the accumulated batches alone."""
        assert self.partition is not None
        assert self.tasks is not None
        kept, self._accumulated = self._accumulated, None
        assert kept is not None
        self.skipped = False
        step = Step(self.tasks, tuple(kept.tasks), kept.losses())
        if self.strategy.aggregation is None:
            self._learn(step, None)
            return self._nothing(ranks)
        gradients = kept.gradients(self.partition, (float(cotangent) or 1.0) * kept.batches)
        weights = self.strategy.loss_weights(step)
        balanced = self._balance(gradients, step, weights, kept.tasks, False, ranks)
        return self._complete(balanced, step.active, ranks)

    def _nothing(self, ranks: Ranks) -> list[Tensor | None]:
        """Return no gradients, for a step that is skipped."""
        assert self.partition is not None
        assert self.tasks is not None
        return self._complete([None] * len(self.partition.parameters), range(len(self.tasks)), ranks)

    def _complete(
        self, gradients: list[Tensor | None], active: Iterable[int], ranks: Ranks
    ) -> list[Tensor | None]:
        """Write zeros where only other ranks have a gradient: their reducer waits for this one."""
        if ranks.size == 1:
            return gradients
        assert self.partition is not None
        places = zip(gradients, self.partition.parameters.values(), self.partition.reach, strict=True)
        return [
            torch.zeros_like(parameter) if gradient is None and not reach.isdisjoint(active) else gradient
            for gradient, parameter, reach in places
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

    def _overflow(self, step: Step) -> _Answer:
        """Answer gradients that have overflowed under a loss scale with weights of one, and learn nothing.

        The gradient scaler expects to see the overflow: it skips the step and lowers the loss scale.
        """
        ones = torch.ones(len(step.active), dtype=torch.float64)
        self._applied = _Applied(step, ones, ones, None)
        return _Answer(ones.tolist(), ones.tolist())


@dataclass
class _Applied:
    """What the last step did.

    Attributes
    ----------
    step : Step
    weights, heads : Tensor of shape (A,) or None
        On shared and on task-own gradients.
    gramian : Tensor of shape (A, A) or None
        Of the gradients of the raw losses.
    """

    step: Step
    weights: Tensor | None
    heads: Tensor
    gramian: Tensor | None


@dataclass
class _Answer:
    """Weights on shared and on task-own gradients, and what is to be learned once they have been applied."""

    weights: list[float]
    heads: list[float]
    learn: Callable[[], None] | None = None


@dataclass
class _Solution:
    """Weights that an aggregation gave, without those of the losses.

    Attributes
    ----------
    active : list of int
        The tasks that took part.
    weights, heads : Tensor
        On their shared and on their task-own gradients.
    age : int
        The number of steps that used it.
    """

    active: list[int]
    weights: Tensor
    heads: Tensor
    age: int = 1

    def serves(self, step: Step, every: int) -> bool:
        """Return whether a step may use it too."""
        return self.age < every and self.active == list(step.active)


def _outcome(result: Losses | tuple[Losses, Tensor]) -> tuple[Losses, Tensor | None]:
    return result if isinstance(result, tuple) else (result, None)


def _names(step: Step, tasks: Iterable[int]) -> str:
    return ", ".join(step.tasks[task] for task in tasks)


def _restricted(step: Step, active: Sequence[int]) -> Step:
    """Return the step without the tasks that are not among `active`."""
    if tuple(active) == step.active:
        return step
    places = [step.active.index(task) for task in active]
    return replace(step, active=tuple(active), losses=None if step.losses is None else step.losses[places])


def _combine_local(
    gradients: TaskGradients | RepresentationGradients | Decoded, places: Sequence[int], answer: _Answer
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


def _all_finite(gradients: Iterable[Tensor | None]) -> bool:
    return all(bool(gradient.isfinite().all()) for gradient in gradients if gradient is not None)


def _stack(losses: Mapping[str, Tensor]) -> Tensor:
    """Put the values of the losses side by side, in float32 or better."""
    values = [loss.detach().reshape(()) for loss in losses.values()]
    dtype = torch.float32
    for value in values:
        dtype = torch.promote_types(dtype, value.dtype)
    return torch.stack([value.to(values[0].device, dtype) for value in values])


def _by_task(step: Step, values: Tensor) -> dict[str, float]:
    return {step.tasks[task]: value for task, value in zip(step.active, values.tolist(), strict=True)}


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
    return f"a {type(value).__name__}"
