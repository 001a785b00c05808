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

from mtobal.balancer.again import Again, Closure, Losses
from mtobal.balancer.guard import Guard, Policy
from mtobal.errors import UsageError, unknown_name
from mtobal.gradients import (
    Accumulated,
    Backward,
    Decoded,
    Landscape,
    LookAhead,
    NotFiniteAhead,
    Partition,
    Point,
    Ranks,
    RepresentationGradients,
    RNGState,
    Scheme,
    Shared,
    TaskGradients,
    attach_backward,
    cut_at,
    declared_shared,
    differentiate,
    find_partition,
    keep_buffers,
    replayed,
    rng_state,
    run_decoders,
    split,
    stacked,
    when_backward_ends,
)
from mtobal.ops import pairwise_cosines
from mtobal.strategies import Composition, Spec, Step, Validation, build
from mtobal.strategies.spec import parse

Observer = Callable[[Mapping[str, Tensor], Partition], None]


class Balancer:
    """Balance several losses in any training loop.

    Calling it with the losses of a batch gives a scalar; the ordinary backward of that scalar writes balanced
    gradients, so gradient accumulation, clipping, loss scaling and the optimizer stay what they are. A strategy
    that only weighs losses costs one backward pass; one that aggregates gradients runs one pass a task inside
    that backward, and none outside of it; one that takes gradients at other points runs the model there, inside
    that backward too, and puts the parameters back bit by bit.

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
    observers : list of callable
        Each is called with the losses of a step by task, with graph, and the partition, before the backward pass.
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
        if self.strategy.perturbation is not None and (
            self.gradients.reads_representation or self.gradients.every > 1
        ):
            raise UsageError(
                f"{self.strategy.spec!r} takes gradients of the parameters at other points in every step: choose "
                "auto, loop, ghost or batched for gradients=, without every."
            )
        if aggregation is not None or self.strategy.perturbation is not None:
            keep_buffers()
        self._trainable: tuple[int, ...] = ()
        self._walked: frozenset[str] = frozenset()  # tasks whose graph has been searched for parameters
        self.guard = Guard(nonfinite, patience)
        self.skipped = False
        self.observers: list[Observer] = []
        self._accumulates = False
        self._accumulated: Accumulated | None = None
        self._applied: _Applied | None = None
        self._randomness: list[Tensor] | None = None  # of the strategies, before the step at hand
        self._solution: _Solution | None = None  # kept where one serves several steps
        self._ahead: LookAhead | None = None  # what the strategies have seen of the step to come

    def __repr__(self) -> str:
        return f"Balancer({self.strategy.spec!r}, tasks={self.tasks})"

    # ------------------------------------------------------------------ the balanced loss

    def __call__(
        self,
        losses: Losses,
        *,
        representation: Tensor | None = None,
        again: Closure | tuple[Closure, RNGState] | None = None,
    ) -> Tensor:
        """Join the losses of one batch into the balanced loss.

        Parameters
        ----------
        losses : mapping from task to scalar tensor or None
            A task that is None or absent sits this step out.
        representation : Tensor, optional
            The output of the shared encoder that all decoders read, for strategies that read it.
        again : callable, or pair of a callable and RNGState, optional
            Runs the model on the same batch once more and returns what it returned for this call, for strategies
            that take gradients at other points; the backward pass calls it. With what `rng_state` returned before
            the first run, it draws the same random numbers.

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
            No loss, a task that was not there at the first step, a loss that is no scalar or has no graph, no
            parameter that two tasks share, a strategy that has not looked ahead of this step, or one that needs
            `again` and has not got it.
        """
        ranks = Ranks.now()
        present = self._present(losses, alone=ranks.size == 1)
        if not torch.is_grad_enabled():
            return torch.stack([loss.detach() for loss in present.values()]).sum()
        if self._ahead is None and self.strategy.looks_ahead:
            raise UsageError(
                f"{self.strategy.spec!r} looks ahead of each step: train with balancer.step(closure, optimizer, "
                "validation=...), or call balancer.look_ahead(closure, optimizer, validation=...) before this."
            )
        ahead, self._ahead = self._ahead, None
        assert self.tasks is not None
        device = next(iter(present.values())).device.type if present else "cpu"
        repeat = None
        if self.strategy.perturbation is not None:
            repeat = Again.of(again, device, self.strategy.spec)
        with torch.autocast(device, enabled=False):  # it would run products of gradients in half precision
            self.guard.begin()
            step, bad = self._share(present, representation, ranks)
            if bad:
                self.guard.caught([self.tasks[task] for task in bad], "loss")
                present = {task: loss for task, loss in present.items() if self.tasks.index(task) not in bad}
                step = _restricted(step, [task for task in step.active if task not in bad])
            elif ahead is not None and ahead.broken:
                self.guard.caught(ahead.broken, "loss or a gradient ahead of the step")
            self._find_parameters(present, ranks)
            assert self.partition is not None
            parameters = self._inputs(ranks)
            self._randomness = self.strategy.random_states()
            self.skipped = bool(bad) and (self.guard.policy == "skip" or not step.active)
            self.skipped |= ahead is not None and bool(ahead.broken)
            if self.skipped:
                assert step.losses is not None
                return attach_backward(step.losses.sum(), partial(self._skip, ranks), parameters)
            for observe in self.observers:
                observe(present, self.partition)
            aggregates = self.strategy.aggregation is not None
            assert step.losses is not None
            # Weights of accumulated batches are those of all of them, which are not here yet.
            joins = aggregates and repeat is None and (self._accumulates or self._accumulated is not None)
            weights = torch.ones_like(step.losses) if joins else self.strategy.loss_weights(step)
            value = (weights * step.losses).sum()
            backward: Backward
            if repeat is not None:
                backward, inputs = self._perturb(step, weights, present, repeat, ranks), parameters
            elif not aggregates:
                inputs = tuple(present.values())
                local = [step.tasks.index(task) for task in present]
                backward = self._weigh(step, weights, local, inputs, ranks)
                if ranks.size > 1 and (bad or not present):  # the reducer waits for parameters of other tasks, too
                    backward, inputs = _with_zeros(backward, parameters), (*inputs, *parameters)
            else:
                backward, inputs = self._aggregate(step, weights, present, representation, ranks), parameters
            balanced = attach_backward(value, backward, inputs)
            if self.strategy.regulariser is not None:
                step.require_representation(self.strategy.spec)
                assert representation is not None
                penalty = self.strategy.regulariser.penalty(representation, list(present.values()), step)
                balanced = balanced + self._penalise(penalty, parameters)
            return balanced if ahead is None or ahead.extra is None else balanced + self._further(ahead)

    @contextmanager
    def accumulating(self) -> Iterator[None]:
        """Collect the gradients of the batches inside, for a later one to aggregate.

        Call the balancer and its backward inside for every batch but the last of an optimizer's step, and outside
        for the last one. Aggregation then sees the gradients of all batches together, and the update is that of
        one large batch. Without it, each batch is aggregated alone. A strategy that only weighs losses weighs
        each batch by its own losses, and learns from the mean losses of all. So does one that takes gradients at
        other points: each batch chooses its points and is aggregated alone.

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
        parameters = self._inputs(ranks)
        device = parameters[0].device
        return attach_backward(torch.zeros((), device=device), lambda c: self._flush(c, ranks), parameters)

    def step(
        self, closure: Closure, optimizer: torch.optim.Optimizer, *, validation: Closure | None = None
    ) -> Tensor:
        """Take a whole training step.

        Parameters
        ----------
        closure : callable
            Runs the model on the batch and returns the losses by task, or a pair of these and the shared
            representation. Strategies that look at the batch more than once call it again.
        optimizer : torch.optim.Optimizer
            The user's; its gradients are cleared first.
        validation : callable, optional
            Runs the model on another batch, for strategies that look ahead, as `look_ahead` describes.

        Returns
        -------
        Tensor
            The balanced loss, detached.
        """
        optimizer.zero_grad()
        self.look_ahead(closure, optimizer, validation=validation)
        before = rng_state() if self.strategy.repeats else None
        losses, representation = _outcome(closure())
        again = closure if before is None else (closure, before)
        loss = self(losses, representation=representation, again=again)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if before is not None and self.strategy.looks_again and not self.skipped:
            self.look_again([(closure, before)])
        return loss.detach()

    def look_ahead(
        self, closure: Closure, optimizer: torch.optim.Optimizer, *, validation: Closure | None = None
    ) -> None:
        """Let the strategies that look ahead try out the step that is to come; others do nothing.

        The model runs on the same batches several times, each with the random numbers of the first run, at points
        where a step might lead. Afterwards parameters, buffers, gradients and generators are what they were.

        Parameters
        ----------
        closure : callable
            As in `step`.
        optimizer : torch.optim.Optimizer
            The user's: its learning rates, momentum and weight decay say where a step leads.
        validation : callable, optional
            Runs the model on another batch, in the same way; best one that it is not trained on. By default the
            training batch serves as such.
        """
        if not self.strategy.looks_ahead:
            return

        def run(closure: Closure) -> tuple[tuple[str, ...], Mapping[str, Tensor]]:
            present = self._present(_outcome(closure())[0], alone=True)
            assert self.tasks is not None
            return self.tasks, present

        out: set[str] | None = None  # tasks that are going to sit the step out

        def train() -> tuple[tuple[str, ...], Mapping[str, Tensor]]:
            nonlocal out
            tasks, present = run(closure)
            if out is None:
                drops = self.guard.policy == "drop_task" and Ranks.now().size == 1
                out = {task for task, loss in present.items() if drops and not loss.isfinite()}
            return tasks, {task: loss for task, loss in present.items() if task not in out} or present

        ahead = LookAhead(self.model, optimizer, train, None if validation is None else partial(run, validation))
        try:
            self.strategy.look_ahead(ahead)
        except NotFiniteAhead as found:  # the step, which is skipped, says so
            ahead.broken = found.tasks
        self._ahead = ahead

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

    def revise(
        self,
        losses: Mapping[str, float],
        metrics: Mapping[str, float] | None = None,
        higher_is_better: Mapping[str, bool] | None = None,
    ) -> None:
        """Show the strategies what a validation found; some give the tasks new weights by it.

        Parameters
        ----------
        losses : mapping from task to float
            Mean validation losses, the same on all ranks; a task may be missing.
        metrics : mapping from task to float, optional
            The main metric of each task, for strategies that read metrics.
        higher_is_better : mapping from task to bool, optional
            For each of these metrics.
        """
        if self.tasks is None:
            raise UsageError("the tasks are not known before the first step: pass tasks= to the Balancer.")
        unknown = [task for task in (*losses, *(metrics or {})) if task not in self.tasks]
        if unknown:
            raise unknown_name("task", unknown[0], self.tasks)
        values, scores = (
            torch.tensor([found.get(task, math.nan) for task in self.tasks], dtype=torch.float64)
            for found in (losses, metrics or {})
        )
        if metrics is None:
            self.strategy.revise(Validation(self.tasks, values))
            return
        if higher_is_better is None or any(task not in higher_is_better for task in metrics):
            raise UsageError("revise: say of each metric whether higher is better: higher_is_better={task: True}.")
        upward = tuple(higher_is_better.get(task, True) for task in self.tasks)
        self.strategy.revise(Validation(self.tasks, values, scores, upward))

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
        table = pairwise_cosines(self._applied.gramian)
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
        values = _stack(present) if present else self._no_losses()
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

    def _no_losses(self) -> Tensor:
        """Return no values, in the type that losses of the model would have."""
        like = None if self.model is None else next(self.model.parameters(), None)
        if like is None:
            return torch.zeros(0)
        return torch.zeros(0, device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))

    def _find_parameters(self, present: Mapping[str, Tensor], ranks: Ranks) -> None:
        """Sort the parameters at the first step of a task, and again when others have become trainable."""
        trainable = () if self.model is None else tuple(id(p) for p in self.model.parameters() if p.requires_grad)
        if self.model is None or trainable != self._trainable:
            self.partition, self._trainable, self._walked = None, trainable, frozenset()
        fresh = self.partition is None
        if fresh or not self._walked >= present.keys() or ranks.size > 1:
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

    def _inputs(self, ranks: Ranks) -> tuple[Tensor, ...]:
        """Return the parameters to which the balanced loss writes gradients.

        The reducer of several ranks sees by itself to those that no task reaches, and only to those.
        """
        assert self.partition is not None
        parameters = zip(self.partition.parameters.values(), self.partition.reach, strict=True)
        return tuple(parameter for parameter, tasks in parameters if ranks.size == 1 or tasks)

    def _penalise(self, penalty: Tensor, parameters: tuple[Tensor, ...]) -> Tensor:
        """Return a penalty in the graph of the losses as one whose backward leaves that graph to the balanced loss.

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

    def _further(self, ahead: LookAhead) -> Tensor:
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
            self.skipped = True
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

    def _perturb(
        self, step: Step, loss_weights: Tensor, losses: Mapping[str, Tensor], again: Again, ranks: Ranks
    ) -> Backward:
        """Return the backward that takes the gradients at other points; its inputs are the parameters."""
        partition, perturbation, accumulates = self.partition, self.strategy.perturbation, self._accumulates
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
            step, loss_weights = _restricted(step, [step.active[place] for place in good]), loss_weights[good]
        factor = 1.0
        if self.strategy.perturbation.max_norm > 0:
            shared = {place: gradients[place] for place in landscape.shared}
            found = {place: gradient for place, gradient in shared.items() if gradient is not None}
            factor = self.strategy.perturbation.clip(_norm(landscape.mean(dict(found), step.active).values()))
            for place, gradient in found.items():
                gradients[place] = gradient * factor
        self._applied = _Applied(step, loss_weights * factor, loss_weights, None)
        answer = _Answer([], [], learn=lambda: self._learn(step, None, accumulates))
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
    ) -> _Answer | None:
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
        reduced = _restricted(step, [step.active[place] for place in good])
        solved = self.strategy.aggregation_weights(gramian, reduced, loss_weights)
        heads = self.strategy.head_weights(solved[: len(good)], reduced, loss_weights)
        scales = loss_weights.to(solved)
        weights = solved * scales.repeat(len(solved) // len(scales))
        if self.strategy.perturbation is not None:
            length = math.sqrt(max(float(weights @ gramian @ weights), 0.0))
            weights = weights * self.strategy.perturbation.clip(length)
        self._applied = _Applied(
            reduced, weights if len(rows) == len(good) else None, heads, gramian[: len(good), : len(good)]
        )
        if self.gradients.every > 1:
            ratios = torch.where(scales != 0, heads / scales, 1.0)
            self._solution = _Solution(list(reduced.active), solved, ratios)
        wide[0, rows] = weights
        wide[1, good] = heads.to(weights)
        on_shared, on_own = wide.tolist()
        return _Answer(on_shared, on_own, learn=lambda: self._learn(reduced, loss_weights, accumulates))

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
        reduced = _restricted(step, [step.active[place] for place in good])
        if len(good) < count:
            rows = [start + place for start in range(0, size, count) for place in good]
            jacobian, loss_weights = jacobian.rows(rows), loss_weights[good]
        direction = self.strategy.aggregation_direction(jacobian, reduced, loss_weights)
        heads = self.strategy.head_weights(direction.weights, reduced, loss_weights)
        weights, blocks = direction.weights, direction.blocks
        if weights is not None:
            weights = weights * loss_weights.to(weights)
        if self.strategy.perturbation is not None and self.strategy.perturbation.max_norm > 0:
            factor = self.strategy.perturbation.clip(_norm(blocks))
            blocks = [block * factor for block in blocks]
            weights = None if weights is None else weights * factor
        self._applied = _Applied(reduced, weights if size == count else None, heads, None)
        wide = torch.zeros(size, dtype=torch.float64)
        wide[good] = heads.to(wide)
        answer = _Answer([], wide.tolist(), learn=lambda: self._learn(reduced, loss_weights, accumulates))
        return self._finish(answer, lambda found: gradients.insert(blocks, found.heads), gradients.scale, ranks)

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
            self.skipped = True
        else:
            answer.learn()
        return gradients

    def _learn(self, step: Step, loss_weights: Tensor | None, accumulates: bool = False) -> None:
        """Let the strategies learn from a step."""
        if self.strategy.perturbation is not None:  # batches that are aggregated alone are learned from together
            joined = self._join(step, accumulates)
            if joined is None:
                return
            step, loss_weights = joined, loss_weights if joined is step else None
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
        if self.strategy.aggregation is None or self.strategy.perturbation is not None:
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

    def _overflow(self, step: Step, rows: int) -> _Answer:
        """Answer gradients that have overflowed under a loss scale with weights of one, and learn nothing.

        The gradient scaler expects to see the overflow: it skips the step and lowers the loss scale.
        """
        ones = torch.ones(len(step.active), dtype=torch.float64)
        self._applied = _Applied(step, ones, ones, None)
        return _Answer([1.0] * rows, [1.0] * rows)


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


def _with_zeros(backward: Backward, tensors: Sequence[Tensor]) -> Backward:
    """Return a backward that gives zeros for some further inputs."""
    return lambda cotangent: [*backward(cotangent), *map(torch.zeros_like, tensors)]


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


def _norm(tensors: Iterable[Tensor]) -> float:
    """Return one norm over all tensors."""
    return math.hypot(*(float(torch.linalg.vector_norm(tensor.double())) for tensor in tensors))


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
