"""Which parameters are shared, and the engines that give per-task gradients."""

from mtobal.gradients.loop import task_gradients
from mtobal.gradients.node import Backward, attach_backward
from mtobal.gradients.partition import Partition, Shared, declared_shared, find_partition, reached_leaves
from mtobal.gradients.replay import RNGState, replayed, rng_state
from mtobal.gradients.representation import Cut, cut_at

__all__ = [
    "Backward",
    "Cut",
    "Partition",
    "RNGState",
    "Shared",
    "attach_backward",
    "cut_at",
    "declared_shared",
    "find_partition",
    "reached_leaves",
    "replayed",
    "rng_state",
    "task_gradients",
]
