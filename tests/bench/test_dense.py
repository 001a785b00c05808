"""The dense tasks from data to report: rooms, augmentation, each network, two strategies."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from mtobal.bench.experiment import run_experiment
from mtobal.bench.predictions import load_predictions
from mtobal.bench.recipe import Recipe, load_recipe
from mtobal.bench.records import load_experiment, run_folder
from mtobal.report import build_report

NETWORKS: dict[str, dict[str, Any]] = {
    "segnet": {"filters": [4, 8]},
    "mtan_segnet": {"filters": [4, 8]},
    "deeplab": {"depth": 18, "width": 4, "decoder_channels": 4},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_trained_compared_and_reported(name: str, tmp_path: Path) -> None:
    scenes = {"train_scenes": 6, "validation_scenes": 2, "test_scenes": 2, "height": 16, "width": 24}
    recipe = Recipe(
        title="Few rooms",
        data={"name": "rooms", **scenes},
        model={"name": name, **NETWORKS[name]},
        batch_size=3,
        learning_rate=0.01,
        decay_epochs=1,
        epochs=2,
        evaluation_batch_size=2,
        batch_metrics=name == "mtan_segnet",
        strategies=("ew", "nash_mtl"),
        seeds=1,
        accelerator="cpu",
    )
    run_experiment(recipe, tmp_path / "out", Console(file=io.StringIO()))
    runs = load_experiment(tmp_path / "out").runs
    rows = ["single(segmentation)", "single(depth)", "single(normals)", "ew", "nash_mtl"]
    assert [run.row for run in runs] == rows
    assert [len(run.test_metrics) for run in runs] == [2, 2, 5, 9, 9]
    assert all(run.steps == 4 for run in runs)
    predictions = load_predictions(run_folder(tmp_path / "out", "ew", 0))
    assert predictions is not None
    shapes = {"segmentation": (2, 16, 24), "depth": (2, 1, 16, 24), "normals": (2, 3, 16, 24)}
    assert predictions.inputs.shape == (2, 3, 16, 24)
    for arrays in (predictions.targets, predictions.outputs):
        assert {task: array.shape for task, array in arrays.items()} == shapes
    assert predictions.outputs["segmentation"].dtype == np.int16
    alone = load_predictions(run_folder(tmp_path / "out", "single(depth)", 0))
    assert alone is not None
    assert list(alone.outputs) == ["depth"]
    page = build_report(tmp_path / "out").read_text(encoding="utf-8")
    assert "within_11.25" in page


def test_recipes_of_nyuv2_are_those_of_its_tables() -> None:
    mtan, deeplab = load_recipe("nyuv2_mtan"), load_recipe("nyuv2_deeplab")
    for recipe, batch_size, weight_decay in ((mtan, 2, 0.0), (deeplab, 8, 1e-5)):
        assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == (200, batch_size, 1e-4)
        assert (recipe.decay_epochs, recipe.decay_factor, recipe.weight_decay) == (100, 0.5, weight_decay)
        assert recipe.data["augment"] is True
    assert mtan.average_last == 10
    assert mtan.data["validation_share"] == 0
    assert mtan.batch_metrics
    assert not deeplab.batch_metrics
