"""Which tasks fight, in which layers, over time."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from mtobal.balancer import Balancer
from mtobal.callbacks.beside import check_interval, find_balancer, loss_scale, shared_gradients
from mtobal.callbacks.multi_task_balancer import MOST_TASKS_IN_PAIRS
from mtobal.errors import UsageError
from mtobal.gradients import Partition, keep_buffers
from mtobal.ops import gramian, pairwise_cosines

MOST_OBSERVATIONS = 1000
"""Above this number, every second observation is let go, so that neither memory nor checkpoints grow for ever."""


class ConflictMonitor(pl.Callback):
    """Observe the cosines between the gradients of the tasks, layer by layer.

    It works beside `MultiTaskBalancer`, whatever its strategy, and changes nothing in the training. Every so many
    steps it differentiates each loss by the shared parameters, which costs one backward pass and the memory of
    one gradient a task. Of accumulated batches it looks at the first. On several devices, gradients are averaged
    over the ranks before their cosines are taken.

    Parameters
    ----------
    every_n_steps : int
        How many steps of the optimizer lie between two observations.
    depth : int
        How many components of a parameter's name make its layer: with 3, ``net.encoder.layer1.0.conv1.weight``
        belongs to ``net.encoder.layer1``.
    log : bool
        Whether ``mtl/layer/<layer>/conflict_rate``, the share of the pairs of tasks whose gradients point against
        each other, and ``mtl/layer/<layer>/cosine/<task>/<task>`` go to the logger, the latter for up to ten
        tasks.

    Attributes
    ----------
    tasks : tuple of str
        The tasks in their order; empty before the first observation.
    steps : list of int
        The steps of the observations that are kept, at most a thousand: whenever they would be more, every second
        one is let go, and from then on only every second one is kept.

    Examples
    --------
    >>> import lightning.pytorch as pl
    >>> from mtobal.callbacks import ConflictMonitor, MultiTaskBalancer
    >>> monitor = ConflictMonitor(every_n_steps=50, depth=2)
    >>> trainer = pl.Trainer(callbacks=[MultiTaskBalancer("uw"), monitor], logger=False, barebones=True)
    """

    def __init__(self, every_n_steps: int = 100, *, depth: int = 3, log: bool = True) -> None:
        if depth < 1:
            raise UsageError(f"depth must be at least 1, not {depth}.")
        self.every_n_steps = check_interval(every_n_steps)
        self.depth = depth
        self._logs = log  # Lightning gives callbacks a method named log
        self.tasks: tuple[str, ...] = ()
        self.steps: list[int] = []
        self._cosines: list[dict[str, Tensor]] = []  # by layer, of shape (K (K - 1) / 2,)
        self._interval = self.every_n_steps  # between observations that are kept
        self._trainer: pl.Trainer | None = None
        self._balancer: Balancer | None = None
        self._last: int | None = None

    # ------------------------------------------------------------------ what was observed

    def records(self) -> list[dict[str, Any]]:
        """Return one record a step, layer and pair of tasks.

        Returns
        -------
        list of dict
            With the keys step, layer, task, other and cosine. A pair without a cosine, because a gradient was zero
            or missing, has no record.
        """
        pairs = self._pairs()
        return [
            {"step": step, "layer": layer, "task": task, "other": other, "cosine": cosine}
            for step, cosines in zip(self.steps, self._cosines, strict=True)
            for layer, values in cosines.items()
            for (task, other), cosine in zip(pairs, values.tolist(), strict=True)
            if cosine == cosine  # not NaN
        ]

    def heat_map(self, pair: tuple[str, str] | None = None) -> tuple[list[str], list[int], Tensor]:
        """Return a table of layers and steps.

        Parameters
        ----------
        pair : tuple of two str, optional
            Two tasks, for their cosines. By default, the share of all pairs whose cosine is negative.

        Returns
        -------
        layers : list of str
            The rows.
        steps : list of int
            The columns.
        values : Tensor
            NaN where nothing was observed.
        """
        pairs = [frozenset(known) for known in self._pairs()]
        if pair is not None and frozenset(pair) not in pairs:
            raise UsageError(f"heat_map: expected two of the tasks {', '.join(self.tasks)}, not {pair!r}.")
        place = None if pair is None else pairs.index(frozenset(pair))
        layers = list(dict.fromkeys(layer for cosines in self._cosines for layer in cosines))
        values = torch.full((len(layers), len(self.steps)), torch.nan)
        for column, cosines in enumerate(self._cosines):
            for layer, found in cosines.items():
                values[layers.index(layer), column] = _conflict_rate(found) if place is None else found[place]
        return layers, list(self.steps), values

    # ------------------------------------------------------------------ hooks

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            find_balancer(trainer, self)
            keep_buffers()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._trainer, self._balancer, self._last = trainer, find_balancer(trainer, self).balancer, None
        assert self._balancer is not None
        self._balancer.observers.append(self._observe)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._leave()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        # Lightning skips teardown after an exception.
        self._leave()

    def state_dict(self) -> dict[str, Any]:
        return {
            "tasks": list(self.tasks),
            "steps": list(self.steps),
            "cosines": list(self._cosines),
            "interval": self._interval,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.tasks, self.steps = tuple(state_dict["tasks"]), list(state_dict["steps"])
        self._cosines, self._interval = list(state_dict["cosines"]), state_dict["interval"]

    # ------------------------------------------------------------------ inside

    def _observe(self, losses: Mapping[str, Tensor], partition: Partition) -> None:
        assert self._trainer is not None
        step = self._trainer.global_step
        if step % self.every_n_steps or step == self._last:
            return
        self._last = step
        if self.tasks and self.tasks != partition.tasks:
            raise UsageError(
                f"ConflictMonitor has observed tasks {', '.join(self.tasks)}, and now meets "
                f"{', '.join(partition.tasks)}: use a new one for another problem."
            )
        self.tasks = partition.tasks
        cosines = self._by_layer(losses, partition, loss_scale(self._trainer))
        self._keep(step, cosines)
        if self._logs and self._trainer.log_every_n_steps:  # type: ignore[attr-defined]
            self._trainer.lightning_module.log_dict(self._summary(cosines), batch_size=1)

    def _keep(self, step: int, cosines: dict[str, Tensor]) -> None:
        if len(self.steps) == MOST_OBSERVATIONS:
            self._interval *= 2
            kept = [place for place, known in enumerate(self.steps) if known % self._interval == 0]
            self.steps, self._cosines = [self.steps[p] for p in kept], [self._cosines[p] for p in kept]
        if step % self._interval == 0:
            self.steps.append(step)
            self._cosines.append(cosines)

    def _by_layer(self, losses: Mapping[str, Tensor], partition: Partition, scale: float) -> dict[str, Tensor]:
        active, rows = shared_gradients(losses, partition, scale)
        layers: dict[str, list[int]] = {}
        for place, (name, is_shared) in enumerate(zip(partition.parameters, partition.shared_mask, strict=True)):
            if is_shared:
                layers.setdefault(self._layer(name), []).append(place)
        size = len(partition.tasks)
        found = {}
        for layer, places in layers.items():
            table = torch.full((size, size), torch.nan, dtype=torch.float64)
            index = torch.tensor(active)
            products = gramian([[row.get(place) for place in places] for row in rows])
            table[index[:, None], index] = pairwise_cosines(products)
            upper = torch.triu_indices(size, size, 1)
            found[layer] = table[upper[0], upper[1]].float()
        return found

    def _layer(self, name: str) -> str:
        module = name.split(".")[:-1]
        return ".".join(module[: self.depth]) or name

    def _summary(self, cosines: Mapping[str, Tensor]) -> dict[str, float]:
        values: dict[str, float] = {}
        for layer, found in cosines.items():
            values[f"mtl/layer/{layer}/conflict_rate"] = _conflict_rate(found)
            if len(self.tasks) <= MOST_TASKS_IN_PAIRS:
                for (task, other), cosine in zip(self._pairs(), found.tolist(), strict=True):
                    values[f"mtl/layer/{layer}/cosine/{task}/{other}"] = cosine
        return {name: value for name, value in values.items() if value == value}  # not NaN

    def _pairs(self) -> list[tuple[str, str]]:
        return list(itertools.combinations(self.tasks, 2))

    def _leave(self) -> None:
        if self._balancer is not None and self._observe in self._balancer.observers:
            self._balancer.observers.remove(self._observe)
        self._trainer = self._balancer = None


def _conflict_rate(cosines: Tensor) -> float:
    """Return the share of the pairs with a negative cosine among those that have one."""
    known = cosines[~cosines.isnan()]
    return float((known < 0).float().mean())
