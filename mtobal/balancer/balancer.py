"""The balanced loss: one autograd node whose backward hands every parameter its balanced gradient."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mtobal.balancer.again import Again, Closure, Losses, Part
from mtobal.balancer.aggregator import Aggregator
from mtobal.balancer.guard import Guard, Policy
from mtobal.balancer.losses import present_losses, share_losses
from mtobal.balancer.parameters import Parameters
from mtobal.balancer.passes import Passes
from mtobal.balancer.records import Solution, restricted
from mtobal.errors import UsageError, unknown_name
from mtobal.gradients import (
    Accumulated,
    LookAhead,
    NotFiniteAhead,
    Partition,
    Ranks,
    RNGState,
    Scheme,
    Shared,
    declared_shared,
    keep_buffers,
    replayed,
    rng_state,
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
          turns where their cotangents would take more than so many bytes;
        - ``measured``: the fastest of these three in the first steps of this run. Engines differ by rounding, so
          two runs may. The log says what was measured.

        Approximations are

        - ``representation``, unless the strategy asks for it: inner products of the gradients with respect to the
          shared representation, and one backward pass through the encoder;
        - ``layers(names=["encoder.layer4"])``: inner products over the parameters of these modules alone, and one
          backward pass through the rest; batches that are accumulated are aggregated one by one;
        - ``fraction(f=0.25)``: inner products over part of each batch, on which `part` runs the model, and one
          backward pass for all of it; batches that are accumulated are aggregated one by one;
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
    guard : Guard
        Counts of the steps in which a loss or a gradient was not finite, by task.

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
            raise UsageError(
                f'model must be a torch.nn.Module, not {type(model).__name__}: Balancer("pcgrad", model).'
            )
        if shared is not None and model is None:
            raise UsageError("shared= names parameters of the model: pass the model too.")
        self.strategy: Composition = build(strategy)
        self.model = model
        names = None if shared is None or model is None else declared_shared(model, shared)
        aggregation = self.strategy.aggregation
        self.gradients = Scheme(parse(gradients), "losses" if aggregation is None else aggregation.reads)
        if self.strategy.perturbation is not None and (
            self.gradients.reads_representation or self.gradients.approximates
        ):
            raise UsageError(
                f"{self.strategy.spec!r} takes gradients of the parameters at other points in every step: choose "
                "auto, loop, ghost or batched for gradients=, without every, fraction and layers."
            )
        if aggregation is not None or self.strategy.perturbation is not None:
            keep_buffers()
        self.guard = Guard(nonfinite, patience)
        self.observers: list[Observer] = []
        self._parameters = Parameters(self.strategy, model, names, None if tasks is None else tuple(tasks))
        self._aggregator = Aggregator(self.strategy, self.gradients, self.guard, self._parameters)
        self._passes = Passes(self.strategy, model, self.gradients, self.guard, self._parameters, self._aggregator)
        self._ahead: LookAhead | None = None  # what the strategies have seen of the step to come

    @property
    def tasks(self) -> tuple[str, ...] | None:
        """Names of all tasks, in order; None before the first step, if they were not given."""
        return self._parameters.tasks

    @property
    def partition(self) -> Partition | None:
        """Shared, task-own and unused parameters; None before the first step. Printing it shows them by module."""
        return self._parameters.partition

    @property
    def skipped(self) -> bool:
        """Whether the last step was skipped, because something in it was not finite."""
        return self._aggregator.skipped

    @property
    def failed_solves(self) -> int:
        """In how many steps the solver of an aggregation has failed, so that equal weights were applied."""
        return self._aggregator.failed_solves

    def __repr__(self) -> str:
        return f"Balancer({self.strategy.spec!r}, tasks={self.tasks})"

    # ------------------------------------------------------------------ the balanced loss

    def __call__(
        self,
        losses: Losses,
        *,
        representation: Tensor | None = None,
        again: Closure | tuple[Closure, RNGState] | None = None,
        part: Part | None = None,
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
        part : callable, optional
            For ``gradients="fraction(f=...)"``: given f, it runs the model on that share of the batch and returns
            the losses by task; the backward pass calls it, in steps that solve for weights. A batch of which a
            task has no sample in that share is looked at whole.

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
        present = self._present(losses)
        if not torch.is_grad_enabled():
            step, _ = share_losses(present, self._parameters.known_tasks, self.model, ranks)
            assert step.losses is not None
            return step.losses.sum()
        if self._ahead is None and self.strategy.looks_ahead:
            raise UsageError(
                f"{self.strategy.spec!r} looks ahead of each step: train with balancer.step(closure, optimizer, "
                "validation=...), or call balancer.look_ahead(closure, optimizer, validation=...) before this."
            )
        ahead, self._ahead = self._ahead, None
        tasks = self._parameters.known_tasks
        device = next(iter(present.values())).device.type if present else "cpu"
        repeat = share = None
        if self.gradients.fraction < 1:
            share = Again.on_part(part, self.gradients.fraction, device)
        if self.strategy.perturbation is not None:
            repeat = Again.of(again, device, self.strategy.spec)
        with torch.autocast(device, enabled=False):  # it would run products of gradients in half precision
            self.guard.begin()
            step, bad = share_losses(present, tasks, self.model, ranks)
            self._parameters.find(present, ranks, joins=self._aggregator.accumulated is not None)
            if representation is not None:
                step = replace(step, representation=representation.detach())
            if bad:
                self.guard.caught([tasks[task] for task in bad], "loss")
                present = {task: loss for task, loss in present.items() if tasks.index(task) not in bad}
                step = restricted(step, [task for task in step.active if task not in bad])
            elif ahead is not None and ahead.broken:
                self.guard.caught(ahead.broken, "loss or a gradient ahead of the step")
            skips = bool(bad) and (self.guard.policy == "skip" or not step.active)
            skips |= ahead is not None and bool(ahead.broken)
            self._aggregator.begin(skips)
            if skips:
                return self._passes.skipped_loss(step, ranks)
            for observe in self.observers:
                observe(present, self._parameters.known_partition)
            balanced = self._passes.balanced_loss(step, present, bad, representation, repeat, share, ranks)
            return balanced if ahead is None or ahead.extra is None else balanced + self._passes.further(ahead)

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
        self._aggregator.accumulates = True
        try:
            yield
        finally:
            self._aggregator.accumulates = False

    def flush(self) -> Tensor | None:
        """Return the balanced loss of the accumulated batches alone, where the last one of a step has none.

        Returns
        -------
        Tensor or None
            Their backward writes the balanced gradients; the value is zero. None where nothing is accumulated.
        """
        return self._passes.accumulated_loss(Ranks.now())

    def step(
        self,
        closure: Closure,
        optimizer: torch.optim.Optimizer,
        *,
        validation: Closure | None = None,
        part: Part | None = None,
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
        part : callable, optional
            Runs it on a share of the batch, as in `__call__`.

        Returns
        -------
        Tensor
            The balanced loss, detached.
        """
        if not callable(closure) or not hasattr(optimizer, "zero_grad"):
            raise UsageError(
                "expected balancer.step(closure, optimizer), where closure() runs the model and returns the "
                f"losses by task, not a {type(closure).__name__} and a {type(optimizer).__name__}."
            )
        optimizer.zero_grad()
        self.look_ahead(closure, optimizer, validation=validation)
        before = rng_state() if self.strategy.repeats else None
        losses, representation = _outcome(closure())
        again = closure if before is None else (closure, before)
        loss = self(losses, representation=representation, again=again, part=part)
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
            present = self._present(_outcome(closure())[0])
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
        if self._aggregator.applied is None:
            raise UsageError("there has been no step yet whose batch could be looked at again.")
        before = self._aggregator.applied.step
        took_part = {before.tasks[task] for task in before.active}
        ranks, again = Ranks.now(), Accumulated()
        for closure, rng in looks:
            with torch.no_grad(), replayed(self.model, rng):
                losses, _ = _outcome(closure())
                losses = {task: loss for task, loss in losses.items() if task in took_part}
                step, bad = share_losses(self._present(losses), self._parameters.known_tasks, self.model, ranks)
            assert step.losses is not None
            if bad:
                self.guard.caught([step.tasks[task] for task in bad], "loss after the optimizer's step")
                self.strategy.look_again(before)  # as if nothing had changed
                return
            again.add_losses(step.active, step.losses)
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
        if self._aggregator.applied is None or self._aggregator.applied.weights is None:
            return {}
        return _by_task(self._aggregator.applied.step, self._aggregator.applied.weights)

    @property
    def head_weights(self) -> dict[str, float]:
        """Weights that the last step put on the gradients of the task-own parameters, by active task."""
        return (
            {}
            if self._aggregator.applied is None
            else _by_task(self._aggregator.applied.step, self._aggregator.applied.heads)
        )

    @property
    def losses(self) -> dict[str, float]:
        """Losses of the last step, by active task."""
        if self._aggregator.applied is None or self._aggregator.applied.step.losses is None:
            return {}
        return _by_task(self._aggregator.applied.step, self._aggregator.applied.step.losses)

    @property
    def gradient_norms(self) -> dict[str, float]:
        """Norms of the gradients of the raw losses in the last step, by active task.

        Empty for a strategy that takes no per-task gradients, and for one that reads the Jacobian itself.
        """
        if self._aggregator.applied is None or self._aggregator.applied.gramian is None:
            return {}
        return _by_task(self._aggregator.applied.step, self._aggregator.applied.gramian.diag().clamp(min=0).sqrt())

    @property
    def cosines(self) -> dict[tuple[str, str], float]:
        """Cosines between the gradients of the raw losses in the last step, by pair of active tasks.

        A pair with a gradient of zero is left out. Empty where `gradient_norms` is.
        """
        if self._aggregator.applied is None or self._aggregator.applied.gramian is None:
            return {}
        table = pairwise_cosines(self._aggregator.applied.gramian)
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
            "solution": None if self._aggregator.solution is None else asdict(self._aggregator.solution),
            "engine": self.gradients.choice,
            "guard": self.guard.state_dict(),
            "failed_solves": self.failed_solves,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, before or after the first step."""
        # In YAML, the order of the strategies may get lost.
        if sorted(state["spec"].split("+")) != sorted(self.strategy.spec.split("+")):
            raise UsageError(
                f"the saved state belongs to strategy {state['spec']!r}, not to {self.strategy.spec!r}."
            )
        if state["tasks"] is not None:
            saved = tuple(state["tasks"])
            if self.tasks is not None and self.tasks != saved:
                raise UsageError(f"the saved state belongs to tasks {saved}, not to {self.tasks}.")
            self._parameters.tasks = saved
        self.strategy.load_state_dict(state["strategy"])
        self._aggregator.solution = None if state["solution"] is None else Solution(**state["solution"])
        self.gradients.choice = state["engine"]
        self.guard.load_state_dict(state["guard"])
        self._aggregator.failed_solves = state["failed_solves"]

    def _present(self, losses: Losses) -> dict[str, Tensor]:
        """Check the losses and keep those that take part in the step; the first ones name the tasks."""
        present = present_losses(losses, self.tasks)
        if self.tasks is None:
            self._parameters.tasks = tuple(losses)
        return present


def _outcome(result: Losses | tuple[Losses, Tensor]) -> tuple[Losses, Tensor | None]:
    return result if isinstance(result, tuple) else (result, None)


def _names(step: Step, tasks: Iterable[int]) -> str:
    return ", ".join(step.tasks[task] for task in tasks)


def _by_task(step: Step, values: Tensor) -> dict[str, float]:
    return {step.tasks[task]: value for task, value in zip(step.active, values.tolist(), strict=True)}
