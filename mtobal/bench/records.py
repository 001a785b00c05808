"""What a run leaves behind: the record of one run, and the folder of an experiment.

An experiment is a folder::

    recipe.yaml                     the resolved recipe
    <row>/seed-<n>/config.yaml      the run's full resolved configuration
    <row>/seed-<n>/history.csv      one line an epoch, for spreadsheets
    <row>/seed-<n>/result.json      the `RunRecord`; it exists once the run has finished

``result.json`` is standard JSON: a number that is not finite is written as ``null`` and read back as NaN.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints
from urllib.parse import quote

from mtobal.errors import UsageError

SCHEMA_VERSION = 1
RESULT_FILE = "result.json"
HISTORY_FILE = "history.csv"
RECIPE_FILE = "recipe.yaml"


@dataclass(frozen=True)
class MetricInfo:
    """A metric of one task; `name` is unique in the experiment, such as ``left/accuracy``."""

    name: str
    task: str
    higher_is_better: bool


@dataclass(frozen=True)
class EpochRecord:
    """One epoch. Losses and weights are by task, metrics by name; `weights` are means over the epoch's steps."""

    epoch: int
    train_losses: dict[str, float]
    validation_losses: dict[str, float]
    validation_metrics: dict[str, float]
    weights: dict[str, float]
    seconds: float


@dataclass(frozen=True)
class RunRecord:
    """One finished run: a row of the experiment under one seed.

    `row` names the row (``uw+pcgrad``, ``single(left)``), `kind` says whether all tasks were trained together
    or one alone. `test_metrics` are those of `selected_epoch`, chosen by the rule that `selection` states in a
    sentence. `seconds_per_step` is the median training step.
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


@dataclass(frozen=True)
class Experiment:
    """The finished runs of a folder in the order of its recipe, and the names of those that have not finished."""

    folder: Path
    title: str
    recipe: dict[str, Any]
    runs: tuple[RunRecord, ...]
    unfinished: tuple[str, ...]


def run_folder(experiment: Path, row: str, seed: int) -> Path:
    """Folder of one run; characters of the row's name that file systems refuse are percent-encoded.

    Examples
    --------
    >>> run_folder(Path("runs/digits"), "uw+cagrad(c=0.4)", 0).as_posix()
    'runs/digits/uw+cagrad(c=0.4)/seed-0'
    """
    return experiment / quote(row, safe="+(),= ") / f"seed-{seed}"


def write_text_atomic(path: Path, text: str) -> None:
    """Write `text` so that `path` holds either its old content or all of the new, whatever happens meanwhile."""
    # Not tempfile: its files are readable by their owner only, and a results folder is shared with colleagues.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
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
    lines = [
        {
            "epoch": record.epoch,
            **{f"train_loss/{task}": value for task, value in record.train_losses.items()},
            **{f"validation_loss/{task}": value for task, value in record.validation_losses.items()},
            **{f"validation/{name}": value for name, value in record.validation_metrics.items()},
            **{f"weight/{task}": value for task, value in record.weights.items()},
            "seconds": record.seconds,
        }
        for record in epochs
    ]
    columns = list(dict.fromkeys(column for line in lines for column in line)) or ["epoch"]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_text_atomic(folder / HISTORY_FILE, buffer.getvalue())


def load_run(folder: Path) -> RunRecord:
    """Read the record of a finished run; a file that is missing, cut short or of the wrong form is named."""
    path = folder / RESULT_FILE
    if not path.is_file():
        raise UsageError(
            f"{path}: expected the result of a finished run, but the file is missing; run it (again)."
        )
    advice = "delete the file and run the experiment again"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also a UnicodeDecodeError
        raise UsageError(f"{path}: expected JSON, but it cannot be read ({error}); {advice}.") from error
    if not isinstance(data, dict):
        raise UsageError(f"{path}: expected a JSON object, got {_shown(data)}; {advice}.")
    version = data.pop("schema", None)
    if version != SCHEMA_VERSION:
        raise UsageError(
            f"{path}: expected result schema {SCHEMA_VERSION}, got {_shown(version)}; "
            f"read it with the mtobal that wrote it, or {advice}."
        )
    try:
        run: RunRecord = _decode(RunRecord, data, "")
    except _Mismatch as error:
        raise UsageError(f"{path}: {error}; {advice}.") from error
    return run


def load_experiment(folder: Path) -> Experiment:
    """Read every finished run of an experiment: baselines first, then rows in the recipe's order, then by seed."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder}: expected the folder of an experiment, but there is none; check the path.")
    recipe = _load_recipe(folder / RECIPE_FILE)
    runs: list[RunRecord] = []
    unfinished: list[str] = []
    for run_path in sorted(path for path in folder.glob("*/seed-*") if path.is_dir()):
        if (run_path / RESULT_FILE).exists():
            runs.append(load_run(run_path))
        else:
            unfinished.append(run_path.relative_to(folder).as_posix())
    if not runs:
        found = f"only unfinished ones ({', '.join(unfinished)})" if unfinished else "none"
        raise UsageError(
            f"{folder}: expected finished runs (<row>/seed-<n>/{RESULT_FILE}), found {found}; run it first."
        )
    _check_agreement(folder, runs)

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
        raise UsageError(f"{path}: expected a YAML mapping, got {_shown(recipe)}; mend the file.")
    return recipe


