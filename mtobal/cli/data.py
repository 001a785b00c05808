"""The commands for data sets on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mtobal.cli.failures import Failures

if TYPE_CHECKING:
    from jsonargparse import Namespace

Item = TypeVar("Item")


def data(options: Namespace) -> None:
    """Check a data set, or prepare one."""
    commands: dict[str, Callable[[Namespace], None]] = {"check": _check, "prepare": _prepare}
    commands[options.subcommand](options[options.subcommand])


def _check(options: Namespace) -> None:
    from rich.console import Console
    from rich.progress import Progress

    from mtobal import data as data_sets
    from mtobal.data.inspection import find_problems

    path = Path(options.path)
    checks = data_sets.checks(options.name, path)
    console = Console()
    problems = 0
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for problem in progress.track(find_problems(checks), total=len(checks), description="files"):
            if problem is not None:
                problems += 1
                console.print(problem, soft_wrap=True, markup=False, highlight=False)
    if problems:
        raise Failures([f"{path}: {problems} of {len(checks)} checks failed."])
    console.print(f"{path}: all {len(checks)} checks passed.", soft_wrap=True, markup=False, highlight=False)


def _prepare(options: Namespace) -> None:
    from rich.console import Console
    from rich.progress import Progress

    from mtobal import data as data_sets

    source = Path(options.path)
    console = Console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:

        def track(items: Iterable[Item], description: str, total: int) -> Iterable[Item]:
            return progress.track(items, total=total, description=description)

        told = data_sets.prepare(options.name, source, Path(options.out or source), track)
    console.print(told, soft_wrap=True, markup=False, highlight=False)
