"""Pictures of what the rows predict for the first test images, as PNG inside the page."""

from __future__ import annotations

import colorsys
import struct
import zipfile
import zlib
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mtobal.bench.records import Experiment, RunRecord, run_folder
from mtobal.errors import UsageError
from mtobal.report.table import Summary, SummaryRow

if TYPE_CHECKING:
    from mtobal.bench.predictions import Predictions

MOST_ROWS = 8
"""Multi-task rows whose predictions are shown: pictures would soon be most of what the page weighs."""

CLASS_COLOURS = (
    "#1f78b4",
    "#e6550d",
    "#33a02c",
    "#d9b300",
    "#8e5bb5",
    "#8c5a3c",
    "#e78ac3",
    "#3cc8b4",
    "#a6d854",
    "#b2182b",
    "#9ecae1",
    "#3b3f8f",
    "#fdbf8f",
)
LOW_TO_HIGH = ("#2b1d4e", "#3d4f8f", "#2f8a93", "#6cbf6c", "#f4e04d")
UNLABELLED = 255

Array = NDArray[Any]


@dataclass(frozen=True)
class Picture:
    """A picture as a ``data:`` URI, and in words."""

    uri: str
    text: str


@dataclass(frozen=True)
class Line:
    """The pictures of the target, or of one row, for one test image, by task."""

    name: str
    pictures: Mapping[str, Picture]


@dataclass(frozen=True)
class Gallery:
    """Each test image with its target, which comes first, and what the rows make of it.

    `legends` hold the classes that occur and their colours, by task. `shown` is the number of multi-task rows, and
    `left_out` that of the rows below them in the ranking.
    """

    tasks: tuple[str, ...]
    inputs: tuple[Picture, ...]
    images: tuple[tuple[Line, ...], ...]
    legends: Mapping[str, tuple[tuple[int, str], ...]]
    seed: int
    shown: int
    left_out: int


def gallery(summary: Summary) -> Gallery | None:
    """Draw the predictions of the baseline and of the best rows; None where no run has left any."""
    experiment = summary.experiment
    if not any(experiment.folder.glob("*/seed-*/predictions.npz")):
        return None  # and what reads them need not be imported
    stands_for_sweep = summary.best_static.runs[0].row if summary.best_static else ""
    rows = [row for row in summary.rows if row.name not in summary.folded or row.name == stands_for_sweep]
    found = ((row, each) for row in rows if (each := _of_row(experiment, row)) is not None)
    best = list(islice(found, MOST_ROWS))
    if not best:
        return None
    shown = list(best)
    if summary.baseline and (single := _of_row(experiment, summary.baseline)) is not None:
        shown.insert(0, (summary.baseline, single))
    truth = best[0][1]
    tasks = tuple(truth.targets)
    count = len(truth.inputs)
    return Gallery(
        tasks=tasks,
        inputs=tuple(
            Picture(_photograph(image, image), f"Input of test image {index}")
            for index, image in enumerate(truth.inputs, 1)
        ),
        images=tuple(
            (
                Line("target", {task: _target(truth.targets[task][index], task) for task in tasks}),
                *(
                    Line(
                        row.name,
                        {
                            task: _output(predicted.outputs[task][index], truth.targets[task][index], task)
                            for task in tasks
                            if task in predicted.outputs
                        },
                    )
                    for row, predicted in shown
                ),
            )
            for index in range(count)
        ),
        legends={
            task: _legend(
                [truth.targets[task], *(each.outputs[task] for _, each in shown if task in each.outputs)]
            )
            for task in tasks
            if _is_classes(truth.targets[task])
        },
        seed=best[0][0].seeds[0],
        shown=len(best),
        left_out=len(rows) - 1 - rows.index(best[-1][0]),
    )


def _of_row(experiment: Experiment, row: SummaryRow) -> Predictions | None:
    """Read the predictions under a row's first seed; those of the single-task networks are put together."""
    runs = [run for run in row.runs if run.seed == row.seeds[0]]
    found = [each for run in runs if (each := _of_run(experiment, run)) is not None]
    if not found:
        return None
    for other in found[1:]:
        found[0].targets.update(other.targets)
        found[0].outputs.update(other.outputs)
    return found[0]


def _of_run(experiment: Experiment, run: RunRecord) -> Predictions | None:
    from mtobal.bench.predictions import PREDICTIONS_FILE, load_predictions

    folder = run_folder(experiment.folder, run.row, run.seed)
    try:
        return load_predictions(folder)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(
            f"{folder / PREDICTIONS_FILE}: expected arrays as NumPy writes them, but they cannot be read "
            f"({error}); delete the file."
        ) from error


def _is_classes(values: Array) -> bool:
    return np.issubdtype(values.dtype, np.integer)


def _is_normals(target: Array) -> bool:
    """Whether the three channels are directions: of length one, or zero where there is no label."""
    lengths = np.linalg.norm(target, axis=0)
    return len(target) == 3 and bool(((np.abs(lengths - 1) < 0.01) | (lengths < 0.01)).all())


def _target(target: Array, task: str) -> Picture:
    return Picture(_drawn(target, target), f"Target of {task}")


