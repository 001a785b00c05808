"""Data sets by name, for recipes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from mtobal.data.celeba import celeba, check_celeba
from mtobal.data.cifar_mtl import check_cifar_mtl, cifar_mtl
from mtobal.data.cityscapes import check_cityscapes, cityscapes
from mtobal.data.digits import digits
from mtobal.data.files import refusals_of
from mtobal.data.inspection import Check
from mtobal.data.multi_mnist import check_multi_mnist, multi_mnist
from mtobal.data.multitask import MultiTaskData
from mtobal.data.nyuv2 import check_nyuv2, nyuv2, prepare_nyuv2
from mtobal.data.office import check_office, office
from mtobal.data.qm9 import check_qm9, prepare_qm9, qm9
from mtobal.data.restoration import restoration
from mtobal.data.rooms import rooms
from mtobal.data.tracking import Track
from mtobal.errors import UsageError, unknown_name
from mtobal.options import enter, resolve_options

_Function = TypeVar("_Function", bound=Callable[..., MultiTaskData])

_DATA_SETS: dict[str, Callable[..., MultiTaskData]] = {
    "celeba": celeba,
    "cifar_mtl": cifar_mtl,
    "cityscapes": cityscapes,
    "digits": digits,
    "multi_mnist": multi_mnist,
    "nyuv2": nyuv2,
    "office": office,
    "qm9": qm9,
    "restoration": restoration,
    "rooms": rooms,
}

_CHECKS: dict[str, Callable[[Path], list[Check]]] = {
    "celeba": check_celeba,
    "cifar_mtl": check_cifar_mtl,
    "cityscapes": check_cityscapes,
    "multi_mnist": check_multi_mnist,
    "nyuv2": check_nyuv2,
    "office": check_office,
    "qm9": check_qm9,
}
"""Of those that lie on disk: from the folder to a look at everything in it."""

_PREPARATIONS: dict[str, Callable[[Path, Path, Track], str]] = {
    "nyuv2": prepare_nyuv2,
    "qm9": prepare_qm9,
}
"""Of those whose published files should be converted: from one folder to another; they say what was done."""


_DOWNLOADS: dict[str, str] = {
    "celeba": "Anno/list_attr_celeba.txt, Eval/list_eval_partition.txt and the faces, Img/img_align_celeba, from "
    "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
    "cifar_mtl": "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz, which need not be unpacked",
    "cityscapes": "the version of two tasks that https://github.com/lorenmt/mtan links to (folders train and val)",
    "multi_mnist": "the pickles that https://github.com/Xi-L/ParetoMTL links to",
    "nyuv2": "http://horatio.cs.nyu.edu/mit/silberman/nyu_depth_v2/nyu_depth_v2_labeled.mat and "
    "http://horatio.cs.nyu.edu/mit/silberman/indoor_seg_sup/splits.mat (then: mtobal data prepare nyuv2)",
    "office": "the pictures, and beside them the lists of examples/office/data_txt in "
    "https://github.com/median-research-group/LibMTL",
    "qm9": "what https://data.pyg.org/datasets/qm9_v3.zip unpacks to",
}
"""Of those that lie on disk: what should be put there."""


def register(name: str) -> Callable[[_Function], _Function]:
    """Register a function that makes a data set under a name, so that `load` and recipes find it.

    Its parameters are the options: keyword-only, each with a type.

    Examples
    --------
    >>> from dataclasses import replace
    >>> from mtobal import data
    >>> @data.register("first_digits")
    ... def first_digits(*, pairs: int = 10) -> data.MultiTaskData:
    ...     digits = data.load("digits", train_pairs=pairs)
    ...     return replace(digits, tasks=digits.tasks[:1])
    >>> [task.name for task in data.load("first_digits", pairs=20).tasks]
    ['left']
    """

    def add(function: _Function) -> _Function:
        if not inspect.isfunction(function) or not all(
            parameter.kind is parameter.KEYWORD_ONLY and parameter.annotation is not parameter.empty
            for parameter in inspect.signature(function).parameters.values()
        ):
            raise UsageError(
                f"data set {name!r}: expected a function whose parameters are keyword-only and have a type each, "
                f"as in f(*, samples: int = 100), not {function.__qualname__}{inspect.signature(function)}."
            )
        enter(_DATA_SETS, "data set", name, function)
        return function

    return add


def available() -> list[str]:
    """Return the names of all data sets.

    Examples
    --------
    >>> "rooms" in available()
    True
    """
    return sorted(_DATA_SETS)


def checkable() -> list[str]:
    """Return the names of those that lie on disk, whose files can be checked."""
    return sorted(_CHECKS)


def preparable() -> list[str]:
    """Return the names of those whose published files can be converted."""
    return sorted(_PREPARATIONS)


def lookup(name: str) -> Callable[..., MultiTaskData]:
    """Return the function that loads the data set; its keyword-only parameters are the options."""
    if name not in _DATA_SETS:
        raise unknown_name("data set", name, _DATA_SETS)
    return _DATA_SETS[name]


def load(name: str, **options: Any) -> MultiTaskData:
    """Load a data set by name.

    Raises
    ------
    UsageError
        No such data set, an option that it does not have, nothing on disk where its path says, or a function of
        the user's that returns something else.

    Examples
    --------
    >>> data = load("digits", train_pairs=100)
    >>> len(data.train), [task.name for task in data.tasks]
    (100, ['left', 'right'])
    """
    function = lookup(name)
    resolved = resolve_options(f"data set {name!r}", function, options)
    if name not in _DOWNLOADS:
        data = function(**resolved)
        if not isinstance(data, MultiTaskData):
            raise UsageError(
                f"data set {name!r}: expected MultiTaskData from {function.__module__}.{function.__qualname__}, "
                f"got {type(data).__name__}."
            )
        return data
    with refusals_of(Path(resolved["path"])):
        if not Path(resolved["path"]).exists():
            raise UsageError(
                f"data set {name!r}: expected its files at {resolved['path']}, found nothing there; get "
                f"{_DOWNLOADS[name]}, and put it there or set path to where it is."
            )
        return function(**resolved)


def checks(name: str, path: Path) -> list[Check]:
    """Return everything to be looked at in a data set on disk.

    Raises
    ------
    UsageError
        No such data set, or nothing of it at `path`.
    """
    if name not in _CHECKS:
        raise unknown_name("data set on disk", name, _CHECKS)
    with refusals_of(path):
        return _CHECKS[name](path)


def prepare(name: str, source: Path, target: Path, track: Track) -> str:
    """Convert the published files of a data set, and return what was done."""
    if name not in _PREPARATIONS:
        raise unknown_name("data set to prepare", name, _PREPARATIONS)
    with refusals_of(source):
        return _PREPARATIONS[name](source, target, track)
