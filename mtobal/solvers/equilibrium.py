"""The weights at which every task pulls as hard as its weight allows: Nash bargaining and alpha-fairness."""

from __future__ import annotations

from typing import Literal

import numpy as np

from mtobal.solvers.min_norm import min_norm
from mtobal.solvers.nonnegative import Array, SolverError, unit_rows

_EPSILON = float(np.finfo(np.float64).eps)
# The squared distance of the origin from the hull of the unit rows, up to which it counts as zero: the rounding of
# a Gramian in float64, and of the min-norm point of rows that nearly cancel, with a margin.
STATIONARY = 1e-13
# And the one up to which rounding may keep the iteration from settling.
_NEARLY_STATIONARY = 1e-11
# Ordinary inputs take five to ten steps; an alpha far from one on ill-conditioned rows takes many more.
_STEPS = 1000
_PATIENCE = 25


def equilibrium(gramian: Array, alpha: float = 1.0, *, solver: Literal["newton", "cvxpy"] = "newton") -> Array:
    r"""Find the positive weights with ``(G w)_k = w_k^(-1/alpha)`` for every k.

    They minimise the strictly convex potential ``1/2 w^T G w - sum_k U(w_k)`` with ``U(w) = log w`` for
    ``alpha = 1`` and ``U(w) = w^(1-p) / (1-p)``, ``p = 1 / alpha``, otherwise. The minimum is attained, and then
    unique, if and only if the origin is outside of ``conv{g_k}``; rank deficiency and duplicate rows do no harm.

    On unit rows, ``b_k = n_k w_k`` with ``n_k = ||g_k||`` and the cosines C, the equation reads
    ``(C b)_k = n_k^(p-1) b_k^(-p)``: its right-hand side keeps the norms unless ``alpha = 1``. It is solved by
    damped Newton steps.

    Parameters
    ----------
    gramian : array of shape (K, K)
        ``G = J J^T``, finite.
    alpha : float
        Positive.
    solver : {"newton", "cvxpy"}
        ``cvxpy`` minimises the potential by a general convex solver: slower and less exact, but independent.

    Returns
    -------
    array of shape (K,)
        Where no equilibrium exists, because a row is zero or the origin is in the hull of the rows, the simplex
        weights of the min-norm point, which is zero there. The origin counts as inside where its distance from
        the hull of the unit rows is 3e-7 or less.

    Raises
    ------
    SolverError
        If the Newton iteration does not end.

    References
    ----------
    A. Navon et al., Multi-Task Learning as a Bargaining Game, ICML 2022, arXiv:2202.01017.
    H. Ban and K. Ji, Fair Resource Allocation in Multi-Task Learning, ICML 2024, arXiv:2402.15638.

    Examples
    --------
    >>> import numpy as np
    >>> equilibrium(np.array([[4.0, 0.0], [0.0, 9.0]]))
    array([0.5       , 0.33333333])
    """
    if solver == "cvxpy":
        from mtobal.solvers import convex

        return convex.equilibrium(gramian, alpha)
    cosines, norms = unit_rows(gramian)
    if not norms.all():
        return min_norm(gramian)
    power = 1.0 / alpha
    largest = norms.max()
    lengths = norms / largest
    b = _newton(cosines, lengths ** (power - 1.0), power)
    if b is None:
        if squared_distance(cosines) > _NEARLY_STATIONARY:
            raise SolverError(f"no equilibrium of {len(gramian)} tasks was found for alpha={alpha:g}.")
        return min_norm(gramian)
    # Rounding can fake an equilibrium where there is none: of rows that cancel but for it.
    if (cosines @ b <= 1e-12 * (np.abs(cosines) @ b)).any() and squared_distance(cosines) <= STATIONARY:
        return min_norm(gramian)
    return np.asarray(b / lengths * largest ** (-2.0 / (1.0 + power)))


def squared_distance(cosines: Array) -> float:
    """Return the squared distance of the origin from the hull of the unit rows with these cosines."""
    weights = min_norm(cosines)
    return float(weights @ cosines @ weights)


def _newton(cosines: Array, forces: Array, power: float) -> Array | None:
    """Solve ``C b = f / b**p``, or return None where b runs off to infinity or does not settle."""
    size = len(cosines)
    matrix = np.empty_like(cosines)
    diagonal = matrix.reshape(-1)[:: size + 1]
    b = forces ** (1.0 / (1.0 + power))  # exact for orthogonal rows
    # The best multiple of that; the bound keeps nearly opposite rows from sending it far away.
    energy = max(b @ cosines @ b, 1e-3 * (b @ b))
    b *= (forces @ b ** (1.0 - power) / energy) ** (1.0 / (1.0 + power))
    pull = cosines @ b
    short_steps = 0
    for number in range(_STEPS):
        energy = b @ pull
        # The point b / sum(b) of the hull bounds the distance of the whole hull from the origin.
        if energy <= STATIONARY / 2 * b.sum() ** 2:
            return None
        if number == _PATIENCE and squared_distance(cosines) <= STATIONARY:
            return None
        force = forces / b**power
        residual = force - pull
        matrix[:] = cosines
        diagonal += power * force / b + size * _EPSILON  # definite to rounding, however large b is
        step = np.linalg.solve(matrix, residual)
        relative = step / b
        factors = np.abs(relative)
        length = factors.max()
        if length <= 0.1 / (1.0 + power):  # within the region of quadratic convergence
            b = b + step
            # The next step would be rounding, or they all are: of rows that nearly cancel.
            if length <= 1e-8 or short_steps == 10:
                return np.asarray(b)
            pull = cosines @ b
            short_steps += 1
            continue
        # A step of factors: to first order the Newton step, and positive.
        factors += 1.0
        trial = b * np.where(relative > 0, factors, 1.0 / factors)
        trial_pull = cosines @ trial
        decrement = residual @ step
        # Weights so small that they do not show in the potential depend on the others, but not the other way
        # round: they settle without a look at it.
        if decrement > 1e-12 * (energy + b @ force):
            damping = min(1.0, 0.9 / max(-relative.min(), 0.9))
            while _change(forces, power, b, pull, trial, trial_pull) > -0.01 * damping * decrement:
                if damping < 1e-12:
                    return None
                trial = b + damping * step
                trial_pull = cosines @ trial
                damping /= 2
        b, pull = trial, trial_pull
    return None


def _change(forces: Array, power: float, b: Array, pull: Array, trial: Array, trial_pull: Array) -> float:
    """Return how much the potential changes from b to the trial point, without cancellation."""
    growth = np.log(trial / b)
    if power == 1.0:
        utility = growth.sum()
    else:
        utility = forces * b ** (1.0 - power) @ np.expm1((1.0 - power) * growth) / (1.0 - power)
    return float(0.5 * ((trial - b) @ (pull + trial_pull)) - utility)
