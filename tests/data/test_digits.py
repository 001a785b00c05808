"""Overlaid digits: disjoint splits, the overlay itself, and determinism."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from mtobal import data as data_sets
from mtobal.data.digits import DigitPairs, digits, overlay
from mtobal.errors import UsageError


def splits(**options: int) -> dict[str, DigitPairs]:
    data = digits(**options)
    found = {"train": data.train, "validation": data.validation, "test": data.test}
    assert all(isinstance(split, DigitPairs) for split in found.values())
    return found  # type: ignore[return-value]


def test_no_scan_is_in_two_splits_and_every_scan_is_in_one() -> None:
    sets = {name: set(split.scans.flatten().tolist()) for name, split in splits().items()}
    assert not sets["train"] & sets["validation"]
    assert not sets["train"] & sets["test"]
    assert not sets["validation"] & sets["test"]
    assert len(set.union(*sets.values())) == 1797


def test_no_image_of_a_scan_is_in_two_splits() -> None:
    # Two scans could be copies of one image; the indices alone would not tell.
    images = load_digits().images
    sets = {
        name: {images[scan].tobytes() for scan in split.scans.flatten().tolist()}
        for name, split in splits().items()
    }
    assert not sets["train"] & (sets["validation"] | sets["test"])
    assert not sets["validation"] & sets["test"]


def test_classes_have_the_same_share_in_every_split() -> None:
    target = load_digits().target
    overall = np.bincount(target) / len(target)
    for split in splits().values():
        scans = np.unique(split.scans.numpy())
        assert np.abs(np.bincount(target[scans]) / len(scans) - overall).max() < 0.01


def test_a_canvas_shows_its_two_scans() -> None:
    bundle = load_digits()
    offset = 3
    train = splits(train_pairs=50, offset=offset)["train"]
    for index in range(50):
        image, labels = train[index]
        left, right = train.scans[index].tolist()
        canvas = image[0].numpy() * 16
        assert canvas.shape == (11, 11)
        assert (canvas[:offset, :8] == bundle.images[left][:offset]).all()
        assert (canvas[8:, offset:] == bundle.images[right][8 - offset :]).all()
        middle = np.maximum(bundle.images[left][offset:, offset:], bundle.images[right][:-offset, :-offset])
        assert (canvas[offset:8, offset:8] == middle).all()
        assert (canvas[:offset, 8:] == 0).all()
        assert (canvas[8:, :offset] == 0).all()
        assert labels["left"] == bundle.target[left]
        assert labels["right"] == bundle.target[right]


def test_overlay_by_hand() -> None:
    left, right = np.zeros((1, 8, 8)), np.zeros((1, 8, 8))
    left[0, 7, 7], right[0, 0, 0] = 16, 8
    assert overlay(left, right, offset=7)[0, 0, 7, 7] == 1.0
    assert overlay(left, right, offset=8)[0, 0, 7, 7] == 1.0
    assert overlay(left, right, offset=8)[0, 0, 8, 8] == 0.5


def test_images_are_floats_from_zero_to_one() -> None:
    images = digits().train.inputs
    assert images.dtype == torch.float32
    assert images.min() == 0
    assert images.max() == 1


def test_the_same_seed_gives_the_same_data_and_another_seed_other_data() -> None:
    torch.manual_seed(1)
    first = splits(train_pairs=100)
    torch.manual_seed(2)
    again, other = splits(train_pairs=100), splits(train_pairs=100, seed=1)
    for name in first:
        assert torch.equal(first[name].inputs, again[name].inputs)
        assert torch.equal(first[name].scans, again[name].scans)
    assert not torch.equal(first["train"].scans, other["train"].scans)


def test_each_place_goes_through_all_scans_before_any_comes_again() -> None:
    scans = splits(train_pairs=2 * 1078)["train"].scans
    for place in scans.T:
        assert (place.bincount()[place.unique()] == 2).all()


def test_a_batch_is_taken_by_its_indices() -> None:
    train = digits(train_pairs=20).train
    inputs, targets = train[torch.tensor([3, 5])]
    assert torch.equal(inputs[1], train[5][0])
    assert torch.equal(targets["right"], torch.stack([train[3][1]["right"], train[5][1]["right"]]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_pairs": 0}, "train_pairs should be at least 1"),
        ({"offset": 9}, "offset should be 0 to 8"),
        ({"seed": -1}, "seed should be 0 or more"),
        ({"train_pears": 3}, "did you mean 'train_pairs'"),
        ({"offset": "wide"}, "offset should be a whole number, not 'wide'"),
        ({"offset": True}, "offset should be a whole number, not True"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        data_sets.load("digits", **options)


def test_an_unknown_data_set_is_named() -> None:
    with pytest.raises(UsageError, match="unknown data set 'digit': did you mean 'digits'"):
        data_sets.load("digit")
