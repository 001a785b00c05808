"""The random orders in which the tasks of PCGrad and GradVac visit each other."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def draw_visits(num_tasks: int, generator: torch.Generator | None) -> Tensor:
    """Draw one permutation of the other tasks for each task, of shape (K, K - 1)."""
    draws = torch.rand(num_tasks, num_tasks, generator=generator).numpy()
    np.fill_diagonal(draws, 2.0)  # sorts each task behind all the others of its row
    return torch.from_numpy(draws.argsort(axis=1)[:, :-1])
