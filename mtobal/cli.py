"""The command line: train and compare strategies, report on them, and look them up."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mtobal import strategies
from mtobal.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace
    from rich.console import Console

Item = TypeVar("Item")

BENCH_EXTRA = ("jsonargparse", "rich", "yaml", "sklearn", "jinja2", "plotly")
"""Packages that the command line needs and the library does not."""


class FailedRuns(Exception):
    """Some runs of an experiment came to no result; one line for each."""


COMPLETION = """\
[ -n "${ZSH_VERSION-}" ] && autoload -U +X compinit bashcompinit && compinit && bashcompinit
_mtobal() {
    local word="${COMP_WORDS[COMP_CWORD]}" last="${COMP_WORDS[COMP_CWORD-1]}" head="" options="" names=""
    case "${COMP_WORDS[*]:1:$((COMP_CWORD - 1))} " in
CASES
    esac
    if [[ $last == --strategies ]]; then
        head="${word%"${word##*[,+]}"}" names="STRATEGIES"
    elif [[ $word == -* ]]; then
        names="$options"
    elif [[ $last == -* ]]; then
        names=""
    fi
    COMPREPLY=($(compgen -P "$head" -W "$names" -- "${word#"$head"}"))
}
complete -o default -F _mtobal mtobal
"""
"""Where nothing is to be completed, such as the path of a recipe, the shell completes file names."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Its exit code is 0, 1 after failed runs, 2 after wrong use, or 130 after Ctrl-C."""
    try:
        _run(arguments)
    except FailedRuns as error:
        print(error, file=sys.stderr)
        return 1
    except UsageError as error:
        return _fail(str(error))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in BENCH_EXTRA:
            raise
        return _fail(f'the command line needs {package}, which is not installed: pip install "mtobal[bench]"')
    except KeyboardInterrupt:
        return 130
    return 0


def _run(arguments: Sequence[str] | None) -> None:
    options = _parser().parse_args(arguments)
    commands: dict[str, Callable[[Namespace], None]] = {
        "bench": _bench,
        "completion": _completion,
        "contributions": _contributions,
        "data": _data,
        "report": _report,
        "strategies": _strategies,
    }
    commands[options.subcommand](options[options.subcommand])


def _fail(message: str) -> int:
    print(f"mtobal: {message}", file=sys.stderr)
    return 2


def _parser() -> ArgumentParser:
    from jsonargparse import ArgumentParser

    class Parser(ArgumentParser):
        def __init__(self, **settings: Any) -> None:
            # The formatter of argparse shows a default only where the help text asks for it.
            super().__init__(**settings, formatter_class=argparse.HelpFormatter, allow_abbrev=False)

        def error(self, message: str, ex: Exception | None = None) -> Any:
            raise UsageError(f"{' '.join(message.split()).rstrip('.')}; see {self.prog} --help.") from ex

    from importlib.metadata import version

    parser = Parser(
        prog="mtobal",
        version=version("mtobal"),
        description="Multi-task optimisation: train one network on several losses without letting one starve "
        "another.",
    )
    commands = parser.add_subcommands(metavar="COMMAND", description="Each has its own --help.")

    bench = Parser(
        description="Train single-task baselines and every strategy of a recipe, then write the report. "
        "The same command again skips finished runs and resumes an unfinished one. Further strategies and seeds "
        "extend the folder; any other change of the recipe needs a folder of its own."
    )
    bench.add_argument(
        "recipe",
        nargs="?",
        default="digits",
        metavar="RECIPE",
        help="name of a recipe, or path of a YAML file; the default is digits: two overlaid digits, some two "
        "minutes on a CPU",
    )
    bench.add_argument(
        "--strategies", metavar="SPECS", help='in place of the recipe\'s, such as "ew,uw+mgda(scale=sum)"'
    )
    bench.add_argument(
        "--scalarization",
        type=_count,
        metavar="N",
        help="beside the strategies, train equal weights and N random static weights",
    )
    bench.add_argument("--seeds", type=_count, metavar="N", help="train each row with the seeds 0 to N-1")
    bench.add_argument("--epochs", type=_count, metavar="N", help="length of every run")
    bench.add_argument("--tasks", metavar="NAMES", help="some tasks of the data set, such as left,right")
    bench.add_argument("--out", metavar="DIR", help="folder of the experiment; runs/RECIPE by default")
    bench.add_argument(
        "--budget",
        choices=("epochs", "time"),
        help="whether all rows train the recipe's epochs, or as many seconds as ew takes for them",
    )
    bench.add_argument(
        "--tune",
        action="append",
        metavar="OPTION=VALUES",
        help="such as cagrad.c=0.2:0.8 or stch.mu=0.1,1 (repeatable): try settings of every row on the validation "
        "split, baselines too, before it is trained",
    )
    bench.add_argument("--trials", type=_count, metavar="N", help="how many settings to try of every row")
    bench.add_argument(
        "--devices",
        type=_count,
        metavar="N",
        help="train each run on N devices of this machine, which share batches",
    )
    bench.add_argument(
        "--num-nodes", type=_count, metavar="M", help="train each run on M machines, which all run this command"
    )
    bench.add_argument("--logger", metavar="NAME", help="write to csv, tensorboard, wandb or mlflow too")
    bench.add_argument(
        "--jobs", type=_count, default=1, metavar="N", help="train N runs at a time on this machine"
    )
    bench.add_argument(
        "--launcher",
        choices=("local", "ray"),
        default="local",
        help="train on this machine (the default) or on a Ray cluster",
    )
    commands.add_subcommand("bench", bench, help="train and compare strategies, then write the report")

    contributions = Parser(
        description="Measure what the data of each task does for every other task, and how much each needs its "
        "own: train one small model on mini subsets of all tasks, and one for each task with a large subset of "
        "it. From that follow weights for mtobal bench. The same command again skips finished trainings and "
        "resumes an unfinished one."
    )
    contributions.add_argument(
        "recipe", nargs="?", default="digits", metavar="RECIPE", help="as for bench; its strategies are left aside"
    )
    contributions.add_argument("--seeds", type=_count, metavar="N", help="repeat all with the seeds 0 to N-1")
    contributions.add_argument("--epochs", type=_count, metavar="N", help="length of every training")
    contributions.add_argument("--tasks", metavar="NAMES", help="some tasks of the data set, such as left,right")
    contributions.add_argument(
        "--mini", type=_share, metavar="SHARE", help="of its labels that a task keeps in a mini subset, 1/32"
    )
    contributions.add_argument(
        "--large", type=_share, metavar="SHARE", help="of its labels that a task keeps in its large subset, 1/4"
    )
    contributions.add_argument(
        "--out", metavar="DIR", help="folder of the measurement; runs/RECIPE-contributions by default"
    )
    commands.add_subcommand(
        "contributions", contributions, help="measure what tasks do for each other, and weigh them by it"
    )

    report = Parser(
        description="Write report.html, report.md, report.json, results.csv and differences.csv into the folder "
        "of an experiment. With a second folder, say what changed from the first to it beyond noise, and write "
        "changes.md and changes.csv into it."
    )
    report.add_argument("folder", metavar="DIR", help="such as runs/digits")
    report.add_argument("later", nargs="?", metavar="LATER", help="a second folder, to compare with the first")
    commands.add_subcommand("report", report, help="write the report of an experiment")

    check = Parser(description="Look at every file of a data set on disk, and say what is wrong with which.")
    check.add_argument("name", metavar="NAME", help="such as nyuv2")
    check.add_argument("path", metavar="PATH", help="its folder or file")
    prepare = Parser(
        description="Convert the published files of a data set into what is read in training. The same command "
        "again goes on where it was stopped."
    )
    prepare.add_argument("name", metavar="NAME", help="such as nyuv2")
    prepare.add_argument("path", metavar="PATH", help="folder of the published files")
    prepare.add_argument("--out", metavar="DIR", help="where the result goes; by default that folder too")
    data = Parser(description="Data sets on disk: find what is wrong with one, convert the published files.")
    commands.add_subcommand("data", data, help="check a data set on disk, or prepare one")
    data_commands = data.add_subcommands(metavar="COMMAND", description="Each has its own --help.")
    data_commands.add_subcommand("check", check, help="find what is wrong with a data set")
    data_commands.add_subcommand("prepare", prepare, help="convert the published files of a data set")

    catalogue = Parser(description="List all strategies, or show the card of one: what it does, costs and needs.")
    catalogue.add_argument("name", nargs="?", metavar="NAME", help="such as pcgrad")
    commands.add_subcommand("strategies", catalogue, help="list the strategies, or show the card of one")

    completion = Parser(
        description="Print the script by which bash and zsh complete commands, options, and the names of recipes, "
        "data sets and strategies. Write it to a file, and source that in .bashrc or .zshrc."
    )
    commands.add_subcommand("completion", completion, help="print the completion script for bash and zsh")

    for name, command in (
        ("bench", bench),
        ("contributions", contributions),
        ("report", report),
        ("data", data),
        ("data check", check),
        ("data prepare", prepare),
        ("strategies", catalogue),
        ("completion", completion),
    ):
        command.prog = f"mtobal {name}"
    return parser


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]*", str(text)):
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, not {text!r}")
    return int(text)


