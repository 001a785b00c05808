"""Which parameters are shared, and the engines that give per-task gradients."""

from mtobal.gradients.loop import task_gradients
from mtobal.gradients.partition import Partition, find_partition, reached_leaves

__all__ = ["Partition", "find_partition", "reached_leaves", "task_gradients"]
