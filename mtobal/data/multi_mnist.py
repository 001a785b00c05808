"""MultiMNIST, MultiFashion and the mixture of both, as Pareto MTL published them: two overlaid pictures."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mtobal.data.files import Array, open_file
from mtobal.data.inspection import Check
from mtobal.data.multitask import MultiTaskData
from mtobal.data.pickles import load_pickle
from mtobal.data.pictures import Pictures
from mtobal.data.splitting import hold_out
from mtobal.errors import UsageError
from mtobal.tasks import Classification

FILES = {
    "mnist": "multi_mnist.pickle",
    "fashion": "multi_fashion.pickle",
    "fashion_and_mnist": "multi_fashion_and_mnist.pickle",
}
SIZE = 36

Variant = Literal["mnist", "fashion", "fashion_and_mnist"]


def multi_mnist(
    *, path: str, variant: Variant = "mnist", validation_share: float = 0.1, seed: int = 0
) -> MultiTaskData:
    """Load two pictures on one canvas of 36 x 36 pixels; the tasks are to name the `left` and the `right` one.

    Parameters
    ----------
    path : str
        One of the published pickles, or the folder that holds them. They are read without being trusted: they
        can build nothing but arrays.
    variant : str
        Which file to take of a folder: "mnist", "fashion" or "fashion_and_mnist".
    validation_share : float
        How much of the training pictures to hold out. With 0 the test pictures are the validation pictures too:
        then nothing may be chosen by validation.
    seed : int
        Of that choice; it is not the seed of a training run.
    """
    place = Path(path)
    file = place / FILES[variant] if place.is_dir() else place
    train_images, train_labels, test_images, test_labels = _read(file)
    kept, held = hold_out(np.zeros(len(train_images)), validation_share, seed, "data set 'multi_mnist'")
    test = _pictures(test_images, test_labels)
    return MultiTaskData(
        train=_pictures(train_images[kept], train_labels[kept]),
        validation=_pictures(train_images[held], train_labels[held]) if len(held) else test,
        test=test,
        tasks=(Classification("left", num_classes=10), Classification("right", num_classes=10)),
        input_shape=(1, SIZE, SIZE),
    )


def check_multi_mnist(path: Path) -> list[Check]:
    """Return a look at the file, or at each of those that are in the folder."""
    files = [path / name for name in FILES.values() if (path / name).exists()] if path.is_dir() else [path]
    if not files:
        raise UsageError(f"{path}: expected {', '.join(FILES.values())} or some of them, found none.")
    return [(file, partial(_read, file)) for file in files]


def _pictures(images: Array, labels: Array) -> Pictures:
    targets = torch.from_numpy(labels)
    return Pictures(torch.from_numpy(images)[:, None], {"left": targets[:, 0], "right": targets[:, 1]})


def _read(path: Path) -> tuple[Array, Array, Array, Array]:
    """Return images as bytes (N, 36, 36) and labels (N, 2), of training and of test."""
    with open_file(path) as file:
        found = load_pickle(file, path.stat().st_size, str(path))
    if not isinstance(found, tuple | list) or len(found) != 4:
        raise UsageError(
            f"{path}: expected four arrays, images and labels of training and test, found something else."
        )
    return *_split(path, found[0], found[1], "training"), *_split(path, found[2], found[3], "test")


def _split(path: Path, images: Any, labels: Any, name: str) -> tuple[Array, Array]:
    where = f"{path}: {name}"
    if not isinstance(images, np.ndarray) or images.shape[1:] not in ((SIZE, SIZE), (1, SIZE, SIZE)):
        raise UsageError(f"{where}: expected images of shape (N, {SIZE}, {SIZE}), found {_shape(images)}.")
    if not isinstance(labels, np.ndarray) or labels.shape != (len(images), 2):
        raise UsageError(f"{where}: expected labels of shape ({len(images)}, 2), found {_shape(labels)}.")
    if not len(images):
        raise UsageError(f"{where}: expected images, found none.")
    if not (images.min() >= 0 and images.max() <= 255):
        raise UsageError(f"{where}: expected shades from 0 to 255 or from 0 to 1, found others.")
    if not np.isin(labels, range(10)).all():
        raise UsageError(f"{where}: expected labels from 0 to 9, found others.")
    # Some copies hold shades from 0 to 1 instead.
    scale = 255 if images.max() <= 1 else 1
    shades = images if images.dtype == np.uint8 and scale == 1 else np.rint(images * scale).astype(np.uint8)
    return shades.reshape(-1, SIZE, SIZE), labels.astype(np.int64)


def _shape(value: Any) -> str:
    return str(value.shape) if isinstance(value, np.ndarray) else "no array"
