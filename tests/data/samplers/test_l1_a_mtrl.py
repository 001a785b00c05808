from __future__ import annotations

import numpy as np
import pytest
from torch.utils.data import DataLoader

from mtobal import UsageError
from mtobal.data.samplers import RelevanceSampler
from mtobal.data.samplers.l1_a_mtrl import allocate, lasso_relevance, sparsest_relevance


def problem(seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    heads = random.normal(size=(4, 9))
    return heads, heads @ (random.normal(size=9) * (random.random(9) < 0.4)) + 0.01 * random.normal(size=4)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("penalty", [1e-3, 0.1, 1.0])
def test_the_lasso_meets_its_optimality_conditions(seed: int, penalty: float) -> None:
    heads, target = problem(seed)
    relevance = lasso_relevance(heads, target, penalty)
    slopes = heads.T @ (target - heads @ relevance)
    assert np.abs(slopes).max() <= penalty * (1 + 1e-6)
    chosen = relevance != 0
    np.testing.assert_allclose(slopes[chosen], penalty * np.sign(relevance[chosen]), rtol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_the_sparsest_relevance_is_the_limit_of_the_lasso(seed: int) -> None:
    heads, target = problem(seed)
    sparsest = sparsest_relevance(heads, target)
    np.testing.assert_allclose(heads @ sparsest, target, atol=1e-9)
    assert np.count_nonzero(np.abs(sparsest) > 1e-9) <= len(target)
    least_squares = np.linalg.pinv(heads) @ target
    assert np.abs(sparsest).sum() <= np.abs(least_squares).sum() + 1e-9
    limit = lasso_relevance(heads, target, 1e-5)
    assert np.abs(limit).sum() == pytest.approx(np.abs(sparsest).sum(), rel=1e-3)


def test_a_large_penalty_and_heads_of_zero_leave_nothing() -> None:
    heads, target = problem(0)
    assert not lasso_relevance(heads, target, 1e3).any()
    assert not lasso_relevance(np.zeros((4, 2)), target, 0.1).any()
    assert allocate([0.0, 0.0], 10).tolist() == [5.0, 5.0]


def test_an_epoch_draws_the_counts_from_the_right_tasks() -> None:
    task_ids = np.repeat([0, 1, 2], [5, 10, 20])
    sampler = RelevanceSampler(task_ids, total=30, least=2)
    assert sampler.counts == [10, 10, 10]
    sampler.focus(np.eye(3), [3.0, 0.0, -1.0])
    drawn = list(DataLoader(list(task_ids), sampler=sampler, batch_size=None))
    assert len(drawn) == len(sampler) == sum(sampler.counts)
    assert np.bincount(drawn).tolist() == sampler.counts
    assert sampler.counts[0] > sampler.counts[2] > sampler.counts[1] == 2
    # No sample a second time before all of its task have been drawn.
    indices = [index for index in sampler if task_ids[index] == 0]
    assert np.ptp(np.bincount(indices, minlength=5)[:5]) <= 1


def test_draws_follow_the_seed() -> None:
    first, second = (RelevanceSampler([0, 0, 0, 1, 1], total=8, seed=4) for _ in range(2))
    assert list(first) == list(second)
    assert list(first) != list(RelevanceSampler([0, 0, 0, 1, 1], total=8, seed=5))


def test_wrong_use() -> None:
    with pytest.raises(UsageError, match="source task 1 has no samples"):
        RelevanceSampler([0, 2], total=4)
    with pytest.raises(UsageError, match="heads of 2 source tasks, got 3"):
        RelevanceSampler([0, 1], total=4).focus(np.eye(3), np.ones(3))
    with pytest.raises(UsageError, match="no linear combination"):
        sparsest_relevance([[1.0], [0.0]], [1.0, 1.0])
    with pytest.raises(UsageError, match="must be positive"):
        lasso_relevance(np.eye(2), np.ones(2), 0.0)
