"""The callbacks and every strategy, written in YAML."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.cli import LightningCLI

import fits
from mtobal.callbacks import ConflictMonitor, MultiTaskBalancer, TaskAffinity, TaskTable

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    # Lightning asks jsonargparse in the way of older releases.
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter is intended to run from within Python"),
]


class Module(fits.Module):
    def __init__(self, lr: float = 0.05) -> None:
        super().__init__(lr=lr)

    def train_dataloader(self):
        return fits.loader()


def run(tmp_path: Path, callbacks: list, *overrides: str) -> LightningCLI:
    options = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": str(tmp_path),
    }
    config = {"trainer": {**options, "callbacks": callbacks}, "model": {"lr": 0.1}}
    (tmp_path / "written.yaml").write_text(yaml.safe_dump(config))
    return LightningCLI(
        Module, args=["fit", f"--config={tmp_path / 'written.yaml'}", *overrides], seed_everything_default=0
    )


def balancer(cli: LightningCLI) -> MultiTaskBalancer:
    [callback] = [callback for callback in cli.trainer.callbacks if isinstance(callback, MultiTaskBalancer)]
    return callback


@pytest.mark.parametrize(
    ("written", "spec"),
    [
        ("uw", "uw"),
        ("uw(lr=0.01)+cagrad(c=0.4)", "uw(lr=0.01)+cagrad(c=0.4)"),
        ({"uw": {"lr": 0.01}, "cagrad": {"c": 0.4}}, "uw(lr=0.01)+cagrad(c=0.4)"),
        ({"uw": None, "pcgrad": None}, "uw+pcgrad"),
        ({"pcgrad": None, "samo": {"rho": 0.001}}, "pcgrad+samo(rho=0.001)"),
    ],
    ids=str,
)
def test_a_strategy_as_text_and_as_mapping(written: object, spec: str, tmp_path: Path) -> None:
    arguments = {"strategy": written, "gradients": "loop", "nonfinite": "drop_task", "shared": "net.encoder"}
    cli = run(tmp_path, [{"class_path": "mtobal.callbacks.MultiTaskBalancer", "init_args": arguments}])
    callback = balancer(cli)
    assert sorted(callback.strategy.spec.split("+")) == sorted(spec.split("+"))
    assert callback.nonfinite == "drop_task"
    assert len(callback.balancer.weights) == 3


def test_the_other_callbacks(tmp_path: Path) -> None:
    callbacks = [
        {"class_path": "mtobal.callbacks.MultiTaskBalancer", "init_args": {"strategy": "mgda"}},
        {"class_path": "mtobal.callbacks.ConflictMonitor", "init_args": {"every_n_steps": 2, "depth": 2}},
        {"class_path": "mtobal.callbacks.TaskAffinity", "init_args": {"every_n_steps": 3, "lr": 0.01}},
        {"class_path": "mtobal.callbacks.TaskTable", "init_args": {"every_n_steps": 3}},
    ]
    made = {type(callback): callback for callback in run(tmp_path, callbacks).trainer.callbacks}
    assert made[ConflictMonitor].steps == [0, 2, 4]
    assert made[TaskAffinity].matrix().shape == (3, 3)
    assert made[TaskTable].every_n_steps == 3


def test_on_the_command_line(tmp_path: Path) -> None:
    cli = run(
        tmp_path,
        [],
        "--trainer.callbacks+=mtobal.callbacks.MultiTaskBalancer",
        "--trainer.callbacks.strategy=rlw+pcgrad",
    )
    assert balancer(cli).strategy.spec == "rlw+pcgrad"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategy": "pcgard"}, "unknown strategy 'pcgard': did you mean 'pcgrad'?"),
        ({"strategy": {"cagrad": {"d": 1}}}, "strategy 'cagrad' has no option 'd'"),
        ({"strategy": "mgda+pcgrad"}, "mgda"),
        ({"strategy": "uw", "nonfinite": "ignore"}, "ignore"),
    ],
    ids=str,
)
def test_a_bad_value_gives_a_clear_line(arguments: dict, message: str, tmp_path: Path, capsys) -> None:
    with pytest.raises((SystemExit, ValueError)) as caught:
        run(tmp_path, [{"class_path": "mtobal.callbacks.MultiTaskBalancer", "init_args": arguments}])
    print(caught.value, file=sys.stderr)
    assert message in capsys.readouterr().err


def test_the_config_that_lightning_saves_builds_the_same(tmp_path: Path) -> None:
    arguments = {"strategy": {"uw": {"lr": 0.01}, "cagrad": {"c": 0.4}}}
    run(tmp_path, [{"class_path": "mtobal.callbacks.MultiTaskBalancer", "init_args": arguments}])
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    again = run(tmp_path, saved["trainer"]["callbacks"], "--trainer.fast_dev_run=true")
    assert sorted(balancer(again).strategy.spec.split("+")) == ["cagrad(c=0.4)", "uw(lr=0.01)"]
