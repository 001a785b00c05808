"""Per-task gradients from one backward pass a task."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mtobal.gradients.decoders import run_decoders
from mtobal.gradients.partition import Partition
from mtobal.gradients.task_gradients import TaskGradients


def loop(losses: list[Tensor], active: Sequence[int], partition: Partition, cotangent: Tensor) -> TaskGradients:
    """Differentiate one loss after the other, and keep the gradients as autograd gives them.

    See `run_decoders` for the parameters.
    """
    decoded = run_decoders(losses, active, partition, cotangent)
    parameters = [decoded.parameters[place] for place in decoded.trunk]
    decoded.descend(parameters, lambda task, found: decoded.add(task, decoded.trunk, found))
    return decoded.finish()
