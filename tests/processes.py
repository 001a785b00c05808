"""Running a function in several processes that talk through gloo."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_on_ranks(folder: Path, function: Callable[..., Any], *args: Any, ranks: int = 2) -> list[Any]:
    """Call ``function(rank, *args)`` in each process of a new group, and return what it returns, by rank."""
    folder.mkdir(parents=True, exist_ok=True)
    mp.start_processes(_work, (folder, function, args, ranks), nprocs=ranks, start_method="fork")
    return [pickle.loads((folder / str(rank)).read_bytes()) for rank in range(ranks)]


def _work(rank: int, folder: Path, function: Callable[..., Any], args: tuple[Any, ...], ranks: int) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    try:
        result = function(rank, *args)
        (folder / str(rank)).write_bytes(pickle.dumps(result))
    finally:
        dist.destroy_process_group()
