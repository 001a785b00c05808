"""The command that prints the script by which a shell completes the others."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from mtobal import strategies
from mtobal.bench.recipes import recipe_names
from mtobal.cli.parser import make_parser

if TYPE_CHECKING:
    from jsonargparse import Namespace

SCRIPT = """\
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


def completion(options: Namespace) -> None:
    """Print the script for bash and zsh."""
    from mtobal import data as data_sets

    positionals = {
        "bench": recipe_names(),
        "contributions": recipe_names(),
        "data check": data_sets.checkable(),
        "data prepare": data_sets.preparable(),
        "strategies": list(strategies.available()),
    }
    cases = [
        f'        "{path} "*) options="{" ".join(flags)}" names="{" ".join(positionals.get(path, commands))}" ;;'
        for path, flags, commands in _command_paths(make_parser())
    ]
    script = SCRIPT.replace("CASES", "\n".join(cases)).replace("STRATEGIES", " ".join(strategies.available()))
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
