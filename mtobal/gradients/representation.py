"""Gradients with respect to the shared representation: the encoder runs backward once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from mtobal.errors import UsageError
from mtobal.gradients.partition import reached_leaves


@dataclass(frozen=True)
class Cut:
    """The parameters below and above the representation, by their place among all parameters."""

    encoder: tuple[int, ...]
    heads: tuple[int, ...]


def cut_at(representation: Tensor, losses: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> Cut:
    """Find out which parameters lie below the representation, and that no loss reaches these around it.

    Parameters
    ----------
    representation : Tensor
        The output of the shared encoder, with its graph.
    losses : mapping from task to scalar tensor
    parameters : mapping from name to leaf tensor

    Raises
    ------
    UsageError
        Nothing lies below the representation, or a loss reaches a parameter of the encoder on another way.
    """
    below = reached_leaves(representation)
    encoder = {place: name for place, (name, p) in enumerate(parameters.items()) if id(p) in below}
    if not encoder:
        raise UsageError("no parameter lies below the representation that was given: was it detached?")
    for task, loss in losses.items():
        around = reached_leaves(loss, stop=representation)
        for name in encoder.values():
            if id(parameters[name]) in around:
                raise UsageError(
                    f"the loss of task {task!r} reaches {name!r} around the representation: give one that "
                    "is all that the decoders read of the encoder."
                )
    return Cut(tuple(encoder), tuple(place for place in range(len(parameters)) if place not in encoder))
