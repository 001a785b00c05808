"""Batches: all samples once, in an order of the seed and the epoch alone."""

from __future__ import annotations

import torch

from mtobal.data import InMemoryDataset, evaluation_loader, training_loader

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