def _share(text: str) -> float:
    """Read a share such as 0.25 or 1/32."""
    numerator, _, denominator = str(text).partition("/")
    try:
        share = float(numerator) / float(denominator or 1)
    except (ValueError, ZeroDivisionError):
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(
            f"expected a share above 0 and up to 1, such as 0.25 or 1/4, not {text!r}"
        )
    return share


def _bench(options: Namespace) -> None:
    from mtobal.bench.recipe import load_recipe

    recipe = load_recipe(options.recipe)
    changes: dict[str, Any] = {
        "strategies": None if options.strategies is None else tuple(split_specs(options.strategies)),
        "tasks": None if options.tasks is None else tuple(split_specs(options.tasks)),
        "scalarization": options.scalarization,
        "seeds": options.seeds,
        "epochs": options.epochs,
        "budget": options.budget,
        "devices": options.devices,
        "num_nodes": options.num_nodes,
        "tune": None if options.tune is None else tuple(options.tune),
        "trials": options.trials,
    }
    recipe = dataclasses.replace(recipe, **{key: value for key, value in changes.items() if value is not None})
    # Lightning takes seconds to import; what is wrong with the recipe is told before.
    from rich.console import Console

    from mtobal.bench.experiment import run_experiment
    from mtobal.bench.records import RESULT_FILE
    from mtobal.bench.teams import Node

    folder = Path(options.out or Path("runs") / Path(options.recipe).stem)
    console = Console()
    try:
        failures = run_experiment(
            recipe, folder, console, jobs=options.jobs, launcher=options.launcher, logger=options.logger
        )
    except KeyboardInterrupt:
        print("mtobal: interrupted; the same command goes on after the last finished epoch.", file=sys.stderr)
        raise
    if Node.here(recipe).number > 0:
        return  # the first of the machines reports
    if any(folder.glob(f"*/seed-*/{RESULT_FILE}")):
        _show_report(folder, console)
    if failures:
        raise FailedRuns(
            "\n".join(
                f"mtobal: {failure.row}, seed {failure.seed} failed: {failure.reason}" for failure in failures
            )
        )


