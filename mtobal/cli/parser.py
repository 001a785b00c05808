"""What the command line understands, and what its help says."""

from __future__ import annotations

import argparse
import re
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from mtobal.bench.recipes import recipe_names
from mtobal.errors import UsageError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


def make_parser() -> ArgumentParser:
    """Return the parser of all commands."""
    from jsonargparse import ArgumentParser

    class Parser(ArgumentParser):
        def __init__(self, **settings: Any) -> None:
            # The formatter of argparse shows a default only where the help text asks for it.
            super().__init__(**settings, formatter_class=argparse.HelpFormatter, allow_abbrev=False)

        def error(self, message: str, ex: Exception | None = None) -> Any:
            raise UsageError(f"{' '.join(message.split()).rstrip('.')}; see {self.prog} --help.") from ex

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
        help=f"path of a YAML file, or one of {', '.join(recipe_names())}; the default is digits: two overlaid "
        "digits, some two minutes on a CPU",
    )
    bench.add_argument(
        "--strategies", metavar="SPECS", help='in place of the recipe\'s, such as "ew,uw+mgda(scale=sum)"'
    )
    bench.add_argument(
        "--imports",
        metavar="MODULES",
        help="beside the recipe's: modules of yours, in the current folder or installed, that register "
        "strategies, data sets or models",
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
    bench.add_argument(
        "--trials", type=_count, metavar="N", help="how many settings to try of every row; 8 where --tune is given"
    )
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
