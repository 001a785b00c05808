"""The command line: train and compare strategies, report on them, and look them up."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mtobal.cli.bench import bench, contributions, split_specs
from mtobal.cli.catalogue import catalogue
from mtobal.cli.completion import completion
from mtobal.cli.data import data
from mtobal.cli.failures import Failures
from mtobal.cli.parser import make_parser
from mtobal.cli.report import report
from mtobal.errors import UsageError

if TYPE_CHECKING:
    from jsonargparse import Namespace

__all__ = ["main", "split_specs"]

BENCH_EXTRA = ("jsonargparse", "rich", "yaml", "sklearn", "jinja2", "plotly")
"""Packages that the command line needs and the library does not."""

COMMANDS: dict[str, Callable[[Namespace], None]] = {
    "bench": bench,
    "completion": completion,
    "contributions": contributions,
    "data": data,
    "report": report,
    "strategies": catalogue,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Its exit code is 0, 1 after failures, 2 after wrong use, or 130 after Ctrl-C."""
    try:
        options = make_parser().parse_args(arguments)
        COMMANDS[options.subcommand](options[options.subcommand])
    except Failures as failures:
        for line in failures.lines:
            _say(line)
        return 1
    except UsageError as error:
        _say(str(error))
        return 2
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in BENCH_EXTRA:
            raise
        _say(f'the command line needs {package}, which is not installed: pip install "mtobal[bench]"')
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _say(line: str) -> None:
    print(f"mtobal: {line}", file=sys.stderr)
