"""The records of the golden files."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Record = dict[str, Any]


@cache
def load(file: str) -> list[Record]:
    """Read a golden file from the folder that the environment names, or from the project's own."""
    folder = Path(os.environ.get("MTOBAL_GOLDEN_DIR") or Path(__file__).parent / "data")
    return json.loads((folder / file).read_text())


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def assert_close(record: Record, actual: Tensor, expected: Any, what: str) -> None:
    """Compare within the tolerance of the record, which is absolute."""
    error = (actual.double() - tensor(expected)).abs().max().item()
    assert error <= record["tolerance"], f"{what} is off by {error:.3e}, tolerance {record['tolerance']:.1e}"
