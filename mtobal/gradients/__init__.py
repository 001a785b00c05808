"""Which parameters are shared, and the engines that give per-task gradients."""

from mtobal.gradients.accumulated import Accumulated
from mtobal.gradients.batched import Batched
from mtobal.gradients.compiled import keep_buffers
from mtobal.gradients.decoders import Decoded, run_decoders
from mtobal.gradients.ghost import ghost
from mtobal.gradients.graph import differentiate
from mtobal.gradients.lookahead import LookAhead, NotFiniteAhead, inner_products, weighted_sum
from mtobal.gradients.loop import loop
from mtobal.gradients.node import Backward, attach_backward, when_backward_ends
from mtobal.gradients.partition import Partition, Shared, declared_shared, find_partition, reached_leaves
from mtobal.gradients.perturbation import Landscape, Point, Row, displaced, split, stacked
from mtobal.gradients.ranks import Ranks
from mtobal.gradients.replay import RNGState, replayed, rng_state
from mtobal.gradients.representation import Cut, RepresentationGradients, cut_at
from mtobal.gradients.scheme import Scheme
from mtobal.gradients.task_gradients import TaskGradients

__all__ = [
    "Accumulated",
    "Backward",
    "Batched",
    "Cut",
    "Decoded",
    "Landscape",
    "LookAhead",
    "NotFiniteAhead",
    "Partition",
    "Point",
    "RNGState",
    "Ranks",
    "RepresentationGradients",
    "Row",
    "Scheme",
    "Shared",
    "TaskGradients",
    "attach_backward",
    "cut_at",
    "declared_shared",
    "differentiate",
    "displaced",
    "find_partition",
    "ghost",
    "inner_products",
    "keep_buffers",
    "loop",
    "reached_leaves",
    "replayed",
    "rng_state",
    "run_decoders",
    "split",
    "stacked",
    "weighted_sum",
    "when_backward_ends",
]
