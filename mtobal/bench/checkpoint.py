"""Checkpoints that are either whole or refused."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from mtobal.bench.records import write_bytes_atomic
from mtobal.errors import UsageError

_DIGEST_SIZE = hashlib.sha256().digest_size


class WholeCheckpoints(CheckpointIO):
    """Write checkpoints atomically, behind a digest that tells a damaged one.

    Lightning's own writing does not reach the disk before the name does, and torch reads a flipped bit as
    another number.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        content = buffer.getvalue()
        write_bytes_atomic(Path(path), hashlib.sha256(content).digest() + content)

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        content = Path(path).read_bytes()
        if not _is_whole(content):
            raise UsageError(f"{path}: the checkpoint is damaged; delete it, and the run starts anew.")
        checkpoint: dict[str, Any] = torch.load(
            io.BytesIO(content[_DIGEST_SIZE:]), map_location=map_location or "cpu", weights_only=True
        )
        return checkpoint

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        Path(path).unlink(missing_ok=True)


def is_whole(path: Path) -> bool:
    """Whether the checkpoint is as it was written."""
    return _is_whole(path.read_bytes())


def _is_whole(content: bytes) -> bool:
    return hashlib.sha256(content[_DIGEST_SIZE:]).digest() == content[:_DIGEST_SIZE]
