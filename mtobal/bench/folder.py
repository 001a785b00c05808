"""The folder that a command writes to: it holds nothing else, and no second command writes to it meanwhile."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TextIO

from mtobal.errors import UsageError

LOCK_FILE = ".lock"
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a file system answers that knows none, such as some of a cluster."""


@contextmanager
def claimed(folder: Path, kind: str, marker: str) -> Iterator[None]:
    """Keep other commands from writing to a folder, which is made if there is none.

    The system ends the claim with the process, in whatever way that ends.

    Parameters
    ----------
    folder : Path
        The folder.
    kind, marker : str
        What it should hold if it is not empty, in words, and the file by which that is known.

    Raises
    ------
    UsageError
        Another command has claimed it, or it holds something else.
    """
    if folder.is_dir() and not (folder / marker).is_file() and _holds_files(folder):
        raise UsageError(
            f"{folder}: expected {kind} or an empty folder, but there is no {marker} among its files; choose "
            "another --out."
        )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_FILE
    with _locked(path) as file:
        try:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}, since {datetime.now():%Y-%m-%d %H:%M}")
            file.flush()
            yield
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def writing_to(folder: Path, advice: str = "choose another --out") -> Iterator[None]:
    """Turn a full disk or a folder that refuses files into an error that names it, and says what to do."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"cannot write to {error.filename or folder}: {error.strerror or error}; {advice}."
        ) from error


def _holds_files(folder: Path) -> bool:
    return any(path.name != LOCK_FILE for path in folder.iterdir())


def _locked(path: Path) -> TextIO:
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            with file:
                file.seek(0)
                holder = file.read() or "another command"
            raise UsageError(
                f"{path.parent} is in use by {holder}: wait until it ends, or choose another --out."
            ) from error
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                file.close()
                raise
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # its holder has removed it since it was opened
