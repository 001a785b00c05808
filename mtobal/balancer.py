"""The balanced loss: one autograd node whose backward hands every parameter its balanced gradient."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mtobal.errors import UsageError
from mtobal.gradients import (
    Backward,
    Partition,
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
)
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

    Attributes
    ----------
    strategy : Composition
        The strategies, each in its place.
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
        self._applied: tuple[Step, Tensor | None, Tensor] | None = None
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
        UsageError
            No loss, a task that was not there at the first step, a loss that is not a finite scalar or has no
            graph, or no parameter that two tasks share.
        """
        _check_one_process()
        present = self._present(losses)
        if not torch.is_grad_enabled():
            return torch.stack([loss.detach() for loss in present.values()]).sum()
        assert self.tasks is not None
        names = self.tasks
        with _full_precision(present.values()):
            values = _stack(present)
            detached = None if representation is None else representation.detach()
            step = Step(names, tuple(names.index(task) for task in present), values, detached)
            self._find_parameters(present)
            assert self.partition is not None
            weights = self.strategy.loss_weights(step)
            value = (weights * values).sum()
            parameters = tuple(self.partition.parameters.values())
            if self.strategy.aggregation is None:
                inputs = tuple(present.values())
                return attach_backward(value, self._weigh(step, weights, inputs), inputs)
            return attach_backward(value, self._aggregate(step, weights, present, representation), parameters)

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
        if before is not None:
            self.look_again(closure, before)
        return loss.detach()

    def look_again(self, closure: Closure, rng: RNGState) -> None:
        """Show the strategies the losses of the same batch after the optimizer's step.

        Parameters
        ----------
        closure : callable
            Returns the losses by task, as in `step`. It runs without gradients, with the random numbers of the
            first run and without a trace in the batch norms.
        rng : RNGState
            What `rng_state` returned before the first run.
        """
        if self._applied is None:
            raise UsageError("there has been no step yet whose batch could be looked at again.")
        step = self._applied[0]
        with torch.no_grad(), replayed(self.model, rng):
            again, _ = _outcome(closure())
        present = {step.tasks[task]: again[step.tasks[task]] for task in step.active}
        self.strategy.look_again(replace(step, losses=_stack({k: v for k, v in present.items() if v is not None})))

    def end_epoch(self) -> None:
        """Tell the strategies that an epoch of training has ended; some weigh by the averages of epochs."""
        self.strategy.end_epoch()

    # ------------------------------------------------------------------ what was applied

    @property
    def weights(self) -> dict[str, float]:
        """Weights that the last step put on the gradients of the shared parameters, by active task.

        Empty before the first step, and for a strategy whose direction is no weighted sum of the gradients.
        """
        if self._applied is None or self._applied[1] is None:
            return {}
        return _by_task(self._applied[0], self._applied[1])

    @property
    def head_weights(self) -> dict[str, float]:
        """Weights that the last step put on the gradients of the task-own parameters, by active task."""
        return {} if self._applied is None else _by_task(self._applied[0], self._applied[2])

    @property
    def losses(self) -> dict[str, float]:
        """Losses of the last step, by active task."""
        if self._applied is None or self._applied[0].losses is None:
            return {}
        return _by_task(self._applied[0], self._applied[0].losses)

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the strategies and the task names: tensors, numbers, strings and lists only."""
        return {
            "spec": self.strategy.spec,
            "tasks": None if self.tasks is None else list(self.tasks),
            "strategy": dict(self.strategy.state_dict()),
            "solution": None if self._solution is None else asdict(self._solution),
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

    # ------------------------------------------------------------------ inside

    def _present(self, losses: Losses) -> dict[str, Tensor]:
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
        if not present:
            raise UsageError("no task has a loss in this batch: skip its step.")
        if not _stack(present).isfinite().all():
            bad = [f"{task!r} ({loss.item()})" for task, loss in present.items() if not loss.isfinite().all()]
            raise UsageError(f"the loss of task {', '.join(bad)} is not finite.")
        return present

    def _find_parameters(self, present: Mapping[str, Tensor]) -> None:
        """Sort the parameters at the first step of a task, and again when others have become trainable."""
        trainable = () if self.model is None else tuple(id(p) for p in self.model.parameters() if p.requires_grad)
        if self.model is None or trainable != self._trainable:
            self.partition, self._trainable, self._walked = None, trainable, frozenset()
        if not self._walked >= present.keys():
            assert self.tasks is not None
            losses = [present.get(task) for task in self.tasks]
            found = find_partition(losses, self.tasks, self.model, self._shared)
            self.partition = found if self.partition is None else self.partition.joined(found)
            self._walked |= present.keys()
        assert self.partition is not None
        if self.strategy.aggregation is not None and len(present) > 1 and not any(self.partition.shared_mask):
            raise UsageError(
                f"{self.strategy.spec!r} aggregates gradients of shared parameters, but no trainable parameter "
                f"is reached by two of the losses {', '.join(present)}."
            )

    def _weigh(self, step: Step, weights: Tensor, losses: Iterable[Tensor]) -> Backward:
        """Return the backward of a plain weighted sum; its inputs are the losses."""
        detached = [loss.detach() for loss in losses]

        def backward(cotangent: Tensor) -> list[Tensor | None]:
            self.strategy.update(step)
            scaled = (cotangent * weights).unbind()
            return [
                weight.to(loss.device, loss.dtype).reshape(loss.shape)
                for weight, loss in zip(scaled, detached, strict=True)
            ]

        self._applied = (step, weights, weights)
        return backward

    def _aggregate(
        self, step: Step, loss_weights: Tensor, losses: Mapping[str, Tensor], representation: Tensor | None
    ) -> Backward:
        """Return the backward that aggregates per-task gradients; its inputs are the parameters."""
        partition, aggregation = self.partition, self.strategy.aggregation
        assert partition is not None
        assert aggregation is not None
        values = list(losses.values())
        graph: list[Tensor] = []  # emptied, as the values are, when the gradients have been taken
        if self.gradients.reads_representation:
            step.require_representation(self.strategy.spec)
            assert representation is not None
            graph.append(representation)
            cut = cut_at(representation, losses, partition.parameters)

        def backward(cotangent: Tensor) -> list[Tensor | None]:
            with _full_precision(values):
                if graph:
                    pulled = RepresentationGradients(values, graph, partition, cut, cotangent)
                    return self._combine(pulled, step, loss_weights)
                if self._solution is not None and self._solution.serves(step, self.gradients.every):
                    decoded = run_decoders(values, step.active, partition, cotangent)
                    return decoded.combine(*self._repeat(self._solution, step, loss_weights))
                gradients = self.gradients.take(values, step.active, partition, cotangent)
                if self.partition is partition:
                    self.partition = gradients.partition
                if aggregation.reads == "jacobian":
                    return self._direct(gradients, step, loss_weights)
                return self._combine(gradients, step, loss_weights)

        return backward

    def _combine(
        self, gradients: TaskGradients | RepresentationGradients, step: Step, loss_weights: Tensor
    ) -> list[Tensor | None]:
        """Weigh the gradients by what the strategy makes of their Gramian."""
        gramian = gradients.gramian()
        if not gramian.isfinite().all():
            return gradients.combine(*self._overflow(gramian.diag().isfinite(), step))
        solved = self.strategy.aggregation_weights(gramian, step, loss_weights)
        heads = self.strategy.head_weights(solved, step, loss_weights)
        scales = loss_weights.to(solved)
        weights = solved * scales
        self._learn(step, loss_weights, weights, heads)
        if self.gradients.every > 1:
            self._solution = _Solution(list(step.active), solved, torch.where(scales != 0, heads / scales, 1.0))
        return gradients.combine(weights.tolist(), heads.tolist())

    def _repeat(self, solution: _Solution, step: Step, loss_weights: Tensor) -> tuple[list[float], list[float]]:
        """Return weights on shared and on task-own gradients from an earlier solution and new loss weights."""
        scales = loss_weights.to(solution.weights)
        weights, heads = scales * solution.weights, scales * solution.heads
        solution.age += 1
        self._applied = (step, weights, heads)
        if self.strategy.loss_weighting is not None:
            self.strategy.loss_weighting.update(step)
        return weights.tolist(), heads.tolist()

    def _direct(self, gradients: TaskGradients, step: Step, loss_weights: Tensor) -> list[Tensor | None]:
        """Replace the gradients by what a strategy makes of their Jacobian."""
        jacobian = gradients.jacobian()
        finite = torch.stack([torch.stack([b.isfinite().all() for b in row.unbind()]) for row in jacobian.blocks])
        if not finite.all():
            return gradients.combine(*self._overflow(finite.all(0), step))
        found = self.strategy.aggregation_direction(jacobian, step, loss_weights)
        heads = self.strategy.head_weights(found.weights, step, loss_weights)
        weights = None if found.weights is None else found.weights * loss_weights.to(found.weights)
        self._learn(step, loss_weights, weights, heads)
        return gradients.insert(found.blocks, heads.tolist())

    def _learn(self, step: Step, loss_weights: Tensor, weights: Tensor | None, heads: Tensor) -> None:
        """Take note of the weights that are applied, and let the strategies learn from the step."""
        self._applied = (step, weights, heads)
        self.strategy.update(step, loss_weights)

    def _overflow(self, finite: Tensor, step: Step) -> tuple[list[float], list[float]]:
        """Answer gradients that are not finite with weights of one, and learn nothing.

        A gradient scaler expects to see the overflow: it skips the step and lowers the loss scale.
        """
        bad = [repr(step.tasks[task]) for task, good in zip(step.active, finite.tolist(), strict=True) if not good]
        warnings.warn(
            f"the gradient of task {', '.join(bad)} is not finite: weights of one for this step, "
            "no strategy state changed.",
            RuntimeWarning,
            stacklevel=2,
        )
        ones = torch.ones(len(step.active), dtype=torch.float64)
        self._applied = (step, ones, ones)
        return ones.tolist(), ones.tolist()


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


def _check_one_process() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        processes = torch.distributed.get_world_size()
        if processes > 1:
            raise UsageError(
                f"Balancer balances one process so far, and there are {processes}: their weights would differ."
            )


def _stack(losses: Mapping[str, Tensor]) -> Tensor:
    """Put the values of the losses side by side, in float32 or better."""
    values = [loss.detach().reshape(()) for loss in losses.values()]
    dtype = torch.float32
    for value in values:
        dtype = torch.promote_types(dtype, value.dtype)
    return torch.stack([value.to(values[0].device, dtype) for value in values])


def _full_precision(losses: Iterable[Tensor]) -> torch.autocast:
    """Switch autocast off, which would run products of gradients in half precision."""
    device = next(iter(losses)).device.type
    return torch.autocast(device, enabled=False)


def _by_task(step: Step, values: Tensor) -> dict[str, float]:
    return {step.tasks[task]: value for task, value in zip(step.active, values.tolist(), strict=True)}


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
    return f"a {type(value).__name__}"
