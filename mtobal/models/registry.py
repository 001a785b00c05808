"""Models by name, for recipes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from mtobal.errors import UsageError, unknown_name
from mtobal.models.base import MultiTaskModel
from mtobal.models.celeba_net import celeba_net
from mtobal.models.cgc import cgc
from mtobal.models.cifar_nets import cifar_pcgrad, cifar_routing
from mtobal.models.cross_stitch import CrossStitch
from mtobal.models.deeplab import deeplab
from mtobal.models.dselect_k import dselect_k
from mtobal.models.dtrn import dtrn
from mtobal.models.experts import check_sizes
from mtobal.models.hard_sharing import hard_sharing
from mtobal.models.home import home
from mtobal.models.lenet import lenet
from mtobal.models.ltb import LearningToBranch
from mtobal.models.message_passing import message_passing
from mtobal.models.mlp import mlp
from mtobal.models.mmoe import mmoe
from mtobal.models.mtan import mtan_segnet
from mtobal.models.mtan_resnet import mtan_resnet
from mtobal.models.nddr import NDDR
from mtobal.models.office_resnet import office_resnet
from mtobal.models.ple import ple
from mtobal.models.pretrained import pretrained
from mtobal.models.resnet import resnet
from mtobal.models.segnet import segnet
from mtobal.models.slimmable import slimmable
from mtobal.models.tat_network import tat_network
from mtobal.models.vit import vit
from mtobal.options import enter, resolve_options
from mtobal.tasks import Task

_Function = TypeVar("_Function", bound=Callable[..., MultiTaskModel])

_MODELS: dict[str, Callable[..., MultiTaskModel]] = {
    "celeba_net": celeba_net,
    "cgc": cgc,
    "cifar_pcgrad": cifar_pcgrad,
    "cifar_routing": cifar_routing,
    "cross_stitch": CrossStitch.build,
    "deeplab": deeplab,
    "dselect_k": dselect_k,
    "dtrn": dtrn,
    "hard_sharing": hard_sharing,
    "home": home,
    "lenet": lenet,
    "ltb": LearningToBranch.build,
    "message_passing": message_passing,
    "mlp": mlp,
    "mmoe": mmoe,
    "mtan_resnet": mtan_resnet,
    "mtan_segnet": mtan_segnet,
    "nddr": NDDR.build,
    "office_resnet": office_resnet,
    "ple": ple,
    "pretrained": pretrained,
    "resnet": resnet,
    "segnet": segnet,
    "slimmable": slimmable,
    "tat_network": tat_network,
    "vit": vit,
}

_ZOO = frozenset(_MODELS)


def register(name: str) -> Callable[[_Function], _Function]:
    """Register a function that builds a model under a name, so that `build` and recipes find it.

    It gets the shape of an input and the tasks; its other parameters are the options: keyword-only, each with a
    type.

    """

    def add(function: _Function) -> _Function:
        are_options = [
            parameter.kind is parameter.KEYWORD_ONLY and parameter.annotation is not parameter.empty
            for parameter in inspect.signature(function).parameters.values()
        ]
        if not inspect.isfunction(function) or are_options[:2] != [False, False] or not all(are_options[2:]):
            raise UsageError(
                f"model {name!r}: expected a function of the input shape and the tasks, whose other parameters "
                "are keyword-only and have a type each, as in f(input_shape, tasks, *, features: int = 16), not "
                f"{function.__qualname__}{inspect.signature(function)}."
            )
        enter(_MODELS, "model", name, function)
        return function

    return add


def available() -> list[str]:
    """Return the names of all models.

    Examples
    --------
    >>> "segnet" in available()
    True
    """
    return sorted(_MODELS)


def lookup(name: str) -> Callable[..., MultiTaskModel]:
    """Return the function that builds the model; its keyword-only parameters are the options."""
    if name not in _MODELS:
        raise unknown_name("model", name, _MODELS)
    return _MODELS[name]


def build(name: str, input_shape: Sequence[int], tasks: Sequence[Task], **options: Any) -> MultiTaskModel:
    """Build a model by name for inputs of this shape and these tasks.

    Examples
    --------
    >>> from mtobal.tasks import Classification
    >>> model = build("hard_sharing", (1, 12, 12), [Classification("left", num_classes=10)], features=32)
    >>> model.encoder.out_features
    32
    """
    function = lookup(name)
    resolved = resolve_options(f"model {name!r}", function, options)
    if not tasks:
        raise UsageError(f"model {name!r}: expected one or more tasks, got none.")
    if name in _ZOO:
        check_sizes(f"model {name!r}", resolved)
    model = function(input_shape, tasks, **resolved)
    if not isinstance(model, MultiTaskModel):
        raise UsageError(
            f"model {name!r}: expected a MultiTaskModel from {function.__module__}.{function.__qualname__}, got "
            f"{type(model).__name__}."
        )
    return model
