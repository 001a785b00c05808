"""The recipes of data sets on disk: as published, and trained end to end on small files of that format."""

from __future__ import annotations

import hashlib
import importlib.resources
import io
import math
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

from data_files import (
    cifar_files,
    molecules,
    overlaid_pictures,
    write_celeba,
    write_office,
    write_scenes,
    write_tar,
)
from mtobal.bench.experiment import run_experiment
from mtobal.bench.recipe import Recipe, load_recipe
from mtobal.bench.records import load_experiment
from mtobal.data import cifar_mtl
from mtobal.errors import UsageError


def write_cifar(root: Path) -> None:
    members = {f"cifar-100-python/{name}": content for name, content in cifar_files().items()}
    write_tar(root / "cifar-100-python.tar.gz", members)


def write_cityscapes(root: Path) -> None:
    write_scenes(root, {"train": 5, "val": 2}, (32, 64), "label_7", normals=False)


def write_multi_mnist(root: Path) -> None:
    (root / "multi_mnist.pickle").write_bytes(pickle.dumps(overlaid_pictures()))


def write_qm9(root: Path) -> None:
    torch.save(molecules(40), root / "qm9_v3.pt")


WRITE: dict[str, Callable[[Path], object]] = {
    "celeba": write_celeba,
    "cifar_mtl": write_cifar,
    "cityscapes": write_cityscapes,
    "multi_mnist": write_multi_mnist,
    "office": write_office,
    "qm9": write_qm9,
}

SMALL: dict[str, dict[str, Any]] = {
    "celeba": {
        "data": {"size": 16},
        "model": {"width": 4},
        "tasks": ["Attribute_0", "Attribute_4"],
        "batch_size": 3,  # of four faces one is left over, on which batch norms could not train
        "strategies": ["ew", "mgda_ub"],
    },
    "cifar_mtl": {
        "model": {"channels": 4, "features": 8},
        "tasks": ["group_2", "group_11"],
        "batch_size": 90,
        "strategies": ["ew", "rep_mtl"],
    },
    "cityscapes": {"model": {"filters": [4, 8]}, "average_last": 1, "strategies": ["ew", "nash_mtl"]},
    "multi_mnist": {"model": {"features": 8}, "strategies": ["uw", "aligned_mtl_ub"]},
    "office": {
        "data": {"size": 32},
        "model": {"width": 4, "features": 8, "weights": None},
        "batch_size": 4,
        "strategies": ["ew", "cagrad"],
    },
    "qm9": {
        "data": {"validation_molecules": 8, "test_molecules": 6},
        "model": {"features": 4},
        "tasks": ["mu", "U0"],
        "batch_size": 10,
        "strategies": ["ew", "uw+mgda_ub"],
    },
}
"""Changes that make each recipe small."""


def derived(name: str, path: Path, **changes: Any) -> Recipe:
    """Return a recipe of the package with changes; those of a mapping change its entries."""
    file = importlib.resources.files("mtobal.bench") / "recipes" / f"{name}.yaml"
    mapping = yaml.safe_load(file.read_text(encoding="utf-8"))
    for key, value in changes.items():
        mapping[key] = {**mapping[key], **value} if isinstance(value, Mapping) else value
    path.write_text(yaml.safe_dump(mapping), encoding="utf-8")
    return load_recipe(path)


@pytest.mark.parametrize("name", SMALL)
def test_a_recipe_trains_and_reports(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    WRITE[name](folder)
    checksums = {file: hashlib.md5(content).hexdigest() for file, content in cifar_files().items()}
    monkeypatch.setattr(cifar_mtl, "MD5", checksums)
    common = {"epochs": 1, "seeds": 1, "workers": 0, "accelerator": "cpu"}
    changes = {**SMALL[name], "data": {**SMALL[name].get("data", {}), "path": str(folder)}}
    recipe = derived(name, tmp_path / "small.yaml", **common, **changes)
    run_experiment(recipe, tmp_path / "out", Console(file=io.StringIO()))
    runs = load_experiment(tmp_path / "out").runs
    *single, first, second = runs
    assert (first.row, second.row) == recipe.strategies
    assert first.tasks == second.tasks == tuple(task for run in single for task in run.tasks)
    for run in runs:
        assert {name.partition("/")[0] for name in run.test_metrics} == set(run.tasks)
        numbers = (*run.test_metrics.values(), *run.epochs[0].train_losses.values())
        assert all(map(math.isfinite, numbers)), run


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("celeba", "img_align_celeba, from https://"),
        ("cifar_mtl", "cifar-100-python.tar.gz"),
        ("cityscapes", "https://github.com/lorenmt/mtan"),
        ("multi_mnist", "https://github.com/Xi-L/ParetoMTL"),
        ("nyuv2_mtan", "nyu_depth_v2_labeled.mat"),
        ("office", "https://github.com/median-research-group/LibMTL"),
        ("qm9", "qm9_v3.zip"),
    ],
)
def test_where_there_is_nothing_the_error_says_what_to_put_there(
    name: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(name)
    with pytest.raises(UsageError, match=f"found nothing there; get .*{source}") as caught:
        run_experiment(recipe, tmp_path / "out", Console(file=io.StringIO()))
    assert recipe.data["path"] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "epochs", "batch_size", "learning_rate", "weight_decay", "decay", "average_last"),
    [
        ("celeba", 15, 256, 3e-4, 0.0, (0, 0.5, 0), 0),
        ("cityscapes", 200, 8, 1e-4, 0.0, (100, 0.5, 0), 10),
        ("multi_mnist", 100, 256, 1e-3, 0.0, (0, 0.5, 0), 0),
        ("office", 100, 64, 1e-4, 1e-5, (0, 0.5, 0), 0),
        ("qm9", 300, 120, 1e-3, 0.0, (0, 0.7, 5), 0),
    ],
)
def test_recipes_are_those_of_their_tables(
    name: str,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    decay: tuple[int, float, int],
    average_last: int,
) -> None:
    recipe = load_recipe(name)
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == (epochs, batch_size, learning_rate)
    assert recipe.weight_decay == weight_decay
    assert (recipe.decay_epochs, recipe.decay_factor, recipe.decay_patience) == decay
    assert recipe.average_last == average_last
    assert recipe.batch_metrics == (name == "cityscapes")
