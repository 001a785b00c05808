"""The exact engines, timed against each other in the first steps of a run."""

from __future__ import annotations

import logging
import os
import statistics
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mtobal.gradients.batched import Batched
from mtobal.gradients.ghost import ghost
from mtobal.gradients.loop import loop
from mtobal.gradients.partition import Partition
from mtobal.gradients.task_gradients import Engine, TaskGradients

ROUNDS = 3
"""How many steps each engine is timed in; the median counts, so that one odd step decides nothing."""

_log = logging.getLogger("mtobal")


class Measured:
    """Give each exact engine a few of the first steps, and all further steps to the fastest.

    The first step of all warms up and counts for nothing. An engine that writes the gradients of all tasks is left
    out where these would take more than the free memory of their device.

    Attributes
    ----------
    choice : str or None
        The engine that was kept; None while they are compared.
    """

    def __init__(self) -> None:
        self.choice: str | None = None
        self._engines: Mapping[str, Engine] = {"ghost": ghost, "loop": loop, "batched": Batched()}
        self._seconds: dict[str, list[float]] | None = None  # None before the first step has warmed up
        self._running: str | None = None
        self._device = torch.device("cpu")

    def __call__(
        self, losses: list[Tensor], active: Sequence[int], partition: Partition, cotangent: Tensor
    ) -> TaskGradients:
        if self.choice is not None or not losses:
            return self._engines[self.choice or "ghost"](losses, active, partition, cotangent)
        self._device = losses[0].device
        if self._seconds is None:
            self._running = "ghost"
        else:
            if not self._seconds:
                names = list(self._engines) if _fits(partition, len(losses), self._device) else ["ghost"]
                self._seconds = {name: [] for name in names}
            self._running = min(self._seconds, key=lambda name: len(self._seconds[name]))  # type: ignore[index]
        self._start = _now(self._device)
        return self._engines[self._running](losses, active, partition, cotangent)

    def finished(self) -> None:
        """Stop the clock: what the engine has begun in this step has come to its end."""
        if self._running is None:
            return
        name, self._running = self._running, None
        if self._seconds is None:
            self._seconds = {}
            return
        self._seconds[name].append(_now(self._device) - self._start)
        if all(len(times) == ROUNDS for times in self._seconds.values()):
            self._choose({each: statistics.median(times) for each, times in self._seconds.items()})

    def _choose(self, seconds: Mapping[str, float]) -> None:
        self.choice = min(seconds, key=lambda name: seconds[name])
        measured = ", ".join(f"{name} {1000 * each:.3g} ms" for name, each in seconds.items())
        left_out = "" if len(seconds) > 1 else "; the gradients of all tasks would not fit in memory"
        _log.info("gradients=measured: %s, the fastest of %s%s", self.choice, measured, left_out)


def _fits(partition: Partition, num_tasks: int, device: torch.device) -> bool:
    """Return whether there is room for the gradients of all tasks."""
    needed = num_tasks * sum(parameter.nbytes for parameter in partition.shared.values())
    return needed < _free_memory(device)


def _free_memory(device: torch.device) -> float:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return float("inf")  # a system that does not tell


def _now(device: torch.device) -> float:
    """Return the clock, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
