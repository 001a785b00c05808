"""Data sets, models and strategies of the user's own, in the command and in every process that it starts."""

from __future__ import annotations

import io
import pickle
import sys
from pathlib import Path

import pytest
from rich.console import Console

from command_line import assert_refused
from experiments import write_recipe
from mtobal.bench.experiment import run_experiment
from mtobal.bench.recipe import load_recipe
from mtobal.bench.records import load_experiment
from mtobal.cli import main
from mtobal.data import registry as data_registry
from mtobal.errors import UsageError
from mtobal.models import registry as model_registry
from mtobal.strategies import registry as strategy_registry

OWN = """
import torch
from torch import nn

from mtobal import data, models, strategies
from mtobal.tasks import Classification, Regression


@data.register("own_data")
def own_data(*, samples: int = 80) -> data.MultiTaskData:
    inputs = torch.randn(samples, 6, generator=torch.Generator().manual_seed(0))
    targets = {"sum": inputs.sum(1, keepdim=True), "largest": inputs.argmax(1)}
    split = data.InMemoryDataset(inputs, targets)
    tasks = (Regression("sum"), Classification("largest", num_classes=6))
    return data.MultiTaskData(split, data.InMemoryDataset(inputs, targets), split, tasks, (6,))


@models.register("own_model")
def own_model(input_shape, tasks, *, features: int = 4) -> models.HardSharing:
    heads = {task.name: nn.Linear(features, task.out_features) for task in tasks}
    return models.HardSharing(nn.Sequential(nn.Linear(*input_shape, features), nn.Tanh()), heads)


@strategies.register("own_strategy")
class OwnStrategy(strategies.Aggregation):
    def solve(self, gramian, step):
        return torch.eye(len(gramian), dtype=gramian.dtype)[0]
"""


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with modules of the user's, of which this process forgets everything afterwards."""
    folder = tmp_path / "desk"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(data_registry, "_DATA_SETS", dict(data_registry._DATA_SETS))
    monkeypatch.setattr(model_registry, "_MODELS", dict(model_registry._MODELS))
    monkeypatch.setattr(strategy_registry, "_REGISTRY", dict(strategy_registry._REGISTRY))
    return folder


def write_module(folder: Path, name: str, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / f"{name}.py").write_text(content, encoding="utf-8")
    monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.slow
