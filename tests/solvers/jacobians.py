"""Random Jacobians of the kinds that solvers find hard."""

from __future__ import annotations

import numpy as np
import pytest

KINDS = ("wide", "ill-conditioned", "rank-deficient", "nearly dependent", "aligned", "opposed")


def random_jacobian(kind: str, seed: int) -> np.ndarray:
    """Return K rows, K from 2 to 40, half of the time with norms over six orders of magnitude."""
    generator = np.random.default_rng([KINDS.index(kind), seed])
    tasks = int(generator.integers(2, 41))
    rows = generator.normal(size=(tasks, 2 * tasks))
    if kind == "ill-conditioned":  # the condition number of the Gramian goes up to 1e12
        left, _, right = np.linalg.svd(rows, full_matrices=False)
        rows = left * 10.0 ** -np.linspace(0.0, generator.uniform(3.0, 6.0), tasks) @ right
    elif kind == "rank-deficient":
        rows = rows[:, : int(generator.integers(1, tasks + 1))]
    elif kind == "nearly dependent":
        for _ in range(tasks // 2):
            task, other = generator.integers(0, tasks, 2)
            noise = generator.choice([0.0, 1e-3, 1e-6]) * generator.normal(size=2 * tasks)
            rows[task] = generator.choice([1.0, -1.0, 2.0, -0.5]) * rows[other] + noise
    elif kind == "aligned":
        rows += generator.choice([1.0, 30.0]) * generator.normal(size=2 * tasks)
    elif kind == "opposed":
        rows += generator.choice([-1.0, 1.0], size=(tasks, 1)) * 3.0 * generator.normal(size=2 * tasks)
    if seed % 2:
        rows *= 10.0 ** generator.uniform(-3.0, 3.0, size=(tasks, 1))
    return rows


every_kind = pytest.mark.parametrize("kind", KINDS)
forty_seeds = pytest.mark.parametrize("seed", range(40))
