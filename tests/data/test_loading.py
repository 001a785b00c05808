"""Batches: all samples once, in an order of the seed and the epoch alone."""

from __future__ import annotations

import torch

from mtobal.data import InMemoryDataset, evaluation_loader, training_loader
from mtobal.data.multitask import Batch, BatchPerTask

DATASET = InMemoryDataset(torch.arange(10.0), {"double": torch.arange(10) * 2})


def epoch_order(seed: int, epoch: int, *before: int) -> list[float]:
    loader = training_loader(DATASET, batch_size=4, seed=seed)
    for earlier in before:
        loader.sampler.set_epoch(earlier)
        list(loader)
    loader.sampler.set_epoch(epoch)
    return torch.cat([inputs for inputs, _ in loader]).tolist()


def test_an_epoch_holds_every_sample_once_with_its_target() -> None:
    batches = list(training_loader(DATASET, batch_size=4, seed=0))
    assert [len(inputs) for inputs, _ in batches] == [4, 4, 2]
    assert len(batches) == len(training_loader(DATASET, batch_size=4, seed=0))
    assert torch.cat([inputs for inputs, _ in batches]).sort().values.tolist() == list(range(10))
    assert all(torch.equal(targets["double"], inputs.long() * 2) for inputs, targets in batches)


def test_the_order_depends_on_the_seed_and_the_epoch_alone() -> None:
    torch.manual_seed(0)
    order = epoch_order(0, 2)
    torch.manual_seed(1)
    assert epoch_order(0, 2, 0, 1) == order
    assert epoch_order(0, 3) != order
    assert epoch_order(1, 2) != order


def test_evaluation_keeps_the_order() -> None:
    batches = [inputs for inputs, _ in evaluation_loader(DATASET, batch_size=3)]
    assert [len(inputs) for inputs in batches] == [3, 3, 3, 1]
    assert torch.cat(batches).tolist() == list(range(10))


def test_ranks_read_parts_of_a_batch_and_a_small_one_whole() -> None:
    alone = [inputs.tolist() for inputs, _ in training_loader(DATASET, batch_size=5, seed=0)]
    ranks = [
        [inputs.tolist() for inputs, _ in training_loader(DATASET, batch_size=5, seed=0, rank=rank, ranks=2)]
        for rank in range(2)
    ]
    assert [first + second for first, second in zip(*ranks, strict=True)] == alone
    assert [len(part) for part in ranks[1]] == [2, 2]
    for rank in range(3):  # too small to give two samples to each of three
        whole = training_loader(DATASET, batch_size=5, seed=0, rank=rank, ranks=3)
        assert [inputs.tolist() for inputs, _ in whole] == alone


def test_ranks_share_out_the_tasks_that_are_large_enough() -> None:
    parts = BatchPerTask({"many": DATASET, "few": InMemoryDataset(torch.arange(3.0), {})})
    for rank in range(2):
        inputs, _ = next(iter(training_loader(parts, batch_size=4, seed=0, rank=rank, ranks=2)))
        assert {task: len(values) for task, values in inputs.items()} == {"many": 2, "few": 2}
        inputs, _ = next(iter(training_loader(parts, batch_size=3, seed=0, rank=rank, ranks=2)))
        assert {task: len(values) for task, values in inputs.items()} == {"many": 3, "few": 3}


def test_ranks_augment_differently() -> None:
    def jitter(batch: Batch, generator: torch.Generator) -> Batch:
        return torch.rand(2, generator=generator), batch[1]

    loaders = [
        training_loader(InMemoryDataset(DATASET.inputs, {}, jitter), batch_size=5, seed=0, rank=rank, ranks=ranks)
        for rank, ranks in ((0, 1), (0, 2), (1, 2))
    ]
    alone, first, second = (next(iter(loader))[0].tolist() for loader in loaders)
    assert first == alone
    assert second != first
