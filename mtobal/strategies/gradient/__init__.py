"""Strategies that aggregate the gradients of the tasks."""

from mtobal.strategies.gradient.aligned_mtl import AlignedMTL
from mtobal.strategies.gradient.aligned_mtl_ub import AlignedMTLUB
from mtobal.strategies.gradient.cagrad import CAGrad
from mtobal.strategies.gradient.config import ConFIG
from mtobal.strategies.gradient.cr_mogm import CRMOGM
from mtobal.strategies.gradient.db_mtl import DBMTL
from mtobal.strategies.gradient.dualproj import DualProj
from mtobal.strategies.gradient.epo import EPO
from mtobal.strategies.gradient.excess_mtl import ExcessMTL
from mtobal.strategies.gradient.fairgrad import FairGrad
from mtobal.strategies.gradient.graddrop import GradDrop
from mtobal.strategies.gradient.gradient_influence import GradientInfluence
from mtobal.strategies.gradient.gradnorm import GradNorm
from mtobal.strategies.gradient.gradvac import GradVac
from mtobal.strategies.gradient.imtl import IMTL
from mtobal.strategies.gradient.imtl_g import IMTLG
from mtobal.strategies.gradient.krum import Krum
from mtobal.strategies.gradient.mgda import MGDA
from mtobal.strategies.gradient.mgda_ub import MGDAUB
from mtobal.strategies.gradient.moco import MoCo
from mtobal.strategies.gradient.modo import MoDo
from mtobal.strategies.gradient.nash_mtl import NashMTL
from mtobal.strategies.gradient.pareto_mtl import ParetoMTL
from mtobal.strategies.gradient.pcgrad import PCGrad
from mtobal.strategies.gradient.sdmgrad import SDMGrad
from mtobal.strategies.gradient.trimmed_mean import TrimmedMean
from mtobal.strategies.gradient.upgrad import UPGrad

__all__ = [
    "CRMOGM",
    "DBMTL",
    "EPO",
    "IMTL",
    "IMTLG",
    "MGDA",
    "MGDAUB",
    "AlignedMTL",
    "AlignedMTLUB",
    "CAGrad",
    "ConFIG",
    "DualProj",
    "ExcessMTL",
    "FairGrad",
    "GradDrop",
    "GradNorm",
    "GradVac",
    "GradientInfluence",
    "Krum",
    "MoCo",
    "MoDo",
    "NashMTL",
    "PCGrad",
    "ParetoMTL",
    "SDMGrad",
    "TrimmedMean",
    "UPGrad",
]
