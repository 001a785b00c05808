"""The walk of an active set on a tableau: one exchange of variables after the other, each a rank-one update.

The programme is that of `mtobal.solvers.nonnegative_minimum`: ``x >= 0``, ``y = H x - q >= 0`` and ``x^T y = 0``.
For each k, one of ``x_k`` and ``y_k`` is basic, x inside the support and y outside, and the other is zero. The
tableau expresses the basic variables by the others. It starts as ``(H, -q)``, and in the block of the support it
has the inverse of H.

Variables enter by the largest violated condition, as with Lawson and Hanson, if their rows are independent of the
support: H need not be definite. Rounding adds up on the way, so the tableau refines what it has led to, and what
does not meet the conditions in the end is no solution.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

_Array = NDArray[np.float64]

_EPSILON = float(np.finfo(np.float64).eps)
# The squared sine of the angle between a row and the support, above which the row counts as independent.
_INDEPENDENT = 1e-13
# Rounding of the conditions for each variable, and how much more of it rows may have that are dependent on the
# support, for which there is no choice.
_NOISE = 10 * _EPSILON
_ACCEPTED = 30.0
# More than one are wanted where the rows of the support are themselves nearly dependent.
_REFINEMENTS = 2


def walk_one(hessian: _Array, linear: _Array) -> _Array | None:
    """Solve the programme for one q, or return None where rounding hides the way."""
    size = len(linear)
    tableau = np.empty((size, size + 1))
    tableau[:, :-1] = hessian
    tableau[:, -1] = -linear
    basic, column, row = tableau[:, -1], np.empty(size), np.empty(size + 1)
    tensors = torch.from_numpy(tableau), torch.from_numpy(column), torch.from_numpy(row)
    x, inside, barrier = np.zeros(size), np.zeros(size), np.zeros(size)
    square = float(linear @ linear)
    for _ in range(4 * size + 10):
        values = basic * inside
        chosen = int(values.argmin())
        if values[chosen] < 0.0:
            # Towards the minimum on the support, as far as the first variable that reaches zero.
            negative = (values < 0.0).nonzero()[0]
            shares = x[negative] / (x[negative] - values[negative])
            first = int(shares.argmin())
            x = np.maximum(x + shares[first] * (values - x), 0.0)
            chosen = int(negative[first])
            x[chosen] = inside[chosen] = 0.0
            barrier = np.where(inside, np.inf, 0.0)
        else:
            x = values
            candidates = basic + barrier
            chosen = int(candidates.argmin())
            noise = _NOISE * size * math.sqrt(square + float(x @ x))
            if candidates[chosen] >= -noise:
                break
            barrier[chosen] = np.inf
            if tableau[chosen, chosen] <= _INDEPENDENT:
                continue
            inside[chosen] = 1.0
        # For the row and the column of the pivot themselves, the terms with one stand for an assignment.
        np.copyto(column, tableau[:, chosen])
        pivot = column[chosen]
        np.divide(tableau[chosen], -pivot, out=row)
        column[chosen], row[chosen] = pivot + 1.0, 1.0 / pivot - 1.0
        tensors[0].addr_(*tensors[1:])
    else:
        return None
    for left in reversed(range(_REFINEMENTS + 1)):
        descent = linear - hessian @ x
        on_support = descent * inside
        violation = max(descent.max(), -on_support.min())
        if violation <= noise or not left:
            break
        x = np.maximum(x + (tableau[:, :-1] @ on_support) * inside, 0.0)
    return x if violation <= _ACCEPTED * noise else None


def walk_rows(hessian: _Array, linear: _Array) -> tuple[_Array, NDArray[np.bool_]]:
    """Do the same for all rows of `linear`, side by side; return the answers, and which rows have none."""
    count, size = linear.shape
    tableaux = np.empty((count, size, size + 1))
    tableaux[:, :, :-1] = hessian
    tableaux[:, :, -1] = -linear
    lines = tableaux.reshape(-1, size + 1)
    basic, diagonals = tableaux[:, :, -1], tableaux.reshape(count, -1)[:, :: size + 2]
    columns, rows = np.empty((count, size)), np.empty((count, size + 1))
    tensors = torch.from_numpy(tableaux), torch.from_numpy(columns)[:, :, None], torch.from_numpy(rows)[:, None]
    each = np.arange(count)
    x, inside = np.zeros_like(linear), np.zeros_like(linear)
    squares = np.einsum("ij,ij->i", linear, linear)
    for _ in range(4 * size + 10):
        values = basic * inside
        candidates = np.where((diagonals <= _INDEPENDENT) | (inside > 0.0), np.inf, basic)
        chosen = candidates.argmin(1)
        noise = _NOISE * size * np.sqrt(squares + np.einsum("ij,ij->i", values, values))
        moves = enters = candidates[each, chosen] < -noise
        if values.min() < 0.0:
            negative = values < 0.0
            leaves = negative.any(1)
            shares = np.full_like(x, np.inf)
            np.divide(x, x - values, out=shares, where=negative)
            first = shares.argmin(1)
            x = np.maximum(x + np.minimum(shares[each, first], 1.0)[:, None] * (values - x), 0.0)
            chosen = np.where(leaves, first, chosen)
            x[each, chosen] = 0.0
            moves, enters = moves | leaves, moves & ~leaves
        else:
            x = values
        if not np.count_nonzero(moves):
            break
        # Those that have arrived stand still: nothing is added to their tableaux.
        lines.take(each * size + chosen, 0, out=rows)
        np.multiply(tableaux[each, :, chosen], moves[:, None], out=columns)
        pivots = np.where(moves, rows[each, chosen], 1.0)
        rows /= -pivots[:, None]
        columns[each, chosen] += moves
        rows[each, chosen] = 1.0 / pivots - 1.0
        tensors[0].addcmul_(*tensors[1:])
        inside[each[moves], chosen[moves]] = enters[moves]
    for left in reversed(range(_REFINEMENTS + 1)):
        descent = linear - x @ hessian
        on_support = descent * inside
        violations = np.maximum(descent.max(1), -on_support.min(1))
        if not (left and np.count_nonzero(violations > noise)):
            break
        x = np.maximum(x + (tableaux[:, :, :-1] @ on_support[:, :, None])[:, :, 0] * inside, 0.0)
    return x, violations > _ACCEPTED * noise