def _contributions(options: Namespace) -> None:
    from mtobal.bench.recipe import load_recipe

    recipe = load_recipe(options.recipe)
    changes: dict[str, Any] = {
        "tasks": None if options.tasks is None else tuple(split_specs(options.tasks)),
        "seeds": options.seeds,
        "epochs": options.epochs,
    }
    recipe = dataclasses.replace(recipe, **{key: value for key, value in changes.items() if value is not None})
    from rich.console import Console

    from mtobal.bench.contributions import measure_contributions
    from mtobal.report.contributions import build_contributions, console_tables

    folder = Path(options.out or Path("runs") / f"{Path(options.recipe).stem}-contributions")
    shares = {name: options[name] for name in ("mini", "large") if options[name] is not None}
    console = Console()
    try:
        measurement = measure_contributions(recipe, folder, console, **shares)
    except KeyboardInterrupt:
        print("mtobal: interrupted; the same command goes on after the last finished epoch.", file=sys.stderr)
        raise
    page = build_contributions(folder, measurement)
    weights = measurement.specs()["static"]
    lines = [
        *measurement.notes,
        f'Train with these weights: mtobal bench {options.recipe} --strategies "ew,{weights}"',
        f"For a recipe: {folder / 'weights.yaml'}",
        f"Page: {page}",
    ]
    for table in console_tables(measurement):
        console.print(table)
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _report(options: Namespace) -> None:
    from rich.console import Console

    if options.later is None:
        _show_report(Path(options.folder), Console())
    else:
        _show_changes(Path(options.folder), Path(options.later), Console())


