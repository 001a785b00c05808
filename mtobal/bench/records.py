"""What a run leaves behind: the record of one run, and the folder of an experiment.

An experiment is a folder::

    recipe.yaml                     the resolved recipe
    logs/                           what a logger was asked to write
    tuning/<row>/trial-<n>/         like the folder of a run: the trials, where settings were tuned
    <row>/seed-<n>/config.yaml      the run's full resolved configuration
    <row>/seed-<n>/history.csv      one line an epoch, for spreadsheets
    <row>/seed-<n>/result.json      the `RunRecord`; it exists once the run has finished
    <row>/seed-<n>/predictions.npz  of the first test images, where the tasks are dense (see `predictions`)
    <row>/seed-<n>/last.ckpt        of a run that has not finished: from where it resumes
    <row>/seed-<n>/failure.json     the `Failure` of a run that failed; the next call tries again

``result.json`` is standard JSON: a number that is not finite is written as ``null`` and read back as NaN.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import quote

from mtobal.bench.agreement import check_agreement
from mtobal.bench.decode import Mismatch, decode, shown
from mtobal.errors import UsageError

SCHEMA_VERSION = 2
RESULT_FILE = "result.json"
HISTORY_FILE = "history.csv"
FAILURE_FILE = "failure.json"
RECIPE_FILE = "recipe.yaml"
LOG_FOLDER = "logs"
TUNING_FOLDER = "tuning"
LONGEST_NAME = 200

Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class MetricInfo:
    """A metric of one task; `name` is unique in the experiment, such as ``left/accuracy``."""

    name: str
    task: str
    higher_is_better: bool


@dataclass(frozen=True)
class EpochRecord:
    """One epoch. Losses and weights are by task, metrics by name; `weights` are means over the epoch's steps.

    `conflict` is the share of the pairs of tasks whose gradients point against each other, a mean over the
    epoch's steps. Under ``all`` it is that of all shared parameters together, known without further cost where the
    strategy looks at gradients. With the recipe's `conflict_every`, every so many steps are observed under any
    strategy, and the other keys are layers, such as ``encoder.layers``. What was not observed is not there.
    """

    epoch: int
    train_losses: dict[str, float]
    validation_losses: dict[str, float]
    validation_metrics: dict[str, float]
    weights: dict[str, float]
    seconds: float
    conflict: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RunRecord:
    """One finished run: a row of the experiment under one seed.

    `row` names the row (``uw+pcgrad``, ``single(left)``), `kind` says whether all tasks were trained together
    or one alone. `test_metrics` are those of `selected_epoch`, chosen by the rule that `selection` states in a
    sentence. `seconds_per_step` is the median training step, and `training_seconds` the sum of all of them;
    evaluations are in neither.

    `peak_memory_bytes` is the most that tensors took on the CUDA device during training steps. It is None on other
    devices: what a process holds of a CPU's memory depends on what it has done before.

    `budget_seconds` is set in a run that was given a training time in place of a number of epochs. Its last epoch
    may have been cut short; `steps` counts all steps.
    """

    row: str
    kind: Literal["multi", "single"]
    strategy: str
    seed: int
    tasks: tuple[str, ...]
    metric_infos: tuple[MetricInfo, ...]
    test_metrics: dict[str, float]
    selected_epoch: int
    selection: str
    epochs: tuple[EpochRecord, ...]
    seconds_per_step: float
    steps: int
    parameters: int
    versions: dict[str, str]
    hardware: dict[str, str]
    config: dict[str, Any]
    peak_memory_bytes: int | None = None
    training_seconds: float | None = None
    budget_seconds: float | None = None


@dataclass(frozen=True)
class Failure:
    """A run that came to no result: why, in one line, and the traceback, empty where its process was killed."""

    row: str
    seed: int
    reason: str
    traceback: str


@dataclass(frozen=True)
class Experiment:
    """The finished runs of a folder in the order of its recipe.

    `unfinished` names those that were stopped on their way, and `failures` says what became of those that failed.
    """

    folder: Path
    title: str
    recipe: dict[str, Any]
    runs: tuple[RunRecord, ...]
    unfinished: tuple[str, ...]
    failures: tuple[Failure, ...] = ()


def run_folder(experiment: Path, row: str, seed: int) -> Path:
    """Folder of one run; characters of the row's name that file systems refuse are percent-encoded.

    Of a name too long for a file system, such as that of forty weights, the beginning and a digest remain.

    Examples
    --------
    >>> run_folder(Path("runs/digits"), "uw+cagrad(c=0.4)", 0).as_posix()
    'runs/digits/uw+cagrad(c=0.4)/seed-0'
    """
    name = quote(row, safe="+(),= ")
    if len(name) > LONGEST_NAME:
        name = f"{name[:LONGEST_NAME]}~{hashlib.sha256(row.encode()).hexdigest()[:8]}"
    return experiment / name / f"seed-{seed}"


def write_text_atomic(path: Path, text: str) -> None:
    """Write `text` so that `path` holds either its old content or all of the new, whatever happens meanwhile."""
    write_bytes_atomic(path, text.encode("utf-8"))


def write_bytes_atomic(path: Path, content: bytes) -> None:
    """Do the same with bytes."""
    # Not tempfile: its files are readable by their owner only, and a results folder is shared with colleagues.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json_atomic(path: Path, obj: Any) -> None:
    """Write `obj` as standard JSON (numbers that are not finite become null), atomically."""
    write_text_atomic(
        path,
        json.dumps(finite_or_null(obj), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
    )


def finite_or_null(obj: Any) -> Any:
    """Replace the numbers that standard JSON has no word for (NaN, infinities) by None, all the way down."""
    if isinstance(obj, float):
        return obj if math.isfinite(obj) else None
    if isinstance(obj, Mapping):
        return {key: finite_or_null(value) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [finite_or_null(value) for value in obj]
    return obj


def save_run(folder: Path, run: RunRecord) -> None:
    """Write ``history.csv`` and then ``result.json``, the sign of a finished run, into the run's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_history(folder, run.epochs)
    write_json_atomic(folder / RESULT_FILE, {"schema": SCHEMA_VERSION, **dataclasses.asdict(run)})


