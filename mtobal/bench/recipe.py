"""Recipes: what an experiment trains, in YAML."""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from mtobal import data, models, strategies
from mtobal.bench.recipes import read_recipe, recipe_names
from mtobal.errors import UsageError, unknown_name
from mtobal.options import resolve_options

BUDGETS = ("epochs", "time")
ACCELERATORS = ("auto", "cpu", "cuda", "mps")
POSITIVE = (
    "batch_size",
    "learning_rate",
    "decay_factor",
    "epochs",
    "evaluation_batch_size",
    "seeds",
    "devices",
    "num_nodes",
    "threads",
)
NOT_NEGATIVE = (
    "weight_decay",
    "decay_epochs",
    "decay_patience",
    "average_last",
    "scalarization",
    "conflict_every",
    "trials",
    "workers",
)
LONGEST_SWEEP = 1000
TRIALS = 8
"""Of every row, where something is tuned and no number given."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """An experiment: single-task baselines and several strategies, trained alike.

    Attributes
    ----------
    title : str
        The heading of the report.
    imports : tuple of str
        Modules of the user's that register data sets, models and strategies, found from the current folder too.
    data, model : mapping
        ``name``, and the options of the data set or model beside it; options left out take their defaults.
    tasks : tuple of str
        The tasks to train; none means all those of the data set.
    batch_size : int
        Samples a step, over all devices.
    learning_rate, weight_decay : float
        Of the Adam optimizer.
    decay_epochs : int
        After every so many epochs the learning rate is multiplied by `decay_factor`; 0 for never.
    decay_factor : float
        What it is multiplied by.
    decay_patience : int
        The learning rate is multiplied by `decay_factor` whenever the mean validation loss of the tasks has not
        fallen for more than so many epochs, down to a hundredth; 0 for never.
    epochs : int
        Passes through the training split.
    budget : {"epochs", "time"}
        Whether all rows train so many epochs, or as many seconds as `ew` takes for them with the same seed.
        Baselines of single tasks have the epochs in any case.
    average_last : int
        Report the mean over so many last epochs on a test split that is the validation split too, as the tables of
        NYUv2 do; 0 reports the epoch that is best on a validation split of its own.
    evaluation_batch_size : int
        Samples a step of an evaluation.
    batch_metrics : bool
        Evaluate in the convention of older papers, which average some metrics batch by batch.
    strategies : tuple of str
        Specs such as ``uw+pcgrad``, one row of the report each.
    scalarization : int
        So many rows of random static weights beside them, and `ew`.
    conflict_every : int
        Observe the conflict of gradients by layers every so many steps, under any strategy; 0 for never. An
        observation costs one backward pass a task, twice that where the strategy looks at no gradients itself.
    seeds : int
        How many seeds to train each row with: 0, 1, 2, ...
    tune : tuple of str
        Options to tune, such as ``cagrad.c=0.2:0.8`` or ``stch.mu=0.1,1``.
    trials : int
        How many settings to try of every row before it is trained with the seeds; 0 tunes nothing.
    accelerator : str
        Where to train: auto, cpu, cuda or mps.
    devices : int
        How many of them train one run together, on each machine.
    num_nodes : int
        On how many machines.
    threads : int
        CPU threads of torch for each device. Sums taken in another order differ in their last digits, so that the
        number is part of the recipe and not left to the machine.
    workers : int
        Processes that read data ahead; they change nothing but the time.
    """

    title: str
    imports: tuple[str, ...] = ()
    data: Mapping[str, Any]
    model: Mapping[str, Any]
    tasks: tuple[str, ...] = ()
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.0
    decay_epochs: int = 0
    decay_factor: float = 0.5
    decay_patience: int = 0
    epochs: int
    budget: Literal["epochs", "time"] = "epochs"
    average_last: int = 0
    evaluation_batch_size: int = 1024
    batch_metrics: bool = False
    strategies: tuple[str, ...]
    scalarization: int = 0
    conflict_every: int = 0
    seeds: int
    tune: tuple[str, ...] = ()
    trials: int = 0
    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    threads: int = 1
    workers: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "imports", tuple(dict.fromkeys(self.imports)))
        _import(self.imports)
        for name in POSITIVE:
            if not getattr(self, name) > 0:
                raise UsageError(f"recipe: {name} should be greater than zero, not {getattr(self, name)}.")
        for name in NOT_NEGATIVE:
            if not getattr(self, name) >= 0:
                raise UsageError(f"recipe: {name} should be zero or more, not {getattr(self, name)}.")
        if self.ranks > 1 and self.batch_size < 2 * self.ranks:
            raise UsageError(
                f"recipe: batch_size {self.batch_size} is too small for {self.ranks} devices, which share every "
                "batch and need two samples each."
            )
        if self.scalarization > LONGEST_SWEEP:
            raise UsageError(f"recipe: scalarization should be at most {LONGEST_SWEEP}, not {self.scalarization}.")
        if self.accelerator not in ACCELERATORS:
            raise unknown_name("accelerator", self.accelerator, ACCELERATORS)
        if self.budget not in BUDGETS:
            raise unknown_name("budget", self.budget, BUDGETS)
        if self.tune and not self.trials:
            object.__setattr__(self, "trials", TRIALS)
        if self.trials and self.average_last:
            raise UsageError("recipe: tuning needs a validation split of its own; set average_last to 0.")
        if self.trials and self.budget == "time":
            raise UsageError("recipe: tuning works with a budget of epochs; set budget to epochs, or trials to 0.")
        if not self.strategies:
            raise UsageError("recipe: strategies should name at least one, such as ew.")
        # One strategy has one spelling, so that it has one row.
        specs = tuple(dict.fromkeys(strategies.build(spec).spec for spec in self.strategies))
        object.__setattr__(self, "strategies", specs)
        object.__setattr__(self, "data", _resolved("data set", self.data, data.lookup))
        object.__setattr__(self, "model", _resolved("model", self.model, models.lookup))

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A worker process that gets a recipe knows its names from here on.
        self.__dict__.update(state)
        _import(self.imports)

    @property
    def ranks(self) -> int:
        """How many processes train one run together, one for each device."""
        return self.devices * self.num_nodes

    def as_mapping(self) -> dict[str, Any]:
        """Return all of the recipe as YAML and JSON hold it."""
        return {name: _plain(value) for name, value in dataclasses.asdict(self).items()}

    def as_yaml(self) -> str:
        """Return all of the recipe as YAML text."""
        return yaml.safe_dump(self.as_mapping(), sort_keys=False)


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Read a recipe of the package by its name, or any other by the path of its YAML file.

    Raises
    ------
    UsageError
        Unknown recipe, no YAML, an unknown or missing key, or a value of the wrong type.

    Examples
    --------
    >>> load_recipe("digits").strategies
    ('ew', 'uw', 'pcgrad', 'mgda', 'uw+pcgrad')
    """
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UsageError(
                f"{path}: expected a recipe, but it cannot be read ({error.strerror}); known by name are "
                f"{', '.join(recipe_names())}."
            ) from error
        return _parse(content, str(path))
    name = str(name_or_path)
    if name not in recipe_names():
        raise unknown_name("recipe", name, recipe_names())
    return _parse(read_recipe(name), name)


