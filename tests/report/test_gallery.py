"""The pictures of predictions: true to their arrays, within bounds, and in words too."""

from __future__ import annotations

import io
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtobal.bench.predictions import PREDICTIONS_FILE, Predictions, save_predictions
from mtobal.bench.records import load_experiment, run_folder
from mtobal.errors import UsageError
from mtobal.report.gallery import CLASS_COLOURS, MOST_ROWS, Gallery, Picture, gallery
from mtobal.report.page import page
from mtobal.report.summary import summary_table
from report.experiments import write_experiment, write_predictions

TASKS = ("segmentation", "depth", "normals")


def read(folder: Path) -> Gallery:
    found = gallery(summary_table(load_experiment(folder)))
    assert found is not None
    return found


def pixels(picture: Picture) -> np.ndarray:
    """Decode a picture to red, green, blue and opacity, of shape (H, W, 4)."""
    kind, _, content = picture.uri.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(b64decode(content))).convert("RGBA"))


def rgb(colour: str) -> list[int]:
    return list(bytes.fromhex(colour[1:]))


def test_a_picture_shows_what_its_array_holds(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path, {"ew": [[0.5, 0.5, 0.5]], "uw": [[0.6, 0.6, 0.6]]}, tasks=TASKS)
    segmentation = np.array([[[0, 12], [20, -1]]], dtype=np.int16)
    depth = np.array([[[[1.0, 2.0], [3.0, 0.0]]]], dtype=np.float32)
    normals = np.zeros((1, 3, 2, 2), dtype=np.float32)
    normals[0, 0, 0, 0] = normals[0, 1, 0, 1] = normals[0, 2, 1, 0] = 1
    inputs = np.linspace(-2, 2, 12, dtype=np.float32).reshape(1, 3, 2, 2)
    outputs = {
        "segmentation": np.zeros_like(segmentation),
        "depth": np.where(depth > 0, depth + 0.5, 9),  # zero is no label
        "normals": normals[:, [1, 0, 2]] * 3,
    }
    targets = {"segmentation": segmentation, "depth": depth, "normals": normals}
    save_predictions(run_folder(folder, "uw", 0), Predictions(inputs, targets, outputs))
    found = read(folder)

    photograph = pixels(found.inputs[0])
    assert photograph[0, 0].tolist() == [0, 92, 185, 255]
    assert photograph[1, 1].tolist() == [69, 162, 255, 255]
    target, uw = found.images[0]
    assert (target.name, uw.name) == ("target", "uw")
    classes = pixels(target.pictures["segmentation"])
    assert classes[0, 0].tolist() == [*rgb(CLASS_COLOURS[0]), 255]
    assert classes[0, 1].tolist() == [*rgb(CLASS_COLOURS[12]), 255]
    assert classes[1, 1, 3] == 0  # no label: the page shows through
    assert found.legends == {
        "segmentation": tuple((k, found.legends["segmentation"][i][1]) for i, k in enumerate((0, 12, 20)))
    }
    assert [list(classes[0, 0, :3]), list(classes[0, 1, :3]), list(classes[1, 0, :3])] == [
        rgb(colour) for _, colour in found.legends["segmentation"]
    ]
    near = pixels(target.pictures["depth"]).astype(int)
    assert near[1, 1].tolist() == [0, 0, 0, 255]
    assert near[0, 0].sum() < near[0, 1].sum() < near[1, 0].sum()
    directions = pixels(target.pictures["normals"])
    assert directions[0, 0, :3].tolist() == [248, 128, 128]
    assert directions[1, 0, :3].tolist() == [128, 128, 248]
    assert "33% of the labelled pixels" in uw.pictures["segmentation"].text
    assert "0.5 from the target" in uw.pictures["depth"].text
    assert "60.0 degrees from the target" in uw.pictures["normals"].text  # two of three are 90 degrees off


def test_any_number_of_classes_is_drawn(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path, {"ew": [[0.5, 0.5, 0.5]]}, tasks=TASKS)
    segmentation = np.array([[[0, 255], [300, -1]]], dtype=np.int16)
    scenes = {"segmentation": segmentation}
    save_predictions(run_folder(folder, "ew", 0), Predictions(np.zeros((1, 1, 2, 2), np.float32), scenes, scenes))
    found = read(folder)
    drawn = pixels(found.images[0][0].pictures["segmentation"])
    assert drawn[..., 3].tolist() == [[255, 255], [255, 0]]  # no class takes the place of what has no label
    colours = dict(found.legends["segmentation"])
    assert [drawn[0, 1, :3].tolist(), drawn[1, 0, :3].tolist()] == [rgb(colours[255]), rgb(colours[300])]


def test_thirteen_classes_are_told_apart() -> None:
    colours = np.array([rgb(colour) for colour in CLASS_COLOURS], dtype=float)
    assert len(colours) == 13
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=-1) + 1000 * np.eye(13)
    assert distances.min() > 50


def test_the_best_rows_are_shown_and_the_baseline_is_put_together(tmp_path: Path) -> None:
    names = [f"row{place}" for place in range(MOST_ROWS + 3)]
    values = {f"single({task})": [[0.5]] for task in TASKS}
    values |= {name: [[0.5 + place / 100] * 3] for place, name in enumerate(names)}
    folder = write_experiment(tmp_path, values, tasks=TASKS)
    for name in names:
        write_predictions(run_folder(folder, name, 0), TASKS)
    for task in TASKS:
        write_predictions(run_folder(folder, f"single({task})", 0), (task,))
    found = read(folder)
    assert [line.name for line in found.images[1]] == ["target", "single-task", *names[: -MOST_ROWS - 1 : -1]]
    assert all(tuple(line.pictures) == TASKS for line in found.images[0])
    assert (found.shown, found.left_out) == (MOST_ROWS, 3)
    html = page(summary_table(load_experiment(folder)))
    assert html.count("<img ") == 2 * (1 + 3 * (MOST_ROWS + 2))
    assert html.count("<img ") == html.count('<img src="data:image/png;base64,')
    assert "the best 8 rows of the table, 3 more are left out" in " ".join(html.split())


def test_a_run_without_images_has_no_gallery(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path, {"ew": [[0.5, 0.5]]})
    assert gallery(summary_table(load_experiment(folder))) is None


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path, {"ew": [[0.5, 0.5, 0.5]]}, tasks=TASKS)
    path = run_folder(folder, "ew", 0) / PREDICTIONS_FILE
    write_predictions(path.parent, TASKS)
    content = bytearray(path.read_bytes())
    content[1000] ^= 255
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"ew/seed-0/predictions.npz: expected arrays"):
        read(folder)
