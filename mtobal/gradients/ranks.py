"""The processes that train one model together, and what they tell each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from mtobal.errors import UsageError
from mtobal.gradients.partition import Partition
from mtobal.gradients.task_gradients import TaskGradients

# Rows are sent in pieces of this many bytes, so that no second copy of all of them is needed.
BUCKET_BYTES = 25 * 2**20


@dataclass(frozen=True)
class Ranks:
    """All processes of the default group; every rank calls each method at the same point of its step.

    What a method returns is the same on all ranks to the last bit.

    Attributes
    ----------
    size : int
        Their number; alone, nothing is sent.
    """

    size: int

    @classmethod
    def now(cls) -> Ranks:
        """Return the processes that train together at this moment."""
        together = dist.is_available() and dist.is_initialized()
        return cls(dist.get_world_size() if together else 1)

    def sum(self, values: Tensor) -> Tensor:
        """Add up a small tensor over all ranks."""
        total = values.to(_device(values), copy=True)
        dist.all_reduce(total)
        # Rings of some backends round in an order that differs from rank to rank.
        dist.broadcast(total, src=0)
        return total.to(values.device)

    def any(self, flag: bool) -> bool:
        """Return whether it holds on some rank."""
        return bool(self.sum(torch.tensor([float(flag)])) > 0) if self.size > 1 else flag

    def check_same(self, partition: Partition) -> None:
        """Make sure that all ranks speak of the same parameters, in the same order.

        Raises
        ------
        UsageError
            They do not, and sums over ranks would mix them up.
        """
        names: list[object] = [None] * self.size
        dist.all_gather_object(names, [(name, tuple(p.shape)) for name, p in partition.parameters.items()])
        if any(other != names[0] for other in names):
            raise UsageError(
                "the ranks found different parameters: all of them must build the same model, and parameters "
                "outside of it must be reached on every rank at the first step."
            )

    def joined(self, partition: Partition) -> Partition:
        """Return the partition in which a task reaches what it reaches on any rank."""
        masks = torch.zeros(len(partition.reach), len(partition.tasks), dtype=torch.int32)
        for place, tasks in enumerate(partition.reach):
            masks[place, list(tasks)] = 1
        total = self.sum(masks)
        return partition.extended([frozenset(row.nonzero().flatten().tolist()) for row in total])

    def average(
        self, gradients: TaskGradients, local: Sequence[int], active: Sequence[int], partition: Partition
    ) -> TaskGradients:
        """Average the rows of the shared parameters over the ranks.

        Parameters
        ----------
        gradients : TaskGradients
            Of the tasks that this rank has losses of.
        local, active : sequence of int
            These tasks, and those that any rank has losses of. A task that is absent here has rows of zeros.
        partition : Partition
            The joined one.

        Returns
        -------
        TaskGradients
            Of all active tasks. Task-own gradients stay those of this rank, for the data-parallel reducer to
            average; one that another rank has and this one lacks is zero.
        """
        own_rows = dict(zip(local, gradients.rows(), strict=True))
        rows: list[dict[int, Tensor]] = []
        shared: list[Tensor] = []
        for task in active:
            found = own_rows.get(task, {})
            row: dict[int, Tensor] = {}
            for place, (parameter, tasks) in enumerate(
                zip(partition.parameters.values(), partition.reach, strict=True)
            ):
                if task in tasks:
                    gradient = found.get(place)
                    row[place] = torch.zeros_like(parameter) if gradient is None else gradient.contiguous()
                    if partition.shared_mask[place]:
                        shared.append(row[place])
            rows.append(row)
        for bucket in _buckets(shared):
            self._average(bucket)
        return TaskGradients.of_rows(partition, rows, gradients.scale)

    def _average(self, tensors: list[Tensor]) -> None:
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.size
        for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view(tensor.shape))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Group neighbours of one dtype and device up to the size of a bucket."""
    bucket: list[Tensor] = []
    filled = 0
    for tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        alike = not bucket or (bucket[0].dtype, bucket[0].device) == (tensor.dtype, tensor.device)
        if bucket and (filled + size > BUCKET_BYTES or not alike):
            yield bucket
            bucket, filled = [], 0
        bucket.append(tensor)
        filled += size
    if bucket:
        yield bucket


def _device(values: Tensor) -> torch.device:
    """Return where the backend can send from."""
    if dist.get_backend() == "nccl" and values.device.type == "cpu":
        return torch.device("cuda", torch.cuda.current_device())
    return values.device
