"""Batches: mixed, of one task, and one for every task; augmentation of each by its seed alone."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from mtobal.data import Batch, InMemoryDataset, evaluation_loader, training_loader
from mtobal.data.multitask import BatchPerTask, FileDataset, OneTaskBatches
from mtobal.data.splitting import hold_out
from mtobal.errors import UsageError


def jitter(batch: Batch, generator: torch.Generator) -> Batch:
    inputs, targets = batch
    assert isinstance(inputs, torch.Tensor)
    return inputs + torch.rand(inputs.shape, generator=generator), targets


def numbers(start: int, count: int, task: str, augment: bool = False) -> InMemoryDataset:
    values = torch.arange(start, start + count)
    return InMemoryDataset(values.float()[:, None], {task: values}, jitter if augment else None)


PER_TASK = BatchPerTask({"large": numbers(0, 10, "large"), "small": numbers(100, 3, "small")})


def test_an_epoch_is_as_long_as_the_largest_task_and_the_others_start_over() -> None:
    loader = training_loader(PER_TASK, batch_size=4, seed=0)
    batches = list(loader)
    assert len(batches) == len(loader) == 3
    seen: dict[str, Counter[int]] = {"large": Counter(), "small": Counter()}
    for inputs, targets in batches:
        assert inputs.keys() == targets.keys() == seen.keys()
        for task, values in targets.items():
            assert torch.equal(inputs[task][:, 0], values.float())
            assert len(values) == 4
            seen[task].update(values.tolist())
    assert set(seen["large"]) == set(range(10))
    assert set(seen["small"]) == {100, 101, 102}
    assert set(seen["small"].values()) == {4}
    first, second = (targets["small"][:3].tolist() for _, targets in batches[:2])
    loader.sampler.set_epoch(1)  # type: ignore[attr-defined]
    assert [first, second] != [targets["small"][:3].tolist() for _, targets in list(loader)[:2]]


def test_in_order_every_sample_comes_once_and_a_task_that_is_through_is_missing() -> None:
    batches = list(evaluation_loader(PER_TASK, batch_size=4))
    assert [sorted(targets) for _, targets in batches] == [["large", "small"], ["large"], ["large"]]
    assert torch.cat([targets["large"] for _, targets in batches]).tolist() == list(range(10))
    assert batches[0][1]["small"].tolist() == [100, 101, 102]
    assert len(PER_TASK) == 13


def test_batches_of_one_task_hold_every_sample_once() -> None:
    groups = torch.tensor([0, 1, 0, 1, 1, 0, 2, 1])
    dataset = OneTaskBatches(numbers(0, 8, "value"), groups)
    for loader in (training_loader(dataset, batch_size=2, seed=0), evaluation_loader(dataset, batch_size=2)):
        batches = [targets["value"] for _, targets in loader]
        assert all(len(groups[batch].unique()) == 1 for batch in batches)
        assert len(batches) == len(loader)
    assert sorted(torch.cat(batches).tolist()) == list(range(8))
    # In training, of three samples one is left over; the only one of its task is not.
    loader = training_loader(dataset, batch_size=2, seed=0)
    assert sorted(groups[torch.cat([targets["value"] for _, targets in loader])].tolist()) == [0, 0, 1, 1, 1, 1, 2]


@pytest.mark.parametrize(
    ("samples", "batch_size", "trained"), [(9, 4, [4, 4]), (10, 4, [4, 4, 2]), (1, 4, [1]), (3, 1, [1, 1, 1])]
)
def test_training_leaves_a_last_batch_of_one_sample_out(samples: int, batch_size: int, trained: list[int]) -> None:
    loader = training_loader(numbers(0, samples, "value"), batch_size, seed=0)
    assert [len(inputs) for inputs, _ in loader] == trained
    assert len(loader) == len(trained)
    # Which one it is changes from epoch to epoch.
    if samples == 9:
        last = set()
        for epoch in range(6):
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            last |= set(range(9)) - {int(i) for _, targets in loader for i in targets["value"]}
        assert len(last) > 1
    assert sum(len(inputs) for inputs, _ in evaluation_loader(numbers(0, samples, "value"), batch_size)) == samples


@pytest.mark.parametrize("per_task", [False, True])
def test_augmentation_depends_on_seed_and_epoch_alone(per_task: bool) -> None:
    dataset = numbers(0, 6, "value", augment=True)
    whole = BatchPerTask({"value": dataset}) if per_task else dataset

    def epoch(number: int, seed: int = 0) -> torch.Tensor:
        torch.manual_seed(torch.seed() % 1000)
        loader = training_loader(whole, batch_size=4, seed=seed)
        loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
        inputs = [inputs["value"] if per_task else inputs for inputs, _ in loader]
        return torch.cat(inputs)

    assert torch.equal(epoch(2), epoch(2))
    assert not torch.equal(epoch(2).sort(dim=0).values, epoch(1).sort(dim=0).values)
    assert not torch.equal(epoch(2).sort(dim=0).values, epoch(2, seed=1).sort(dim=0).values)
    plain, _ = next(iter(evaluation_loader(whole)))
    assert torch.equal((plain["value"] if per_task else plain)[:, 0], torch.arange(6.0))


def test_files_are_read_when_they_are_asked_for() -> None:
    read: list[int] = []

    def sample(key: int) -> Batch:
        read.append(key)
        return torch.full((2,), float(key)), {"value": torch.tensor(key)}

    dataset = FileDataset([10, 11, 12, 13], sample).subset([1, 3])
    assert read == []
    assert float(dataset[1][0][0]) == 13
    inputs, targets = dataset[torch.tensor([1, 0])]
    assert read == [13, 13, 11]
    assert isinstance(inputs, torch.Tensor)
    assert inputs.tolist() == [[13, 13], [11, 11]]
    assert targets["value"].tolist() == [13, 11]


def test_held_out_samples_are_of_every_class_in_proportion() -> None:
    classes = torch.tensor([0] * 20 + [1] * 10).numpy()
    train, held = hold_out(classes, 0.3, seed=0, owner="x")
    assert sorted([*train, *held]) == list(range(30))
    assert Counter(classes[held].tolist()) == {0: 6, 1: 3}
    assert hold_out(classes, 0.3, seed=1, owner="x")[1].tolist() != held.tolist()
    assert len(hold_out(classes, 0, seed=0, owner="x")[1]) == 0
    with pytest.raises(UsageError, match="x: seed should be 0 or more"):
        hold_out(classes, 0.3, seed=-1, owner="x")
