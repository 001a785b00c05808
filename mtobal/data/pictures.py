"""Small pictures that fit into memory as bytes, and become floats a batch at a time."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mtobal.data.multitask import Augmentation, Batch, InMemoryDataset


class Pictures(InMemoryDataset):
    """Pictures held as bytes; a batch of them is scaled to 0 to 1 and, if asked for, normalised.

    Parameters
    ----------
    inputs : Tensor of uint8, shape (N, C, H, W)
        The pictures.
    targets : mapping from str to Tensor
        The targets by task.
    mean, std : Tensor of shape (C,), optional
        What to subtract and then to divide by, a channel each.
    augment : callable, optional
        What training changes at random in a batch.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Mapping[str, Tensor],
        mean: Tensor | None = None,
        std: Tensor | None = None,
        augment: Augmentation | None = None,
    ) -> None:
        super().__init__(inputs, targets, augment)
        self._mean = None if mean is None else mean.view(-1, 1, 1)
        self._std = None if std is None else std.view(-1, 1, 1)

    def __getitem__(self, index: int | Tensor) -> Batch:
        """Return one sample, or the batch of the samples whose indices a tensor holds."""
        inputs, targets = super().__getitem__(index)
        assert isinstance(inputs, Tensor)
        scaled = inputs.float().div_(255)
        if self._mean is not None:
            scaled.sub_(self._mean)
        if self._std is not None:
            scaled.div_(self._std)
        return scaled, targets
