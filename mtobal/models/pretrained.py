"""Encoders of timm and torchvision, where these are installed."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from mtobal.errors import UsageError
from mtobal.models.encoders import check_image
from mtobal.models.hard_sharing import HardSharing
from mtobal.tasks import Task

Library = Literal["timm", "torchvision"]


def image_encoder(library: Library, name: str, input_shape: Sequence[int], trained: bool) -> tuple[nn.Module, int]:
    """Build an encoder from images to vectors, and return it with the size of these.

    Raises
    ------
    UsageError
        The library is not installed, has no such model, or the model does not fit.
    """
    check_image(f"{name} of {library}", input_shape)
    try:
        found = importlib.import_module(library)
    except ModuleNotFoundError as error:
        raise UsageError(f"models of {library} need it installed ({error}): pip install {library}.") from error
    return (_from_timm if library == "timm" else _from_torchvision)(found, name, input_shape, trained)


def _from_timm(timm: Any, name: str, input_shape: Sequence[int], trained: bool) -> tuple[nn.Module, int]:
    if not timm.is_model(name):
        raise UsageError(f"timm has no model {name!r}: timm.list_models() gives their names.")
    encoder: nn.Module = timm.create_model(name, pretrained=trained, num_classes=0, in_chans=input_shape[0])
    # The size in front of the classifier, which some models widen once more, is asked of the model itself.
    encoder.eval()
    with torch.no_grad():
        features = encoder(torch.zeros(1, *input_shape))
    return encoder.train(), features.shape[1]


def _from_torchvision(
    torchvision: Any, name: str, input_shape: Sequence[int], trained: bool
) -> tuple[nn.Module, int]:
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise UsageError(
            f"torchvision has no image classifier {name!r}: torchvision.models.list_models() gives their names."
        )
    if input_shape[0] != 3:
        raise UsageError(f"models of torchvision read images of 3 channels, not of {input_shape[0]}.")
    encoder = torchvision.models.get_model(name, weights="DEFAULT" if trained else None)
    # A classifier's last linear layer is the one to its classes; what goes in there is the representation.
    linear = [(path, module) for path, module in encoder.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UsageError(f"{name} of torchvision does not end in a linear layer: choose another model, or timm's.")
    path, last = linear[-1]
    above, _, attribute = path.rpartition(".")
    setattr(encoder.get_submodule(above), attribute, nn.Identity())
    return encoder, last.in_features


def pretrained(
    input_shape: Sequence[int],
    tasks: Sequence[Task],
    *,
    encoder: str,
    library: Library = "timm",
    start: Literal["pretrained", "random"] = "pretrained",
) -> HardSharing:
    """Join an encoder of timm or torchvision with one linear decoder a task.

    Parameters
    ----------
    input_shape : sequence of int
        Channels, height and width of an image, as the encoder reads them.
    tasks : sequence of Task
        The tasks, with one label an image.
    encoder : str
        Its name in the library, for example resnet50.
    library : {"timm", "torchvision"}
        Where it comes from; it has to be installed.
    start : {"pretrained", "random"}
        Start from the weights that the library offers, which it may have to download, or from random ones.
    """
    network, features = image_encoder(library, encoder, input_shape, start == "pretrained")
    return HardSharing(network, {task.name: nn.Linear(features, task.out_features) for task in tasks})