def test_own_things_train_in_worker_processes_and_are_in_the_record(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_module(desk, "own", OWN, monkeypatch)
    recipe = write_recipe(
        desk / "own.yaml",
        imports=["own"],
        data={"name": "own_data", "samples": 60},
        model={"name": "own_model"},
        strategies=["uw+own_strategy"],
        epochs=1,
    )
    assert main(["bench", str(recipe), "--out", "out", "--jobs", "2"]) == 0
    found = load_experiment(desk / "out")
    assert [run.row for run in found.runs] == ["single(sum)", "single(largest)", "uw+own_strategy"]
    for run in found.runs:
        assert run.config["recipe"]["imports"] == ["own"]
        assert run.config["recipe"]["data"] == {"name": "own_data", "samples": 60}
        assert run.config["recipe"]["model"] == {"name": "own_model", "features": 4}


def test_a_recipe_that_was_sent_to_a_process_brings_its_names_along(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_module(desk, "sent", OWN, monkeypatch)
    recipe = load_recipe(write_recipe(desk / "own.yaml", imports=["sent", "sent"], data={"name": "own_data"}))
    assert recipe.imports == ("sent",)
    sent = pickle.dumps(recipe)
    monkeypatch.delitem(sys.modules, "sent")
    data_registry._DATA_SETS.pop("own_data")
    assert pickle.loads(sent) == recipe
    assert "own_data" in data_registry.available()


def test_a_strategy_of_ones_own_joins_an_experiment(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(desk / "tiny.yaml", strategies=["ew"], epochs=1)
    assert main(["bench", str(recipe), "--out", "out"]) == 0
    write_module(desk, "joined", OWN, monkeypatch)
    assert main(["bench", str(recipe), "--out", "out", "--imports", "joined", "--strategies", "own_strategy"]) == 0
    written = load_recipe(desk / "out" / "recipe.yaml")
    assert (written.imports, written.strategies) == (("joined",), ("ew", "own_strategy"))
    # The report, and a call that names neither, do without knowing the module beforehand.
    strategy_registry._REGISTRY.pop("own_strategy")
    monkeypatch.delitem(sys.modules, "joined")
    capsys.readouterr()
    assert main(["report", "out"]) == 0
    assert "own_strategy" in capsys.readouterr().out
    assert main(["bench", str(recipe), "--out", "out"]) == 0


@pytest.mark.parametrize(
    ("content", "changes", "message"),
    [
        (
            "",
            {"imports": ["nowhere"]},
            "imports: expected a module, as in my_package.my_module, but there is no 'now",
        ),
        ("", {"imports": ["./wrong"]}, "there is no './wrong' in "),
        ("", {"imports": ["wrong.deeper"]}, "there is no 'wrong.deeper' in "),
        ("", {"imports": "wrong"}, "imports should be a list, each item a text, not 'wrong'"),
        (OWN, {"data": {"name": "own_date"}}, "unknown data set 'own_date': did you mean 'own_data'?"),
        (OWN, {"data": {"name": "own_data", "sample": 3}}, "data set 'own_data' has no option 'sample'"),
        (OWN, {"model": {"name": "own_model", "features": "x"}}, "features should be a whole number, not 'x'"),
        (
            OWN.replace("(*, samples", "(samples"),
            {},
            "parameters are keyword-only and have a type each, as in f(*, sa",
        ),
        (
            OWN.replace("samples: int", "samples"),
            {},
            "parameters are keyword-only and have a type each, as in f(*, sa",
        ),
        (
            OWN.replace("tasks, *, f", "tasks, f"),
            {},
            "expected a function of the input shape and the tasks, whose ot",
        ),
        (
            OWN.replace("def own_model(input_shape, ", "def own_model("),
            {},
            "not own_model(tasks, *, features: int",
        ),
        (
            OWN.replace('register("own_data")', 'register("rooms")'),
            {},
            "data set name 'rooms' is taken by mtobal.data.",
        ),
        (
            OWN.replace('register("own_model")', 'register("mtan_segnet")'),
            {},
            "model name 'mtan_segnet' is taken by mt",
        ),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    content: str,
    changes: dict[str, object],
    message: str,
    desk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_module(desk, "wrong", content.replace("-> models.HardSharing", "-> object"), monkeypatch)
    recipe = write_recipe(tmp_path / "tiny.yaml", **{"imports": ["wrong"], "data": {"name": "digits"}, **changes})
    (tmp_path / "empty").mkdir()
    arguments = ["bench", str(recipe), "--out", str(tmp_path / "empty" / "out")]
    assert_refused(arguments, message, capsys, tmp_path / "empty")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "return data.MultiTaskData(",
            "return (",
            "data set 'own_data': expected MultiTaskData from other.own_data",
        ),
        (
            "return models.HardSharing(",
            "return nn.Sequential(nn.Tanh()) or (",
            "model 'own_model': expected a MultiT",
        ),
    ],
)
def test_a_function_that_returns_something_else_is_named(
    old: str, new: str, message: str, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_module(desk, "other", OWN.replace(old, new), monkeypatch)
    path = write_recipe(
        desk / "own.yaml", imports=["other"], data={"name": "own_data"}, model={"name": "own_model"}
    )
    with pytest.raises(UsageError, match=message):
        run_experiment(load_recipe(path), desk / "out", Console(file=io.StringIO()))
    assert not (desk / "out").exists()


def test_a_fault_of_the_module_itself_is_shown_where_it_is(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_module(desk, "faulty", "import nothing_of_that_name", monkeypatch)
    with pytest.raises(ModuleNotFoundError, match="nothing_of_that_name"):
        load_recipe(write_recipe(desk / "own.yaml", imports=["faulty"]))
