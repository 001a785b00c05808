"""Names and options that come from text (recipes, the command line), checked against what they stand for."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from mtobal.errors import UsageError, unknown_option


def enter(table: dict[str, Any], kind: str, name: str, new: Callable[..., Any]) -> None:
    """Enter a class or function under a name that is free; the same one again is a notebook cell run twice.

    Raises
    ------
    UsageError
        Something else has the name.
    """
    known = table.get(name)
    if known and (known.__module__, known.__qualname__) != (new.__module__, new.__qualname__):
        raise UsageError(f"{kind} name {name!r} is taken by {known.__module__}.{known.__qualname__}.")
    table[name] = new


def resolve_options(owner: str, function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return every option of `function` with its value: the given ones, checked, and the defaults of the rest.

    Parameters
    ----------
    owner : str
        Whose options these are, for the error.
    function : callable
        A function or dataclass; its options are its keyword-only parameters, each with a type.
    given : mapping
        Options by name.

    Raises
    ------
    UsageError
        Unknown option, missing option, or a value of another type.

    Examples
    --------
    >>> def digits(*, pairs: int = 100, seed: int = 0) -> None: ...
    >>> resolve_options("data set 'digits'", digits, {"pairs": 50})
    {'pairs': 50, 'seed': 0}
    """
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    for name in given:
        if name not in parameters:
            raise unknown_option(owner, name, parameters)
    hints = typing.get_type_hints(function)
    resolved = {}
    for name, parameter in parameters.items():
        if name in given:
            resolved[name] = fit(given[name], hints[name], f"{owner}: {name}")
        elif parameter.default is inspect.Parameter.empty:
            raise UsageError(f"{owner}: {name} is missing; give it {describe(hints[name])}.")
        else:
            resolved[name] = parameter.default
    return resolved


def fit(value: Any, hint: Any, where: str) -> Any:
    """Return `value` as the type of the annotation; a list fits a tuple, and a whole number fits a float.

    Parameters
    ----------
    value : object
        As it came from text.
    hint : type
        int, float, str, bool, None, a literal, a tuple, sequence or mapping of these, or a union.
    where : str
        The option, for the error.

    Raises
    ------
    UsageError
        The value is of another type.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    refused = UsageError(f"{where} should be {describe(hint)}, not {value!r}.")
    if origin in (typing.Union, types.UnionType):
        for argument in arguments:
            try:
                return fit(value, argument, where)
            except UsageError:
                continue
        raise refused
    if origin is typing.Literal:
        if any(value == argument and type(value) is type(argument) for argument in arguments):
            return value
    elif origin is not None and issubclass(origin, Mapping):
        if isinstance(value, Mapping):
            return {str(key): fit(item, arguments[1], where) for key, item in value.items()}
    elif origin is not None:  # a tuple or a sequence
        if isinstance(value, (list, tuple)):
            return tuple(fit(item, arguments[0], where) for item in value)
    elif hint is Any or type(value) is hint:
        return value
    elif hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:  # a text too, because YAML reads 1e-3 as one
            return float(value)
        except ValueError as error:
            raise refused from error
    raise refused


def describe(hint: Any) -> str:
    """Say in words what fits an annotation."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe(argument) for argument in arguments))
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if origin is not None and issubclass(origin, Mapping):
        return "a mapping" if arguments[1] is Any else f"a mapping from names to {describe(arguments[1])}"
    if origin is not None:
        return f"a list, each item {describe(arguments[0])}"
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "none"}
    return words.get(hint, "anything")
