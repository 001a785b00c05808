from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from sklearn.base import clone

from mtobal import UsageError
from mtobal.models.r_mtgb import RobustMultiTaskBoosting, gate_gradient


def data(outlier: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    inputs = random.uniform(-1, 1, (240, 2))
    tasks = np.arange(240) % 4
    clean = np.sin(2 * inputs[:, 0]) + 0.5 * inputs[:, 1]
    return inputs, np.where(tasks == outlier, -clean, clean) + 0.05 * random.normal(size=240), tasks


def test_the_gradient_of_a_gate_is_the_derivative() -> None:
    random = np.random.default_rng(0)
    targets, non, out = random.normal(size=(3, 12))

    def error(logit: np.ndarray) -> float:
        share = 1 / (1 + np.exp(-logit[0]))
        return 0.5 * np.sum((targets - (1 - share) * non - share * out) ** 2)

    share = 1 / (1 + np.exp(-0.3))
    residuals = targets - (1 - share) * non - share * out
    numeric = approx_fprime(np.array([0.3]), error, 1e-7)[0]
    assert gate_gradient(residuals, np.array(share), out - non) == pytest.approx(numeric, rel=1e-5)


@pytest.mark.parametrize("outlier", range(4))
def test_the_gate_of_the_outlier_stands_apart(outlier: int) -> None:
    inputs, targets, tasks = data(outlier)
    model = RobustMultiTaskBoosting(meta_trees=3, gate_trees=60, task_trees=20).fit(inputs, targets, tasks=tasks)
    others = np.delete(model.gates_, outlier)
    assert np.abs(model.gates_[outlier] - others).min() > 3 * np.ptp(others)


def test_it_beats_pooling_where_a_task_is_an_outlier() -> None:
    inputs, targets, tasks = data(3)
    held_out = data(3, seed=1)
    options = {"max_leaf_nodes": 4, "task_trees": 0}
    robust = RobustMultiTaskBoosting(meta_trees=0, gate_trees=150, **options).fit(inputs, targets, tasks=tasks)
    pooled = RobustMultiTaskBoosting(meta_trees=150, gate_trees=0, **options).fit(inputs, targets, tasks=tasks)
    assert robust.score(*held_out[:2], tasks=held_out[2]) > 0.5 + pooled.score(*held_out[:2], tasks=held_out[2])


def test_labels_may_be_anything_and_options_are_those_of_scikit_learn() -> None:
    inputs, targets, tasks = data(0)
    names = np.array(["north", "east", "south", "west"])[tasks]
    model = RobustMultiTaskBoosting(meta_trees=20, task_trees=5)
    found = clone(model).fit(inputs, targets, tasks=names)
    assert found.get_params() == model.get_params()
    assert sorted(found.tasks_) == ["east", "north", "south", "west"]
    some = np.array([7, 2, 11])
    alone = found.predict(inputs[some], tasks=names[some])
    np.testing.assert_allclose(alone, found.predict(inputs, tasks=names)[some])
    with pytest.raises(UsageError, match="task 'up' was not among those trained"):
        found.predict(inputs[:1], tasks=["up"])
    with pytest.raises(UsageError, match=r"got shapes \(240, 2\), \(3,\) and \(240,\)"):
        model.fit(inputs, targets[:3], tasks=names)
