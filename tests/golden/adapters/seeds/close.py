"""Comparison of numbers that were computed in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from golden.records import tensor

TOLERANCE = 1e-10


def assert_equal(actual: Tensor | float, expected: Any, what: str, tolerance: float = TOLERANCE) -> None:
    """Compare within the tolerance, relative for numbers above one."""
    found, wanted = torch.as_tensor(actual, dtype=torch.float64).detach(), tensor(expected)
    assert found.shape == wanted.shape, f"{what} has shape {tuple(found.shape)}, not {tuple(wanted.shape)}"
    error = ((found - wanted).abs() / wanted.abs().clamp(min=1.0)).max().item()
    assert error <= tolerance, f"{what} is off by {error:.3e}"
