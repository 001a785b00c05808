"""Data sets by name, for recipes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mtobal.data.celeba import celeba, check_celeba
from mtobal.data.cifar_mtl import check_cifar_mtl, cifar_mtl
from mtobal.data.cityscapes import check_cityscapes, cityscapes
from mtobal.data.digits import digits
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
from mtobal.options import resolve_options

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
        No such data set, an option that it does not have, or nothing on disk where its path says.

    Examples
    --------
    >>> data = load("digits", train_pairs=100)
    >>> len(data.train), [task.name for task in data.tasks]
    (100, ['left', 'right'])
    """
    function = lookup(name)
    resolved = resolve_options(f"data set {name!r}", function, options)
    if name in _DOWNLOADS and not Path(resolved["path"]).exists():
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
    return _CHECKS[name](path)


def prepare(name: str, source: Path, target: Path, track: Track) -> str:
    """Convert the published files of a data set, and return what was done."""
    if name not in _PREPARATIONS:
        raise unknown_name("data set to prepare", name, _PREPARATIONS)
    return _PREPARATIONS[name](source, target, track)
