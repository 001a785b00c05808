from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.utils.data import DataLoader

from mtobal import UsageError
from mtobal.data.samplers import PredictiveTaskSampler
from mtobal.data.samplers.mpts import acquisition_scores, normal_divergence

GRID = torch.linspace(-1, 1, 40)[:, None]


def hardness(tasks: list[int]) -> torch.Tensor:
    return (GRID[tasks, 0] + 1) / 2


def test_the_divergence_is_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    means, priors = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    scales, widths = 0.1 + torch.rand(2, 5, generator=generator, dtype=torch.float64)
    expected = kl_divergence(Normal(means, scales), Normal(priors, widths)).sum()
    torch.testing.assert_close(normal_divergence(means, scales, priors, widths), expected)
    assert normal_divergence(means, scales, means, scales) == 0


def test_scores_grow_with_mean_and_spread() -> None:
    predictions = torch.tensor([[1.0, 2.0, 0.0], [1.0, 2.0, 2.0]])
    mean_only = acquisition_scores(predictions, 1.0, 0.0)
    assert mean_only.tolist() == [1.0, 2.0, 1.0]
    assert acquisition_scores(predictions)[2] > 3


def test_it_comes_to_draw_the_tasks_of_high_loss() -> None:
    sampler = PredictiveTaskSampler(
        GRID, batch_size=5, batches=400, candidates=20, lr=5e-3, divergence_weight=1e-4
    )
    losses = []
    for tasks in sampler:
        assert len(set(tasks)) == 5
        losses.append(hardness(tasks).mean().item())
        sampler.observe(tasks, hardness(tasks))
    assert sum(losses[-50:]) / 50 > 0.75  # at random 0.5, at best 0.875


def test_batches_come_through_a_loader() -> None:
    sampler = PredictiveTaskSampler(GRID, batch_size=3, batches=4)
    loader = DataLoader(list(range(40)), batch_sampler=sampler)
    assert len(loader) == 4
    for tasks in loader:
        sampler.observe(tasks.tolist(), hardness(tasks.tolist()))


def test_part_of_a_batch_can_be_random() -> None:
    sampler = PredictiveTaskSampler(GRID, batch_size=4, batches=1, candidates=40, random_share=0.5)
    sampler.observe([0, 1], hardness([0, 1]))
    drawn = [sampler.propose() for _ in range(20)]
    assert all(len(set(tasks)) == 4 for tasks in drawn)
    assert len({frozenset(tasks[2:]) for tasks in drawn}) > 10


def test_it_resumes_bit_for_bit(tmp_path) -> None:
    whole = PredictiveTaskSampler(GRID, batch_size=4, batches=5)
    for tasks in whole:
        whole.observe(tasks, hardness(tasks))
    torch.save(whole.state_dict(), tmp_path / "sampler.pt")
    resumed = PredictiveTaskSampler(GRID, batch_size=4, batches=5, seed=9)
    resumed.load_state_dict(torch.load(tmp_path / "sampler.pt", weights_only=True))
    for _ in range(5):
        tasks = whole.propose()
        assert tasks == resumed.propose()
        for sampler in (whole, resumed):
            sampler.observe(tasks, hardness(tasks))


def test_wrong_use() -> None:
    with pytest.raises(UsageError, match="batches of 50"):
        PredictiveTaskSampler(GRID, batch_size=50, batches=1)
    sampler = PredictiveTaskSampler(GRID, batch_size=2, batches=1)
    with pytest.raises(UsageError, match="a finite loss for each of 2 tasks"):
        sampler.observe([0, 1], torch.tensor([1.0, torch.nan]))
