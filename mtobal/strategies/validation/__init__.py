"""Strategies whose weights come from validations."""

from mtobal.strategies.validation.coba import CoBa
from mtobal.strategies.validation.hypervolume import Hypervolume
from mtobal.strategies.validation.visatb import VisATB
from mtobal.strategies.validation.visatb_online import VisATBOnline

__all__ = ["CoBa", "Hypervolume", "VisATB", "VisATBOnline"]
