"""Strategies that weigh the losses."""

from mtobal.strategies.loss.auto_lambda import AutoLambda
from mtobal.strategies.loss.cosmos import COSMOS
from mtobal.strategies.loss.dwa import DWA
from mtobal.strategies.loss.ebb import EntropyBalancedTemperature, balanced_temperatures, distillation_loss
from mtobal.strategies.loss.ew import EW
from mtobal.strategies.loss.famo import FAMO
from mtobal.strategies.loss.forum import FORUM
from mtobal.strategies.loss.gls import GLS
from mtobal.strategies.loss.go4align import GO4Align
from mtobal.strategies.loss.igb_v1 import IGBv1
from mtobal.strategies.loss.igb_v2 import IGBv2
from mtobal.strategies.loss.imtl_l import IMTLL
from mtobal.strategies.loss.ldc_mtl import LDCMTL
from mtobal.strategies.loss.loss_reweight import LossReweight, SampleReweighting
from mtobal.strategies.loss.moml import MOML
from mtobal.strategies.loss.nlb import NLB
from mtobal.strategies.loss.pbi import PBI
from mtobal.strategies.loss.rlw import RLW
from mtobal.strategies.loss.si import SI
from mtobal.strategies.loss.static import Static
from mtobal.strategies.loss.stch import STCH
from mtobal.strategies.loss.tat import TAT, SampleUncertainty, restoration_losses
from mtobal.strategies.loss.unreduced import join_losses, task_losses
from mtobal.strategies.loss.uw import UW

__all__ = [
    "COSMOS",
    "DWA",
    "EW",
    "FAMO",
    "FORUM",
    "GLS",
    "IMTLL",
    "LDCMTL",
    "MOML",
    "NLB",
    "PBI",
    "RLW",
    "SI",
    "STCH",
    "TAT",
    "UW",
    "AutoLambda",
    "EntropyBalancedTemperature",
    "GO4Align",
    "IGBv1",
    "IGBv2",
    "LossReweight",
    "SampleReweighting",
    "SampleUncertainty",
    "Static",
    "balanced_temperatures",
    "distillation_loss",
    "join_losses",
    "restoration_losses",
    "task_losses",
]
