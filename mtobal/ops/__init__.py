"""Operations on per-task gradients, on any device."""

from mtobal.ops.combine import combine
from mtobal.ops.cosines import pairwise_cosines
from mtobal.ops.gramian import gramian
from mtobal.ops.jacobian import Jacobian
from mtobal.ops.norms import row_norms
from mtobal.ops.sign_drop import random_sign_drop, random_sign_drop_of_blocks, sign_drop
from mtobal.ops.trimmed_mean import trimmed_mean, trimmed_mean_of_blocks

__all__ = [
    "Jacobian",
    "combine",
    "gramian",
    "pairwise_cosines",
    "random_sign_drop",
    "random_sign_drop_of_blocks",
    "row_norms",
    "sign_drop",
    "trimmed_mean",
    "trimmed_mean_of_blocks",
]
