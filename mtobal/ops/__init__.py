"""Operations on per-task gradients, on any device."""

from mtobal.ops.combine import combine
from mtobal.ops.gramian import gramian
from mtobal.ops.jacobian import Jacobian

__all__ = ["Jacobian", "combine", "gramian"]