def _parse(content: bytes, source: str) -> Recipe:
    try:
        mapping = yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise UsageError(f"{source}: this is no YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(mapping, dict):
        raise UsageError(f"{source}: expected a mapping with the keys of a recipe, not {mapping!r}.")
    given = {str(key): value for key, value in mapping.items()}
    return Recipe(**resolve_options(f"recipe {source!r}", Recipe, given))


def _import(modules: Iterable[str]) -> None:
    """Import modules of the user's, which register what a recipe names."""
    here = os.getcwd()
    for name in modules:
        if here not in sys.path:  # as `python -m` has it, and a console script has not
            sys.path.insert(0, here)
        unknown = UsageError(
            f"imports: expected a module, as in my_package.my_module, but there is no {name!r} in {here} or among "
            "what is installed."
        )
        if not all(part.isidentifier() for part in name.split(".")):
            raise unknown
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if f"{name}.".startswith(f"{error.name}."):
                raise unknown from error
            raise  # what the module itself imports


def _resolved(kind: str, given: Mapping[str, Any], lookup: Callable[[str], Callable[..., Any]]) -> dict[str, Any]:
    """Fill in the defaults of a data set or model, and check its name and options."""
    name = given.get("name")
    if not isinstance(name, str):
        raise UsageError(f"recipe: the {kind} needs a name, as in {{name: ...}}, not {dict(given)!r}.")
    rest = {str(key): value for key, value in given.items() if key != "name"}
    return {"name": name, **resolve_options(f"{kind} {name!r}", lookup(name), rest)}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
