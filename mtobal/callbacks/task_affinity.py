"""Lookahead affinity between tasks, and which of them to train together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor

from mtobal.callbacks.balanced_step import BalancedStep, check_output, muted
from mtobal.callbacks.beside import check_interval, loss_scale, shared_gradients
from mtobal.callbacks.multi_task_balancer import MOST_TASKS_IN_PAIRS
from mtobal.errors import UsageError
from mtobal.gradients import Partition, Ranks, displaced, find_partition, keep_buffers, replayed, rng_state

MOST_TASKS_TO_GROUP = 12
"""The exact search tries 3^(K-1) splits a network: with 12 tasks, a second or so."""


class TaskAffinity(pl.Callback):
    """Measure how much a step for one task helps the others.

    The affinity of task i on task j is ``1 - L_j(after) / L_j(before)``, where *after* is one step of plain
    gradient descent on the shared parameters along the gradient of i alone, on the same batch. It is positive
    where i helps j, and averaged over the steps at which it was measured. The method is that of Fifty et al.,
    "Efficiently Identifying Task Groupings for Multi-Task Learning", NeurIPS 2021.

    Every so many steps it runs ``training_step``, which returns its losses as for `MultiTaskBalancer`, K + 1 times
    more, and differentiates each loss once. All runs draw the same random numbers and log nothing; parameters,
    buffers and random generators are put back bit by bit. What else ``training_step`` does, such as updating a
    metric, happens in each run. The balancer may be there or not. Of accumulated batches the first is measured. On
    several devices, gradients and losses are averaged over the ranks.

    Parameters
    ----------
    every_n_steps : int
        How many steps of the optimizer lie between two measurements.
    lr : float, optional
        Length of the step, in units of the gradient. By default the learning rate that the optimizer has for each
        parameter at that moment.
    log : bool
        Whether the averages so far go to the logger as ``mtl/affinity/<i>/<j>``, for up to ten tasks.

    Attributes
    ----------
    tasks : list of str
        The tasks that have had a loss, in their order.

    Examples
    --------
    >>> import lightning.pytorch as pl
    >>> from mtobal.callbacks import TaskAffinity
    >>> affinity = TaskAffinity(every_n_steps=50)
    >>> trainer = pl.Trainer(callbacks=[affinity], logger=False, barebones=True)

    After the fit, ``affinity.matrix()`` holds the averages, and ``affinity.groups(2)`` says which tasks to train
    together, with two networks.
    """

    def __init__(self, every_n_steps: int = 100, *, lr: float | None = None, log: bool = True) -> None:
        self.every_n_steps = check_interval(every_n_steps)
        self.lr = lr
        self._logs = log  # Lightning gives callbacks a method named log
        self.tasks: list[str] = []
        self._sums = torch.zeros(0, 0, dtype=torch.float64)
        self._counts = torch.zeros(0, 0, dtype=torch.float64)
        self._last: int | None = None

    def matrix(self) -> Tensor:
        """Return the mean affinity of each task (row) on each task (column), NaN for a pair never measured."""
        return torch.where(self._counts > 0, self._sums / self._counts, torch.nan)

    def groups(self, networks: int) -> list[list[str]]:
        """Split the tasks over at most so many networks, such that they help each other most.

        A task gains the mean affinity on it of the others in its network, and nothing when it is alone; the split
        with the largest total gain is found exactly, for up to 12 tasks.

        Raises
        ------
        UsageError
            Too many tasks, or two that have never been measured in one batch.
        """
        if networks < 1:
            raise UsageError(f"groups: expected at least one network, not {networks}.")
        if not self.tasks:
            raise UsageError("groups: nothing has been measured yet: fit with this callback first.")
        if len(self.tasks) > MOST_TASKS_TO_GROUP:
            raise UsageError(
                f"groups: the exact search takes up to {MOST_TASKS_TO_GROUP} tasks, not {len(self.tasks)}: "
                "cluster matrix() in another way."
            )
        affinity = self.matrix()
        for i, j in affinity.isnan().nonzero().tolist():
            raise UsageError(
                f"groups: tasks {self.tasks[i]!r} and {self.tasks[j]!r} have never been measured in one batch."
            )
        return [[self.tasks[task] for task in group] for group in _best_split(affinity, networks)]

    # ------------------------------------------------------------------ hooks

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if not pl_module.automatic_optimization:
            raise UsageError(
                "TaskAffinity runs training_step again and works with automatic optimization: in manual "
                "optimization that would step the optimizers."
            )
        keep_buffers()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step % self.every_n_steps or step == self._last:
            return
        self._last = step
        training_step = pl_module.training_step
        if isinstance(training_step, BalancedStep):
            training_step = training_step.original
        indexed = is_param_in_hook_signature(training_step, "batch_idx", min_args=2)
        arguments = (batch, batch_idx) if indexed else (batch,)

        def run() -> Mapping[str, Tensor | None]:
            with trainer.precision_plugin.train_step_context(), muted(pl_module):
                output = training_step(*arguments)
            return {} if output is None else check_output(output)["losses"]

        self._measure(trainer, pl_module, run)
        if self._logs and trainer.log_every_n_steps and len(self.tasks) <= MOST_TASKS_IN_PAIRS:  # type: ignore[attr-defined]
            self._log(pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"tasks": list(self.tasks), "sums": self._sums, "counts": self._counts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.tasks = list(state_dict["tasks"])
        self._sums, self._counts = state_dict["sums"].clone(), state_dict["counts"].clone()

    # ------------------------------------------------------------------ inside

    def _measure(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        run: Callable[[], Mapping[str, Tensor | None]],
    ) -> None:
        """Run the batch here, and after a step for each of its tasks."""
        rng, ranks = rng_state(), Ranks.now()
        with replayed(pl_module, rng):
            found = run()
            losses = {task: loss for task, loss in found.items() if loss is not None and loss.requires_grad}
            tasks = _of_all_ranks(list(losses), ranks)
            if not tasks:
                return
            partition = find_partition([losses.get(task) for task in tasks], tasks, pl_module)
            if ranks.size > 1:
                partition = ranks.joined(partition)
            _, rows = shared_gradients(losses, partition, loss_scale(trainer))
        before = _means({task: loss.detach() for task, loss in losses.items()}, tasks, ranks)
        lrs = self._learning_rates(trainer, partition)
        affinity = torch.full((len(tasks), len(tasks)), torch.nan, dtype=torch.float64)
        for task in range(len(tasks)):
            row, rows[task] = rows[task], {}
            way = ((place, -lrs[place] * gradient) for place, gradient in row.items())
            with torch.no_grad(), displaced(list(partition.parameters.values()), way), replayed(pl_module, rng):
                after = _means({name: loss for name, loss in run().items() if name in losses}, tasks, ranks)
            affinity[task] = 1.0 - after / before
        self._add(tasks, affinity)

    def _learning_rates(self, trainer: pl.Trainer, partition: Partition) -> list[float]:
        """Return the length of the step for each parameter; one that no optimizer has stays where it is."""
        if self.lr is not None:
            return [self.lr] * len(partition.parameters)
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        known = {id(parameter): float(group["lr"]) for group in groups for parameter in group["params"]}
        return [known.get(id(parameter), 0.0) for parameter in partition.parameters.values()]

    def _add(self, tasks: list[str], affinity: Tensor) -> None:
        """Count what is finite of a measurement."""
        fresh = [task for task in tasks if task not in self.tasks]
        if fresh:
            self.tasks += fresh
            margin = (0, len(fresh), 0, len(fresh))
            self._sums, self._counts = (torch.nn.functional.pad(t, margin) for t in (self._sums, self._counts))
        index = torch.tensor([self.tasks.index(task) for task in tasks])
        finite = affinity.isfinite()
        self._sums[index[:, None], index] += torch.where(finite, affinity, 0.0)
        self._counts[index[:, None], index] += finite.double()

    def _log(self, pl_module: pl.LightningModule) -> None:
        values = {
            f"mtl/affinity/{task}/{other}": value
            for task, row in zip(self.tasks, self.matrix().tolist(), strict=True)
            for other, value in zip(self.tasks, row, strict=True)
            if task != other and value == value  # not NaN
        }
        pl_module.log_dict(values, batch_size=1)


def _of_all_ranks(tasks: list[str], ranks: Ranks) -> list[str]:
    """Return the tasks that any rank has a loss of."""
    if ranks.size == 1:
        return tasks
    names: list[list[str]] = [[] for _ in range(ranks.size)]
    dist.all_gather_object(names, tasks)
    return list(dict.fromkeys(task for part in names for task in part))


def _means(losses: Mapping[str, Tensor | None], tasks: list[str], ranks: Ranks) -> Tensor:
    """Return the loss of each task, averaged over the ranks that have one; NaN where none has."""
    table = torch.zeros(2, len(tasks), dtype=torch.float64)  # how many ranks, sum
    for task, loss in losses.items():
        if loss is not None:
            table[:, tasks.index(task)] = torch.tensor([1.0, float(loss)], dtype=torch.float64)
    if ranks.size > 1:
        table = ranks.sum(table)
    return table[1] / table[0]


def _best_split(affinity: Tensor, networks: int) -> list[list[int]]:
    """Return the split into at most so many groups with the largest total gain.

    Groups are bit masks; the best split of a set takes one group that holds its first task from the best split of
    the rest into one group fewer.
    """
    size = len(affinity)
    gains = [_gain(affinity, _members(mask)) for mask in range(1 << size)]
    best = list(gains)
    parts = [[mask] if mask else [] for mask in range(1 << size)]
    for _ in range(min(networks, size) - 1):
        wider, splits = list(best), list(parts)
        for mask in range(1, 1 << size):
            first = mask & -mask
            rest = others = mask ^ first
            while others:
                others = (others - 1) & rest  # every set that leaves something over
                group = first | others
                gain = gains[group] + best[mask ^ group]
                if gain > wider[mask]:
                    wider[mask], splits[mask] = gain, [group, *parts[mask ^ group]]
        best, parts = wider, splits
    return [_members(mask) for mask in parts[-1]]


def _gain(affinity: Tensor, members: list[int]) -> float:
    if len(members) < 2:
        return 0.0
    within = affinity[members][:, members]
    return float(within.sum() - within.trace()) / (len(members) - 1)


def _members(mask: int) -> list[int]:
    return [task for task in range(mask.bit_length()) if mask >> task & 1]
