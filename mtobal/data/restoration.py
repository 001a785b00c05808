"""Pictures to restore: rendered rooms with noise, at a lower resolution, and out of focus."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from mtobal.data.multitask import BatchPerTask, InMemoryDataset, MultiTaskData
from mtobal.data.rooms import rooms
from mtobal.data.seeding import derive_seed
from mtobal.errors import UsageError
from mtobal.tasks import Restoration

DENOISE, SUPER_RESOLVE, DEBLUR = "denoise", "super_resolve", "deblur"

SUPERSAMPLING = 2
"""A room is rendered at so many times the size and averaged, which halves its noise and smooths its edges."""


def add_noise(images: Tensor, deviation: float, generator: Generator) -> Tensor:
    """Return ``x + s n``, with n from a normal distribution of mean zero and variance one.

    Parameters
    ----------
    images : Tensor
        Values may leave the range of the image.
    deviation : float
        s.
    generator : Generator
        Where the draws come from.
    """
    return images + deviation * torch.randn(images.shape, generator=generator)


def lower_resolution(images: Tensor, factor: int) -> Tensor:
    """Average blocks of ``factor x factor`` pixels, and interpolate the averages bilinearly to the size before.

    Parameters
    ----------
    images : Tensor of shape (N, C, H, W)
    factor : int
        A divisor of height and width.

    Examples
    --------
    >>> lower_resolution(torch.tensor([[[[0.0, 2.0, 6.0, 4.0]] * 2]]), 2)[0, 0, 0]
    tensor([1., 2., 4., 5.])
    """
    averages = F.avg_pool2d(images, factor)
    return F.interpolate(averages, scale_factor=float(factor), mode="bilinear", align_corners=False)


def blur(images: Tensor, deviation: float) -> Tensor:
    """Convolve with a Gaussian, ``exp(-(i^2 + j^2) / 2 s^2)`` up to three deviations away, with sum one.

    Images go on beyond their edges as in a mirror.

    Parameters
    ----------
    images : Tensor of shape (N, C, H, W)
    deviation : float
        s, in pixels.
    """
    reach = max(round(3 * deviation), 1)
    places = torch.arange(-reach, reach + 1, dtype=images.dtype)
    line = (-(places**2) / (2 * deviation**2)).exp()
    line = line / line.sum()
    channels = images.shape[1]
    padded = F.pad(images, (reach, reach, reach, reach), mode="reflect")
    for shape in ((1, -1), (-1, 1)):
        kernel = line.view(1, 1, *shape).expand(channels, 1, -1, -1)
        padded = F.conv2d(padded, kernel, groups=channels)
    return padded


def restoration(
    *,
    train_images: int = 360,
    validation_images: int = 60,
    test_images: int = 120,
    height: int = 32,
    width: int = 32,
    noise: float = 0.1,
    factor: int = 2,
    blur_radius: float = 1.5,
    seed: int = 0,
) -> MultiTaskData:
    """Render furnished rooms and degrade them; the tasks are to `denoise`, `super_resolve` and `deblur` them.

    A batch holds pictures by task, other ones in every task while training shuffles them. Targets are the pictures
    before. They are rooms and not digits, for a scan of 8 x 8 pixels has nothing to lose to a lower resolution.

    Parameters
    ----------
    train_images, validation_images, test_images : int
        How many pictures to render for each split; every task degrades all of them.
    height, width : int
        Of the pictures.
    noise : float
        Standard deviation of the noise, as in `add_noise`; pictures have values from 0 to 1.
    factor : int
        How much coarser the resolution is, as in `lower_resolution`.
    blur_radius : float
        Standard deviation of the blur in pixels, as in `blur`.
    seed : int
        Seed of the rooms and of the noise; it is not the seed of a training run, so that all runs see the same
        data.

    Examples
    --------
    >>> data = restoration(train_images=2, validation_images=1, test_images=1)
    >>> inputs, targets = data.validation[{"deblur": torch.tensor([0])}]
    >>> inputs["deblur"].shape, targets["deblur"].shape
    (torch.Size([1, 3, 32, 32]), torch.Size([1, 3, 32, 32]))
    """
    counts = {"train_images": train_images, "validation_images": validation_images, "test_images": test_images}
    for name, number in {**counts, "height": height, "width": width, "factor": factor}.items():
        if number < 1:
            raise UsageError(f"data set 'restoration': {name} should be at least 1, not {number}.")
    if height % factor or width % factor:
        raise UsageError(
            f"data set 'restoration': height and width should be multiples of factor {factor}, not {height} and "
            f"{width}."
        )
    if noise < 0 or not 0 < 3 * blur_radius < min(height, width) - 1:
        raise UsageError(
            "data set 'restoration': noise should not be negative, and blur_radius above zero and less than a "
            f"third of the picture, not {noise} and {blur_radius}."
        )
    rendered = rooms(
        train_scenes=train_images,
        validation_scenes=validation_images,
        test_scenes=test_images,
        height=SUPERSAMPLING * height,
        width=SUPERSAMPLING * width,
        augment=False,
        seed=seed,
    )
    degradations: dict[str, Callable[[Tensor, int], Tensor]] = {
        DENOISE: partial(_add_noise, deviation=noise, seed=seed),
        SUPER_RESOLVE: lambda images, split: lower_resolution(images, factor),
        DEBLUR: lambda images, split: blur(images, blur_radius),
    }
    splits = []
    for split, scenes in enumerate((rendered.train, rendered.validation, rendered.test)):
        assert isinstance(scenes, InMemoryDataset)
        clean = F.avg_pool2d(scenes.inputs, SUPERSAMPLING)
        parts = {
            task: InMemoryDataset(degrade(clean, split), {task: clean}) for task, degrade in degradations.items()
        }
        splits.append(BatchPerTask(parts))
    return MultiTaskData(
        train=splits[0],
        validation=splits[1],
        test=splits[2],
        tasks=tuple(Restoration(task) for task in degradations),
        input_shape=(3, height, width),
    )


def _add_noise(images: Tensor, split: int, deviation: float, seed: int) -> Tensor:
    """Add noise to every picture by a seed of its own, so that it does not depend on how many others there are."""
    generators = (
        Generator().manual_seed(derive_seed("restoration", seed, split, index)) for index in range(len(images))
    )
    return torch.stack(
        [add_noise(image, deviation, generator) for image, generator in zip(images, generators, strict=True)]
    )
