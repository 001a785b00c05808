"""Models by name, for recipes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from mtobal.errors import unknown_name
from mtobal.models.deeplab import deeplab
from mtobal.models.hard_sharing import hard_sharing
from mtobal.models.mtan import mtan_segnet
from mtobal.models.resnet import resnet
from mtobal.models.segnet import segnet
from mtobal.options import resolve_options
from mtobal.tasks import Task

_MODELS: dict[str, Callable[..., nn.Module]] = {
    "deeplab": deeplab,
    "hard_sharing": hard_sharing,
    "mtan_segnet": mtan_segnet,
    "resnet": resnet,
    "segnet": segnet,
}


def available() -> list[str]:
    """Return the names of all models.

    Examples
    --------
    >>> available()
    ['deeplab', 'hard_sharing', 'mtan_segnet', 'resnet', 'segnet']
    """
    return sorted(_MODELS)


def lookup(name: str) -> Callable[..., nn.Module]:
    """Return the function that builds the model; its keyword-only parameters are the options."""
    if name not in _MODELS:
        raise unknown_name("model", name, _MODELS)
    return _MODELS[name]


def build(name: str, input_shape: Sequence[int], tasks: Sequence[Task], **options: Any) -> nn.Module:
    """Build a model by name for inputs of this shape and these tasks.

    Examples
    --------
    >>> from mtobal.tasks import Classification
    >>> model = build("hard_sharing", (1, 12, 12), [Classification("left", num_classes=10)], features=32)
    >>> model.encoder.out_features
    32
    """
    function = lookup(name)
    return function(input_shape, tasks, **resolve_options(f"model {name!r}", function, options))
