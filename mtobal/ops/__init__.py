"""Operations on per-task gradients, on any device."""

from mtobal.ops.combine import combine
from mtobal.ops.gramian import gramian

__all__ = ["combine", "gramian"]
