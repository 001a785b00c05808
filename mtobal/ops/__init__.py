"""Operations on per-task gradients, on any device."""

from mtobal.ops.combine import combine
from mtobal.ops.gramian import gramian
from mtobal.ops.jacobian import Jacobian
from mtobal.ops.norms import row_norms
from mtobal.ops.sign_drop import random_sign_drop, sign_drop
from mtobal.ops.trimmed_mean import trimmed_mean

__all__ = ["Jacobian", "combine", "gramian", "random_sign_drop", "row_norms", "sign_drop", "trimmed_mean"]