def save_history(folder: Path, epochs: tuple[EpochRecord, ...]) -> None:
    """Write ``history.csv``: one line an epoch, one column a quantity (``train_loss/left``, ``weight/left``)."""
    lines = [{"epoch": record.epoch, **columns(record), "seconds": record.seconds} for record in epochs]
    names = list(dict.fromkeys(name for line in lines for name in line)) or ["epoch"]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_text_atomic(folder / HISTORY_FILE, buffer.getvalue())


def columns(record: EpochRecord) -> dict[str, float]:
    """Return all numbers of an epoch by name, as ``history.csv`` and loggers have them."""
    return {
        **{f"train_loss/{task}": value for task, value in record.train_losses.items()},
        **{f"validation_loss/{task}": value for task, value in record.validation_losses.items()},
        **{f"validation/{name}": value for name, value in record.validation_metrics.items()},
        **{f"weight/{task}": value for task, value in record.weights.items()},
        **{f"conflict/{layer}": value for layer, value in record.conflict.items()},
    }


def save_failure(folder: Path, failure: Failure) -> None:
    """Write ``failure.json`` into the run's folder."""
    write_json_atomic(folder / FAILURE_FILE, {"schema": SCHEMA_VERSION, **dataclasses.asdict(failure)})


def load_run(folder: Path) -> RunRecord:
    """Read the record of a finished run; a file that is missing, cut short or of the wrong form is named."""
    path = folder / RESULT_FILE
    if not path.is_file():
        raise UsageError(
            f"{path}: expected the result of a finished run, but the file is missing; run it (again)."
        )
    return _load(path, RunRecord)


def load_failure(folder: Path) -> Failure:
    """Read why a run failed."""
    return _load(folder / FAILURE_FILE, Failure)


def _load(path: Path, kind: type[Loaded]) -> Loaded:
    advice = "delete the file and run the experiment again"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also a UnicodeDecodeError
        raise UsageError(f"{path}: expected JSON, but it cannot be read ({error}); {advice}.") from error
    if not isinstance(data, dict):
        raise UsageError(f"{path}: expected a JSON object, got {shown(data)}; {advice}.")
    version = data.pop("schema", None)
    if version != SCHEMA_VERSION:
        raise UsageError(
            f"{path}: expected result schema {SCHEMA_VERSION}, got {shown(version)}; "
            f"read it with the mtobal that wrote it, or {advice}."
        )
    try:
        loaded: Loaded = decode(kind, data, "")
    except Mismatch as error:
        raise UsageError(f"{path}: {error}; {advice}.") from error
    return loaded


def load_experiment(folder: Path) -> Experiment:
    """Read every finished run of an experiment: baselines first, then rows in the recipe's order, then by seed."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder}: expected the folder of an experiment, but there is none; check the path.")
    recipe = _load_recipe(folder / RECIPE_FILE)
    runs: list[RunRecord] = []
    unfinished: list[str] = []
    failures: list[Failure] = []
    for run_path in sorted(path for path in folder.glob("*/seed-*") if path.is_dir()):
        if (run_path / RESULT_FILE).exists():
            runs.append(load_run(run_path))
        elif (run_path / FAILURE_FILE).exists():
            failures.append(load_failure(run_path))
        else:
            unfinished.append(run_path.relative_to(folder).as_posix())
    if not runs:
        others = [*unfinished, *(f"{failure.row}, seed {failure.seed}: {failure.reason}" for failure in failures)]
        found = f"only unfinished ones ({'; '.join(others)})" if others else "none"
        raise UsageError(
            f"{folder}: expected finished runs (<row>/seed-<n>/{RESULT_FILE}), found {found}; run it first."
        )
    check_agreement(folder, runs)

    strategies = [str(strategy) for strategy in recipe.get("strategies") or ()]
    tasks = next((run.tasks for run in runs if run.kind == "multi"), ())

    def position(run: RunRecord) -> tuple[int, int, str, int]:
        order, key = (tasks, run.tasks[0]) if run.kind == "single" else (strategies, run.row)
        return (
            run.kind == "multi",
            order.index(key) if key in order else len(order),
            run.row,
            run.seed,
        )

    return Experiment(
        folder=folder,
        title=str(recipe.get("title") or folder.resolve().name),
        recipe=recipe,
        runs=tuple(sorted(runs, key=position)),
        unfinished=tuple(unfinished),
        failures=tuple(failures),
    )


def _load_recipe(path: Path) -> dict[str, Any]:
    import yaml

    if not path.is_file():  # runs written by another program need no recipe
        return {}
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{path}: expected YAML, but it cannot be read ({reason}); mend the file.") from error
    if not isinstance(recipe, dict):
        raise UsageError(f"{path}: expected a YAML mapping, got {shown(recipe)}; mend the file.")
    return recipe
