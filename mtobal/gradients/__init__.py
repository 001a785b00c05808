"""Which parameters are shared, and the engines that give per-task gradients."""

from mtobal.gradients.loop import task_gradients
from mtobal.gradients.partition import Partition, find_partition, reached_leaves
from mtobal.gradients.replay import RNGState, replayed, rng_state

__all__ = ["Partition", "RNGState", "find_partition", "reached_leaves", "replayed", "rng_state", "task_gradients"]
