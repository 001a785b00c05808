"""Exact solutions of the K x K problems behind the strategies, in float64."""

from mtobal.solvers.cagrad import conflict_averse
from mtobal.solvers.dual_cone import dual_cone
from mtobal.solvers.epo import epo_weights
from mtobal.solvers.equal_angles import equal_angles
from mtobal.solvers.equilibrium import equilibrium
from mtobal.solvers.hypervolume import hypervolume, non_dominated
from mtobal.solvers.min_norm import min_norm
from mtobal.solvers.nonnegative import SolverError, nonnegative_minimum
from mtobal.solvers.simplex import simplex_projection

__all__ = [
    "SolverError",
    "conflict_averse",
    "dual_cone",
    "epo_weights",
    "equal_angles",
    "equilibrium",
    "hypervolume",
    "min_norm",
    "non_dominated",
    "nonnegative_minimum",
    "simplex_projection",
]
