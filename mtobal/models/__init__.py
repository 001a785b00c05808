"""Models by name: shared encoders, task decoders, and the architectures that join them."""

from mtobal.models.encoders import ConvEncoder
from mtobal.models.hard_sharing import HardSharing
from mtobal.models.registry import available, build, lookup

__all__ = ["ConvEncoder", "HardSharing", "available", "build", "lookup"]
