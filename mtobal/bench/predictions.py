"""What a run predicts for the first test images, for a picture in the report."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtobal.bench.records import write_bytes_atomic
from mtobal.data import MultiTaskDataset, evaluation_loader
from mtobal.tasks import Task
from mtobal.tasks.segmentation import Segmentation

if TYPE_CHECKING:
    from mtobal.bench.module import MultiTaskModule

PREDICTIONS_FILE = "predictions.npz"
IMAGES = 4
LONGEST_SIDE = 128

Array = NDArray[Any]


@dataclass(frozen=True)
class Predictions:
    """The first test images, by task what they should give and what the run makes of them.

    The arrays are of shape (images, channels, height, width); those of a segmentation are classes and have no
    channels. Of large images, every second, third, ... pixel was kept. Inputs are as the network sees them.
    """

    inputs: Array
    targets: dict[str, Array]
    outputs: dict[str, Array]


def predict(module: MultiTaskModule, dataset: MultiTaskDataset) -> Predictions | None:
    """Let the network answer to the first images; None where the inputs are no images or no target is dense."""
    inputs, targets = next(iter(evaluation_loader(dataset, IMAGES)))
    if not isinstance(inputs, Tensor) or inputs.ndim != 4:
        return None
    dense = [task for task in module.tasks if targets[task.name].shape[-2:] == inputs.shape[-2:]]
    if not dense:
        return None
    step = -(-max(inputs.shape[-2:]) // LONGEST_SIDE)
    parameter = next(module.parameters())
    was_training = module.training
    module.eval()
    with torch.no_grad():
        outputs = module.model(inputs.to(parameter.device))
    module.train(was_training)
    return Predictions(
        inputs=_thinned(inputs, step),
        targets={task.name: _thinned(targets[task.name], step) for task in dense},
        outputs={task.name: _thinned(_answer(task, outputs[task.name]), step) for task in dense},
    )


def save_predictions(folder: Path, predictions: Predictions) -> None:
    """Write ``predictions.npz`` into the run's folder."""
    buffer = io.BytesIO()
    arrays = {
        "inputs": predictions.inputs,
        **{f"target/{task}": array for task, array in predictions.targets.items()},
        **{f"output/{task}": array for task, array in predictions.outputs.items()},
    }
    halved: dict[str, Any] = {name: _half(array) for name, array in arrays.items()}
    np.savez_compressed(buffer, **halved)
    write_bytes_atomic(folder / PREDICTIONS_FILE, buffer.getvalue())


def load_predictions(folder: Path) -> Predictions | None:
    """Read the predictions of a run; None where it left none."""
    path = folder / PREDICTIONS_FILE
    if not path.is_file():
        return None
    # Opened here: of a file that was cut short, numpy forgets to close what it has opened itself.
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        arrays = {name: _full(file[name]) for name in file.files}
    return Predictions(arrays["inputs"], _under("target/", arrays), _under("output/", arrays))


def _answer(task: Task, output: Tensor) -> Tensor:
    return output.argmax(dim=1) if isinstance(task, Segmentation) else output


def _thinned(values: Tensor, step: int) -> Array:
    array: Array = values[..., ::step, ::step].cpu().numpy()
    return array.astype(np.float32 if np.issubdtype(array.dtype, np.floating) else np.int16)


def _half(array: Array) -> Array:
    return array.astype(np.float16) if array.dtype == np.float32 else array


def _full(array: Array) -> Array:
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _under(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