def _output(output: Array, target: Array, task: str) -> Picture:
    """Draw an output on the scale of its target, and say how near it comes."""
    return Picture(_drawn(output, target), f"Output for {task}: {_nearness(output, target)}")


def _nearness(output: Array, target: Array) -> str:
    if _is_classes(target):
        labelled = target >= 0
        found, words = (output == target)[labelled], "{:.0%} of the labelled pixels as in the target"
    elif _is_normals(target):
        labelled = np.linalg.norm(target, axis=0) > 0.5
        cosines = (_directions(output) * target).sum(axis=0)[labelled].clip(-1, 1)
        found, words = np.degrees(np.arccos(cosines)), "{:.1f} degrees from the target on average"
    else:
        labelled = target > 0
        found, words = np.abs(output - target)[labelled], "{:.3g} from the target on average"
    return words.format(found.mean()) if found.size else "no pixel is labelled"


def _drawn(values: Array, target: Array) -> str:
    if _is_classes(target):
        indices = np.where(values < 0, UNLABELLED, values % UNLABELLED).astype(np.uint8)
        return _png(indices, [_class_colour(index) for index in range(UNLABELLED)])
    if len(values) != 3:
        return _map(values.mean(axis=0), target.mean(axis=0))
    if _is_normals(target):
        # Fewer shades than eight bits have, which no one sees and which halves the file.
        return _png((np.rint((_directions(values) + 1) * 15.5) * 8).clip(0, 255).astype(np.uint8))
    return _photograph(values, target)


def _directions(values: Array) -> Array:
    finite = np.nan_to_num(values)
    unit: Array = finite / np.linalg.norm(finite, axis=0).clip(min=1e-6)
    return unit


def _map(values: Array, target: Array) -> str:
    """Draw one number a pixel from low to high in the range of the target; black is zero or below."""
    labels = target[target > 0]
    low, high = (labels.min(), labels.max()) if labels.size else (0.0, 1.0)
    indices = np.rint(np.nan_to_num((values - low) / max(high - low, 1e-6)).clip(0, 1) * 254).astype(np.uint8)
    anchors = np.array([list(_bytes(colour)) for colour in LOW_TO_HIGH], dtype=np.float64)
    places = np.linspace(0, len(anchors) - 1, 255)
    shades = np.stack([np.interp(places, np.arange(len(anchors)), channel) for channel in anchors.T], axis=1)
    palette = ["#{:02x}{:02x}{:02x}".format(*shade) for shade in np.rint(shades).astype(int).tolist()]
    return _png(np.where(values <= 0, UNLABELLED, indices).astype(np.uint8), [*palette, "#000000"])


def _photograph(image: Array, scale: Array) -> str:
    """Draw an image of one or three channels in the range of `scale`: a network may see it normalised."""
    low, high = float(np.nanmin(scale)), float(np.nanmax(scale))
    channels = image[:3] if len(image) >= 3 else np.repeat(image[:1], 3, axis=0)
    return _png((np.nan_to_num((channels - low) / max(high - low, 1e-6)).clip(0, 1) * 255).astype(np.uint8))


def _legend(arrays: list[Array]) -> tuple[tuple[int, str], ...]:
    classes = sorted({int(each) for array in arrays for each in np.unique(array) if each >= 0})
    return tuple((each, _class_colour(each % UNLABELLED)) for each in classes)


def _class_colour(index: int) -> str:
    if index < len(CLASS_COLOURS):
        return CLASS_COLOURS[index]
    hue = (index - len(CLASS_COLOURS)) * 0.381966 % 1  # the golden angle keeps any number of hues apart
    red, green, blue = colorsys.hls_to_rgb(hue, 0.35 + 0.1 * (index % 4), 0.65)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


def _bytes(colour: str) -> bytes:
    return bytes.fromhex(colour.removeprefix("#"))


def _png(pixels: Array, palette: list[str] | None = None) -> str:
    """Write pixels (H, W) of a palette, or (3, H, W) of colours, as a ``data:`` URI.

    Of a palette, the index that stands for no label shows the page through, unless it has a colour.
    """
    height, width = pixels.shape[-2:]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2 if palette is None else 3, 0, 0, 0))]
    if palette is None:
        rows = pixels.transpose(1, 2, 0)
        # Neighbours differ less than they are large: PNG's filter 1, the difference to the pixel on the left.
        rows = np.diff(rows, axis=1, prepend=np.zeros_like(rows[:, :1])).reshape(height, -1)
    else:
        rows = pixels
        colours = b"".join(map(_bytes, palette)).ljust(3 * 256, b"\0")
        alpha = b"\xff" * len(palette) + b"\0" * (256 - len(palette))
        chunks += [(b"PLTE", colours), (b"tRNS", alpha)]
    kind = np.full((height, 1), 1 if palette is None else 0, dtype=np.uint8)
    chunks += [(b"IDAT", zlib.compress(np.hstack([kind, rows]).tobytes(), 9)), (b"IEND", b"")]
    encoded = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )
    return "data:image/png;base64," + b64encode(encoded).decode("ascii")
