"""Models by name: shared encoders, task decoders, and the architectures that join them."""

from mtobal.models.cgc import CGC
from mtobal.models.cross_stitch import CrossStitch
from mtobal.models.deeplab import DeepLab
from mtobal.models.dselect_k import DSelectK
from mtobal.models.dtrn import DTRN
from mtobal.models.encoders import ConvEncoder, MLPEncoder
from mtobal.models.hard_sharing import HardSharing
from mtobal.models.home import HoME
from mtobal.models.ltb import LearningToBranch
from mtobal.models.mmoe import MMoE
from mtobal.models.mtan import MTANSegNet
from mtobal.models.mtan_resnet import MTANResNet
from mtobal.models.nddr import NDDR
from mtobal.models.ple import PLE
from mtobal.models.registry import available, build, lookup, register
from mtobal.models.resnet import ResNet
from mtobal.models.segnet import SegNet
from mtobal.models.slimmable import Slimmable
from mtobal.models.tat_network import TATNetwork
from mtobal.models.vit import ViT

__all__ = [
    "CGC",
    "DTRN",
    "NDDR",
    "PLE",
    "ConvEncoder",
    "CrossStitch",
    "DSelectK",
    "DeepLab",
    "HardSharing",
    "HoME",
    "LearningToBranch",
    "MLPEncoder",
    "MMoE",
    "MTANResNet",
    "MTANSegNet",
    "ResNet",
    "SegNet",
    "Slimmable",
    "TATNetwork",
    "ViT",
    "available",
    "build",
    "lookup",
    "register",
]
