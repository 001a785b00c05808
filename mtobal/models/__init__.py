"""Models by name: shared encoders, task decoders, and the architectures that join them."""

from mtobal.models.deeplab import DeepLab
from mtobal.models.encoders import ConvEncoder
from mtobal.models.hard_sharing import HardSharing
from mtobal.models.mtan import MTANSegNet
from mtobal.models.registry import available, build, lookup
from mtobal.models.resnet import ResNet
from mtobal.models.segnet import SegNet

__all__ = [
    "ConvEncoder",
    "DeepLab",
    "HardSharing",
    "MTANSegNet",
    "ResNet",
    "SegNet",
    "available",
    "build",
    "lookup",
]
