"""Strategies that weigh the losses."""

from mtobal.strategies.loss.cosmos import COSMOS
from mtobal.strategies.loss.dwa import DWA
from mtobal.strategies.loss.ew import EW
from mtobal.strategies.loss.famo import FAMO
from mtobal.strategies.loss.gls import GLS
from mtobal.strategies.loss.go4align import GO4Align
from mtobal.strategies.loss.igb_v1 import IGBv1
from mtobal.strategies.loss.igb_v2 import IGBv2
from mtobal.strategies.loss.imtl_l import IMTLL
from mtobal.strategies.loss.ldc_mtl import LDCMTL
from mtobal.strategies.loss.pbi import PBI
from mtobal.strategies.loss.rlw import RLW
from mtobal.strategies.loss.si import SI
from mtobal.strategies.loss.static import Static
from mtobal.strategies.loss.stch import STCH
from mtobal.strategies.loss.uw import UW

__all__ = [
    "COSMOS",
    "DWA",
    "EW",
    "FAMO",
    "GLS",
    "IMTLL",
    "LDCMTL",
    "PBI",
    "RLW",
    "SI",
    "STCH",
    "UW",
    "GO4Align",
    "IGBv1",
    "IGBv2",
    "Static",
]