def _check_agreement(folder: Path, runs: list[RunRecord]) -> None:
    """Refuse runs that cannot stand in one table: a run that is there twice, or other tasks or metrics."""
    seen: set[tuple[str, int]] = set()
    infos: dict[str, MetricInfo] = {}
    first_multi: RunRecord | None = None
    for run in runs:
        where = f"{folder}: run {run.row!r} with seed {run.seed}"
        if (run.row, run.seed) in seen:
            raise UsageError(f"{where} is there twice; delete one of its folders.")
        seen.add((run.row, run.seed))
        names = {info.name for info in run.metric_infos}
        if set(run.test_metrics) != names:
            raise UsageError(
                f"{where} should report {sorted(names)} but has {sorted(run.test_metrics)}; run it again."
            )
        if run.kind == "single" and len(run.tasks) != 1:
            raise UsageError(f"{where} should be a baseline of one task but has {list(run.tasks)}; run it again.")
        for info in run.metric_infos:
            if infos.setdefault(info.name, info) != info:
                raise UsageError(
                    f"{where} describes the metric {info.name!r} otherwise than another run; "
                    "put them in separate folders."
                )
        if run.kind == "multi":
            first_multi = first_multi or run
            if run.tasks != first_multi.tasks or run.metric_infos != first_multi.metric_infos:
                raise UsageError(
                    f"{where} has other tasks or metrics than run {first_multi.row!r} "
                    f"with seed {first_multi.seed}; "
                    "put them in separate folders."
                )


class _Mismatch(Exception):
    """A value that is not of the declared type; the text says where."""


@cache
def _fields(cls: type[Any]) -> dict[str, Any]:
    return get_type_hints(cls)


def _decode(expected: Any, value: Any, where: str) -> Any:
    """Turn parsed JSON into the type `expected`: dataclasses, tuples, string-keyed dicts, scalars; null is NaN."""
    if expected is Any:
        return value
    if dataclasses.is_dataclass(expected):
        return _decode_dataclass(expected, value, where)
    origin, args = get_origin(expected), get_args(expected)
    if origin is tuple:
        items = _expect(value, list, "a list", where)
        return tuple(_decode(args[0], item, f"{where}[{index}]") for index, item in enumerate(items))
    if origin is dict:
        mapping = _expect(value, dict, "an object", where)
        return {key: _decode(args[1], item, f"{where}[{key!r}]") for key, item in mapping.items()}
    if origin is Literal:
        if value not in args:
            raise _Mismatch(f"{where}: expected one of {', '.join(map(repr, args))}, got {_shown(value)}")
        return value
    if expected is float:
        if value is None:
            return math.nan
        return float(_expect(value, (int, float), "a number", where))
    return _expect(
        value,
        expected,
        {str: "a text", int: "an integer", bool: "true or false"}[expected],
        where,
    )


def _decode_dataclass(cls: Any, value: Any, where: str) -> Any:
    mapping = _expect(value, dict, "an object", where or "the record")
    fields = _fields(cls)
    place = f"{where}: " if where else ""
    if missing := fields.keys() - mapping.keys():
        raise _Mismatch(f"{place}expected the fields {', '.join(sorted(missing))}, which are missing")
    if unknown := mapping.keys() - fields.keys():
        raise _Mismatch(f"{place}unknown fields {', '.join(sorted(unknown))}")
    prefix = f"{where}." if where else ""
    return cls(**{name: _decode(kind, mapping[name], prefix + name) for name, kind in fields.items()})


def _expect(value: Any, kind: type[Any] | tuple[type[Any], ...], description: str, where: str) -> Any:
    # bool is a subclass of int, but true is no epoch number.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise _Mismatch(f"{where}: expected {description}, got {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
