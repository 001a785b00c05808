"""The balanced loss: one autograd node whose backward hands every parameter its balanced gradient."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mtobal.errors import UsageError
from mtobal.gradients import (
    Backward,
    Partition,
    RNGState,
    Shared,
    attach_backward,
    cut_at,
    declared_shared,
    find_partition,
    replayed,
    rng_state,
    task_gradients,
)
from mtobal.ops import Jacobian, combine, gramian
from mtobal.strategies import Composition, Spec, Step, build

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
        self._trainable: tuple[int, ...] = ()
        self._walked: frozenset[str] = frozenset()  # tasks whose graph has been searched for parameters
        self._applied: tuple[Step, Tensor | None, Tensor] | None = None

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
            inputs: tuple[Tensor, ...]
            if self.strategy.aggregation is None:
                inputs = tuple(present.values())
                backward = self._weigh(step, weights, [loss.detach() for loss in inputs])
            elif self.strategy.aggregation.reads == "representation":
                step.require_representation(self.strategy.spec)
                assert representation is not None
                inputs = parameters
                backward = self._aggregate_representation(step, present, weights, representation)
            else:
                inputs = parameters
                backward = self._aggregate(step, list(present.values()), weights)
            return attach_backward(value, backward, inputs)

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
        finite = torch.stack([loss.detach().reshape(()).isfinite().cpu() for loss in present.values()])
        if not finite.all():
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

    def _weigh(self, step: Step, weights: Tensor, losses: list[Tensor]) -> Backward:
        """Return the backward of a plain weighted sum; its inputs are the losses."""

        def backward(cotangent: Tensor) -> list[Tensor | None]:
            self.strategy.update(step)
            return [
                (cotangent * weight).to(loss.device, loss.dtype).reshape(loss.shape)
                for weight, loss in zip(weights, losses, strict=True)
            ]

        self._applied = (step, weights, weights)
        return backward

    def _aggregate(self, step: Step, losses: list[Tensor], loss_weights: Tensor) -> Backward:
        """Return the backward that aggregates per-task gradients; its inputs are the parameters."""
        partition, aggregation = self.partition, self.strategy.aggregation
        assert partition is not None
        assert aggregation is not None

        def backward(cotangent: Tensor) -> list[Tensor | None]:
            with _full_precision(losses):
                rows = task_gradients(losses, list(partition.parameters.values()), cotangent)
                losses.clear()  # and with them their graphs
                shared = self._widen(partition, rows, step).shared_mask
                shared_rows = [[g for g, s in zip(row, shared, strict=True) if s] for row in rows]
                # The cotangent holds loss scale and accumulation: the strategy sees gradients without it.
                scale = float(cotangent) or 1.0
                if aggregation.reads == "jacobian":
                    balanced, heads = self._direct(shared_rows, partition, step, loss_weights, scale)
                else:
                    weights, heads = self._solve(gramian(shared_rows) / scale**2, step, loss_weights)
                    balanced = iter(combine(shared_rows, weights))
                return [
                    next(balanced) if is_shared else _own_gradient([row[index] for row in rows], heads)
                    for index, is_shared in enumerate(shared)
                ]

        return backward

    def _solve(self, gram: Tensor, step: Step, loss_weights: Tensor) -> tuple[list[float], list[float]]:
        """Return the weights on shared and on task-own gradients, and let the strategies learn."""
        if not gram.isfinite().all():
            return self._overflow(gram.diag().isfinite(), step)
        solved = self.strategy.aggregation_weights(gram, step, loss_weights)
        heads = self.strategy.head_weights(solved, step, loss_weights)
        return self._learn(step, loss_weights, solved * loss_weights.to(solved), heads)

    def _direct(
        self,
        rows: list[list[Tensor | None]],
        partition: Partition,
        step: Step,
        loss_weights: Tensor,
        scale: float,
    ) -> tuple[Iterator[Tensor | None], list[float]]:
        """Return the direction of a strategy that reads the Jacobian, and the weights of the heads."""
        reached = [any(row[index] is not None for row in rows) for index in range(len(rows[0]))]
        names = [name for name, found in zip(partition.shared, reached, strict=True) if found]
        shapes = [
            next((g.shape for g in gradients if g is not None), None) for gradients in zip(*rows, strict=True)
        ]
        present = [[g for g, found in zip(row, reached, strict=True) if found] for row in rows]
        jacobian = Jacobian.from_rows(present, names, scale)
        finite = torch.stack([torch.stack([b.isfinite().all() for b in row.unbind()]) for row in jacobian.blocks])
        if not finite.all():
            ones, heads = self._overflow(finite.all(0), step)
            return iter(combine(rows, ones)), heads
        found = self.strategy.aggregation_direction(jacobian, step, loss_weights)
        head_weights = self.strategy.head_weights(found.weights, step, loss_weights)
        weights = None if found.weights is None else found.weights * loss_weights.to(found.weights)
        _, heads = self._learn(step, loss_weights, weights, head_weights)
        blocks = iter(found.blocks)
        balanced = [None if shape is None else (next(blocks) * scale).reshape(shape) for shape in shapes]
        return iter(balanced), heads

    def _learn(
        self, step: Step, loss_weights: Tensor, weights: Tensor | None, heads: Tensor
    ) -> tuple[list[float], list[float]]:
        """Take note of the weights that are applied, and let the strategies learn from the step."""
        self._applied = (step, weights, heads)
        self.strategy.update(step, loss_weights)
        return [] if weights is None else weights.tolist(), heads.tolist()

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

    def _aggregate_representation(
        self, step: Step, losses: dict[str, Tensor], loss_weights: Tensor, representation: Tensor
    ) -> Backward:
        """Return the backward that aggregates gradients of the representation; its inputs are the parameters.

        Each loss is differentiated down to the representation alone, and the encoder once, from there.
        """
        assert self.partition is not None
        parameters = list(self.partition.parameters.values())
        cut = cut_at(representation, losses, self.partition.parameters)
        graph = [representation]

        def backward(cotangent: Tensor) -> list[Tensor | None]:
            values = list(losses.values())
            losses.clear()
            with _full_precision(values):
                scale = float(cotangent) or 1.0
                inputs = [*graph, *(parameters[place] for place in cut.heads)]
                # The graph of the encoder must outlive the passes through the decoders.
                rows = task_gradients(values, inputs, cotangent, retain_graph=True)
                values.clear()
                pulled = [row[:1] for row in rows]
                weights, heads = self._solve(gramian(pulled) / scale**2, step, loss_weights)
                gradients: list[Tensor | None] = [None] * len(parameters)
                for place, gradient in zip(cut.heads, combine([row[1:] for row in rows], heads), strict=True):
                    gradients[place] = gradient
                combined = combine(pulled, weights)[0]
                if combined is not None:
                    encoder = task_gradients(graph, [parameters[place] for place in cut.encoder], combined)[0]
                    for place, gradient in zip(cut.encoder, encoder, strict=True):
                        gradients[place] = gradient
                graph.clear()
                return gradients

        return backward

    def _widen(self, partition: Partition, rows: list[list[Tensor | None]], step: Step) -> Partition:
        """Take note of parameters that a task reaches for the first time."""
        reach = tuple(
            frozenset(task for task, gradient in zip(step.active, gradients, strict=True) if gradient is not None)
            for gradients in zip(*rows, strict=True)
        )
        if all(new <= old for new, old in zip(reach, partition.reach, strict=True)):
            return partition
        wider = partition.extended(reach)
        if self.partition is partition:
            self.partition = wider
        return wider


def _outcome(result: Losses | tuple[Losses, Tensor]) -> tuple[Losses, Tensor | None]:
    return result if isinstance(result, tuple) else (result, None)


def _check_one_process() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        processes = torch.distributed.get_world_size()
        if processes > 1:
            raise UsageError(
                f"Balancer balances one process so far, and there are {processes}: their weights would differ."
            )


def _own_gradient(gradients: list[Tensor | None], weights: list[float]) -> Tensor | None:
    """Weigh the gradient of a task-own parameter, which at most one task reaches."""
    for gradient, weight in zip(gradients, weights, strict=True):
        if gradient is not None:
            return gradient if weight == 1.0 else gradient * weight
    return None


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