def _show_report(folder: Path, console: Console) -> None:
    from mtobal.bench.records import load_experiment
    from mtobal.report import console_table, summary_table, write_report

    summary = summary_table(load_experiment(folder))
    page = write_report(summary)
    console.print(console_table(summary))
    console.print(f"Report: {page}", soft_wrap=True, markup=False, highlight=False)


def _show_changes(before: Path, after: Path, console: Console) -> None:
    from mtobal.report import build_changes, changes_table

    console.print(changes_table(build_changes(before, after)))
    console.print(f"Every comparison: {after / 'changes.md'}", soft_wrap=True, markup=False, highlight=False)


def _data(options: Namespace) -> None:
    commands: dict[str, Callable[[Namespace], None]] = {"check": _data_check, "prepare": _data_prepare}
    commands[options.subcommand](options[options.subcommand])


def _data_check(options: Namespace) -> None:
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
        print(f"mtobal: {path}: {problems} of {len(checks)} checks failed.", file=sys.stderr)
        sys.exit(1)
    console.print(f"{path}: all {len(checks)} checks passed.", soft_wrap=True, markup=False, highlight=False)


def _data_prepare(options: Namespace) -> None:
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


def _strategies(options: Namespace) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cards = strategies.available()
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    if options.name is None:
        table.add_column("name", no_wrap=True)
        table.add_column("summary")
        table.add_column("passes", max_width=10)  # some cards say it in a sentence
        for place in dict.fromkeys(card.place for card in cards.values()):
            table.add_row(Text(place, style="bold"))
            for name, card in cards.items():
                if card.place == place:
                    table.add_row(f"  {name}", card.summary, card.backward_passes)
        table.caption = "passes: backward passes of a step, with K tasks"
        table.caption_justify = "left"
    elif options.name in cards:
        table.add_column("name")
        table.add_column(options.name)
        facts = dataclasses.asdict(cards[options.name])
        del facts["name"]
        for fact, value in facts.items():
            table.add_row(fact.replace("_", " "), Text(_shown(value)))
    else:
        raise unknown_name("strategy", options.name, cards)
    Console().print(table)


def _completion(options: Namespace) -> None:
    from mtobal import data as data_sets
    from mtobal.bench.recipe import recipe_names

    positionals = {
        "bench": recipe_names(),
        "contributions": recipe_names(),
        "data check": data_sets.available(),
        "data prepare": data_sets.available(),
        "strategies": list(strategies.available()),
    }
    cases = [
        f'        "{path} "*) options="{" ".join(flags)}" names="{" ".join(positionals.get(path, commands))}" ;;'
        for path, flags, commands in _command_paths(_parser())
    ]
    script = COMPLETION.replace("CASES", "\n".join(cases)).replace("STRATEGIES", " ".join(strategies.available()))
    print(script, end="")


def _command_paths(parser: argparse.ArgumentParser, path: str = "") -> list[tuple[str, list[str], list[str]]]:
    """List each command with its options and its sub-commands, and those of a command before it."""
    flags: list[str] = []
    children: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        flags += [
            flag for flag in action.option_strings if flag.startswith("--") and action.help != argparse.SUPPRESS
        ]
        if isinstance(action, argparse._SubParsersAction):
            children = dict(action.choices)
    below = [
        found for name, child in children.items() for found in _command_paths(child, f"{path} {name}".strip())
    ]
    return [*below, (path, flags, list(children))]


def split_specs(text: str) -> list[str]:
    """Split at the commas outside of brackets.

    Examples
    --------
    >>> split_specs("ew, uw+cagrad(c=0.4, scale=sum), static(weights=[1, 2])")
    ['ew', 'uw+cagrad(c=0.4, scale=sum)', 'static(weights=[1, 2])']
    """
    parts = [""]
    depth = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_shown(item)}" for key, item in value.items()) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
