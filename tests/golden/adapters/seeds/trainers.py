"""The solvers of the official trainers, which stop before they arrive: records hold where they stop."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from mtobal.strategies import Aggregation, Step
from mtobal.strategies.gradient.cagrad import cagrad_weights
from mtobal.strategies.gradient.mgda import mgda_weights


class TrainersMGDA(Aggregation):
    """The min-norm point by projected gradients, until the squared change of the weights is below 1e-5."""

    def __init__(self, normalized: bool = False) -> None:
        super().__init__(heads="raw")
        self.normalized = normalized

    def solve(self, gramian: Tensor, step: Step) -> Tensor:
        norms = gramian.diag().sqrt() if self.normalized else torch.ones(len(gramian), dtype=torch.float64)
        unit = gramian / norms[:, None] / norms
        weights = torch.from_numpy(_min_norm(unit.numpy()))
        exact = mgda_weights(gramian, norms)
        assert exact @ unit @ exact <= weights @ unit @ weights * (1 + 1e-12)
        return weights / norms


class TrainersCAGrad(Aggregation):
    """The dual of CAGrad by sequential least squares, with 1e-8 beneath the root."""

    def __init__(self, c: float) -> None:
        super().__init__(heads="raw")
        self.c = c

    def solve(self, gramian: Tensor, step: Step) -> Tensor:
        rows, size = gramian.numpy(), len(gramian)
        mean = np.full(size, 1.0 / size)
        radius = self.c * np.sqrt(rows.mean() + 1e-8)

        def objective(weights: np.ndarray) -> float:
            return float(weights @ rows @ mean + radius * np.sqrt(weights @ rows @ weights + 1e-8))

        simplex = {"type": "eq", "fun": lambda weights: 1.0 - weights.sum()}
        found = minimize(objective, mean, bounds=[(0.0, 1.0)] * size, constraints=simplex).x
        exact = (cagrad_weights(gramian, self.c, 0) - 1.0 / size).numpy()
        assert objective(exact / exact.sum()) <= objective(found) + 1e-7
        length = np.sqrt(found @ rows @ found)
        return torch.from_numpy((mean + radius / (length + 1e-8) * found) / (1.0 + self.c**2))


def _min_norm(gramian: np.ndarray) -> np.ndarray:
    size = len(gramian)
    pairs = [(i, j) for i in range(size) for j in range(i + 1, size)]

    def between(i: int, j: int) -> np.ndarray:
        weights = np.zeros(size)
        share = _nearest(gramian[i, i], gramian[i, j], gramian[j, j])
        weights[i], weights[j] = share, 1.0 - share
        return weights

    weights = min((between(*pair) for pair in pairs), key=lambda w: w @ gramian @ w)
    if size == 2:
        return weights
    for _ in range(20):
        slope = gramian @ weights
        downhill = slope.mean() - slope
        lengths = np.concatenate(
            [
                -weights[downhill < 0] / downhill[downhill < 0],
                (1.0 - weights[downhill > 0]) / downhill[downhill > 0],
            ]
        )
        length = lengths[lengths > 1e-7].min(initial=np.inf)
        target = _onto_simplex(weights + downhill * (length if np.isfinite(length) else 1.0))
        share = _nearest(weights @ gramian @ weights, weights @ gramian @ target, target @ gramian @ target)
        moved = share * weights + (1.0 - share) * target
        if np.square(moved - weights).sum() < 1e-5:
            break
        weights = moved
    return weights


def _nearest(one: float, both: float, other: float) -> float:
    """Return the share of the first of two points in the point between them that is nearest to zero."""
    if both >= one:
        return 0.999
    if both >= other:
        return 0.001
    return (other - both) / (one + other - 2.0 * both)


def _onto_simplex(point: np.ndarray) -> np.ndarray:
    ordered = np.sort(point)[::-1]
    thresholds = (ordered.cumsum() - 1.0) / np.arange(1, len(point) + 1)
    return np.maximum(point - thresholds[np.flatnonzero(ordered > thresholds)[-1]], 0.0)
