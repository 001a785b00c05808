"""Lightning's loggers, for those who look at their runs elsewhere too."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from mtobal.bench.plan import Run
from mtobal.bench.records import LOG_FOLDER, run_folder
from mtobal.errors import UsageError, unknown_name

PACKAGES = {"csv": "csv", "tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
"""The loggers, and the package that each of them needs."""


def check_logger(name: str) -> None:
    """Refuse a logger that is not known or not installed."""
    if name not in PACKAGES:
        raise unknown_name("logger", name, PACKAGES)
    if find_spec(PACKAGES[name]) is None:
        raise UsageError(f"logger {name!r} needs {PACKAGES[name]}, which is not installed: pip install {name}.")


def make_logger(name: str, run: Run, title: str, folder: Path) -> Logger:
    """Return the logger of one run; what it writes to disk goes into ``logs`` in the experiment's folder."""
    logs = folder / LOG_FOLDER
    own = run_folder(logs, run.row, run.seed)
    label = f"{run.row}, seed {run.seed}"
    if name == "csv":
        return CSVLogger(own.parent, name="", version=own.name)
    if name == "tensorboard":
        return TensorBoardLogger(own.parent, name="", version=own.name)
    logs.mkdir(exist_ok=True)
    if name == "wandb":
        return WandbLogger(project=title, group=run.row, name=label, save_dir=logs)
    return MLFlowLogger(experiment_name=title, run_name=label, tracking_uri=f"file:{(logs / 'mlruns').resolve()}")
