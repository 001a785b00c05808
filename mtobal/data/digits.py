"""Two overlaid digits: the scans that ship inside scikit-learn, composed in the manner of MultiMNIST."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtobal.data.multitask import InMemoryDataset, MultiTaskData
from mtobal.errors import UsageError
from mtobal.tasks import Classification

SCAN_SIZE = 8
MAX_INK = 16.0

Array = NDArray[Any]


class DigitPairs(InMemoryDataset):
    """Canvases with two digits each, and where they come from.

    Attributes
    ----------
    scans : Tensor of shape (N, 2)
        The index in `sklearn.datasets.load_digits` of the left and of the right scan of every canvas.
    """

    def __init__(self, images: Array, labels: Array, scans: Array, offset: int) -> None:
        left, right = scans.T
        super().__init__(
            inputs=overlay(images[left], images[right], offset),
            targets={"left": torch.from_numpy(labels[left]), "right": torch.from_numpy(labels[right])},
        )
        self.scans = torch.from_numpy(scans)


def overlay(left: Array, right: Array, offset: int) -> Tensor:
    """Lay one digit at the top left of a canvas and another at its bottom right, keeping the darker ink.

    Parameters
    ----------
    left, right : array of shape (N, 8, 8)
        Scans with ink from 0 to 16.
    offset : int
        How many pixels the right digit lies below and right of the left one; the canvas is that much larger
        than a scan.

    Returns
    -------
    Tensor of shape (N, 1, 8 + offset, 8 + offset)
        Canvases with ink from 0 to 1.
    """
    canvas = np.zeros((len(left), 1, SCAN_SIZE + offset, SCAN_SIZE + offset), dtype=np.float32)
    canvas[:, 0, :SCAN_SIZE, :SCAN_SIZE] = left
    corner = canvas[:, 0, offset:, offset:]
    np.maximum(corner, right, out=corner)
    return torch.from_numpy(canvas / MAX_INK)


def digits(
    *,
    train_pairs: int = 4000,
    validation_pairs: int = 1000,
    test_pairs: int = 2000,
    offset: int = 4,
    seed: int = 0,
) -> MultiTaskData:
    """Load pairs of handwritten digits on one canvas; the tasks are to read the `left` and the `right` one.

    The 1,797 scans are split into training (60 %), validation (20 %) and test (20 %), each class in proportion,
    before any pair is composed, so that no scan appears in two splits.

    Parameters
    ----------
    train_pairs, validation_pairs, test_pairs : int
        How many canvases to compose in each split. Every scan of a split is used about equally often.
    offset : int
        Distance of the two digits in pixels, down and to the right. Scans are 8 pixels wide, so that 8 leaves
        no overlap.
    seed : int
        Seed of the splits and pairs; it is not the seed of a training run, so that all runs see the same data.

    Examples
    --------
    >>> data = digits(train_pairs=100)
    >>> data.train.inputs.shape
    torch.Size([100, 1, 12, 12])
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    numbers = {"train_pairs": train_pairs, "validation_pairs": validation_pairs, "test_pairs": test_pairs}
    for name, number in numbers.items():
        if number < 1:
            raise UsageError(f"data set 'digits': {name} should be at least 1, not {number}.")
    if not 0 <= offset <= SCAN_SIZE:
        raise UsageError(f"data set 'digits': offset should be 0 to {SCAN_SIZE}, not {offset}.")
    if seed < 0:
        raise UsageError(f"data set 'digits': seed should be 0 or more, not {seed}.")

    bundle = load_digits()
    train, held_out = train_test_split(
        np.arange(len(bundle.target)), test_size=0.4, stratify=bundle.target, random_state=seed
    )
    validation, test = train_test_split(
        held_out, test_size=0.5, stratify=bundle.target[held_out], random_state=seed
    )

    def compose(split: int, scans: Array, number: int) -> DigitPairs:
        pairs = _pair(scans, number, np.random.default_rng([seed, split]))
        return DigitPairs(bundle.images, bundle.target, pairs, offset)

    return MultiTaskData(
        train=compose(0, train, train_pairs),
        validation=compose(1, validation, validation_pairs),
        test=compose(2, test, test_pairs),
        tasks=(Classification("left", num_classes=10), Classification("right", num_classes=10)),
        input_shape=(1, SCAN_SIZE + offset, SCAN_SIZE + offset),
    )


def _pair(scans: Array, number: int, rng: np.random.Generator) -> Array:
    """Draw `number` pairs; each place of the pair goes through all scans before any comes again."""
    rounds = -(-number // len(scans))
    places = [np.concatenate([rng.permutation(scans) for _ in range(rounds)])[:number] for _ in range(2)]
    return np.stack(places, axis=1)
