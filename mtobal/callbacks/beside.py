"""What callbacks that work beside the balancer need."""

from __future__ import annotations

from collections.abc import Mapping

import lightning.pytorch as pl
import torch
from torch import Tensor

from mtobal.callbacks.multi_task_balancer import MultiTaskBalancer
from mtobal.errors import UsageError
from mtobal.gradients import Partition, Ranks, Row, TaskGradients
from mtobal.gradients.graph import differentiate


def find_balancer(trainer: pl.Trainer, callback: pl.Callback) -> MultiTaskBalancer:
    """Return the balancer among the callbacks of the trainer, for another one that needs it."""
    found = [other for other in trainer.callbacks if isinstance(other, MultiTaskBalancer)]  # type: ignore[attr-defined]
    if not found:
        raise UsageError(
            f"{type(callback).__name__} works beside MultiTaskBalancer, which is not among the trainer's "
            "callbacks: add it, with 'ew' for the plain sum of the losses."
        )
    return found[0]


def check_interval(every_n_steps: int) -> int:
    """Return a number of steps if it is one."""
    if every_n_steps < 1:
        raise UsageError(f"every_n_steps must be at least 1, not {every_n_steps}.")
    return every_n_steps


def loss_scale(trainer: pl.Trainer) -> float:
    """Return the factor by which the trainer keeps small gradients out of the underflow of half precision."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return 1.0 if scaler is None else float(scaler.get_scale())


def shared_gradients(
    losses: Mapping[str, Tensor], partition: Partition, scale: float
) -> tuple[list[int], list[Row]]:
    """Differentiate each loss by the shared parameters, one backward pass a task; the graph survives.

    Parameters
    ----------
    losses : mapping from task to scalar tensor with graph
        Those that this rank has.
    partition : Partition
        Of all ranks.
    scale : float
        Factor on the losses during these passes.

    Returns
    -------
    active : list of int
        The tasks that any rank has a loss of.
    rows : list of mappings from int to Tensor
        Their gradients, averaged over the ranks, by the place of the parameter; what is missing is zero.
    """
    shared = [place for place, is_shared in enumerate(partition.shared_mask) if is_shared]
    everything = list(partition.parameters.values())
    parameters = [everything[place] for place in shared]
    local = [partition.tasks.index(task) for task in losses]
    rows: list[Row] = []
    for loss in losses.values():
        found = differentiate([loss], [torch.full_like(loss, scale)], parameters, retain_graph=True)
        pairs = zip(shared, found, strict=True)
        rows.append({place: gradient / scale for place, gradient in pairs if gradient is not None})
    ranks = Ranks.now()
    if ranks.size == 1:
        return local, rows
    present = torch.zeros(len(partition.tasks))
    present[local] = 1.0
    active = ranks.sum(present).nonzero().flatten().tolist()
    averaged = ranks.average(TaskGradients.of_rows(partition, rows, 1.0), local, active, partition)
    return active, [{place: row[place] for place in shared if place in row} for row in averaged.rows()]
