"""A recipe small enough for tests: real scans, a real network, a second a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from mtobal.bench.records import RunRecord, load_experiment

TINY: dict[str, Any] = {
    "title": "Tiny",
    "data": {"name": "digits", "train_pairs": 120, "validation_pairs": 60, "test_pairs": 60},
    "model": {"name": "hard_sharing", "channels": [4, 8], "features": 8},
    "batch_size": 20,
    "learning_rate": 0.01,
    "epochs": 2,
    "strategies": ["ew", "uw+pcgrad"],
    "seeds": 1,
    "accelerator": "cpu",
}


def write_recipe(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump({**TINY, **changes}, sort_keys=False), encoding="utf-8")
    return path


def untimed(record: RunRecord) -> RunRecord:
    """The record without what the clock says."""
    epochs = tuple(dataclasses.replace(epoch, seconds=0.0) for epoch in record.epochs)
    return dataclasses.replace(record, epochs=epochs, seconds_per_step=0.0, training_seconds=0.0)


def outcome(folder: Path) -> list[RunRecord]:
    """What an experiment came to, without times."""
    return [untimed(run) for run in load_experiment(folder).runs]
