"""From a spec to strategies: ``"uw+cagrad(c=0.4)"``, a mapping from YAML, or instances."""

from __future__ import annotations

import ast
import inspect
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from mtobal.errors import UsageError, unknown_option
from mtobal.options import fit
from mtobal.strategies.base import Strategy
from mtobal.strategies.composition import Composition
from mtobal.strategies.registry import lookup, options
from mtobal.strategies.torchjd import adapt, is_torchjd

Spec = str | Strategy | Composition | nn.Module | Mapping[str, Any]

_WORDS = {"true": True, "false": False, "none": None, "null": None, "inf": float("inf")}


def build(spec: Spec) -> Composition:
    """Build strategies from a spec.

    Parameters
    ----------
    spec : str, Strategy, Composition, aggregator or weighting of TorchJD, or mapping
        ``"name(option=value, ...)+name(...)"``; or an instance; or a mapping from names to options, as it
        comes from YAML: ``{"uw": None, "cagrad": {"c": 0.4}}``.

    Returns
    -------
    Composition
        The strategies, each in its place.

    Raises
    ------
    UsageError
        Unknown strategy or option, a value of the wrong type, or two strategies for one place.

    Examples
    --------
    >>> import mtobal
    >>> mtobal.strategies.build("uw(lr=0.01)+pcgrad")
    Composition('uw(lr=0.01)+pcgrad')
    >>> mtobal.strategies.build({"uw": {"lr": 0.01}, "pcgrad": None})
    Composition('uw(lr=0.01)+pcgrad')
    """
    if isinstance(spec, Composition):
        return spec
    if isinstance(spec, Strategy):
        return Composition([spec], spec.card.name or type(spec).__name__)
    if is_torchjd(spec):
        return Composition([adapt(spec)], f"torchjd.{type(spec).__name__}")
    if isinstance(spec, str):
        parts = parse(spec)
    elif isinstance(spec, Mapping):
        parts = [(str(name), _as_options(name, given)) for name, given in spec.items()]
    else:
        raise UsageError(
            "a strategy is given as a string such as 'uw+pcgrad', an instance or a mapping from names to "
            f"options, not as {type(spec).__name__}."
        )
    return Composition([_instantiate(name, given) for name, given in parts], _canonical(parts))


def parse(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Split a spec into names and options, without looking the names up.

    Examples
    --------
    >>> parse("uw + mgda(normalization=l2, scale='sum')")
    [('uw', {}), ('mgda', {'normalization': 'l2', 'scale': 'sum'})]
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise _malformed(text) from error
    parts: list[tuple[str, dict[str, Any]]] = []
    for term in _terms(tree, text):
        if isinstance(term, ast.Name):
            parts.append((term.id, {}))
        elif isinstance(term, ast.Call) and isinstance(term.func, ast.Name):
            if term.args or any(keyword.arg is None for keyword in term.keywords):
                raise UsageError(f"strategy spec {text!r}: options are written name=value.")
            given = {str(keyword.arg): _value(keyword.value, text) for keyword in term.keywords}
            parts.append((term.func.id, given))
        else:
            raise _malformed(text)
    return parts


def _terms(tree: ast.expr, text: str) -> list[ast.expr]:
    if isinstance(tree, ast.BinOp):
        if not isinstance(tree.op, ast.Add):
            raise _malformed(text)
        return [*_terms(tree.left, text), tree.right]
    return [tree]


def _value(node: ast.expr, text: str) -> Any:
    """Read a literal; bare words are strings, and a nested spec stays text."""
    if isinstance(node, ast.Name):
        return _WORDS.get(node.id.lower(), node.id)
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(item, text) for item in node.elts]
    if isinstance(node, ast.Dict):
        keys = [_malformed_key(text) if key is None else _value(key, text) for key in node.keys]
        return dict(zip(keys, [_value(item, text) for item in node.values], strict=True))
    if isinstance(node, ast.Call) or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add)):
        return ast.unparse(node).replace(" + ", "+")
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise UsageError(
            f"strategy spec {text!r}: cannot read the value {ast.unparse(node)!r}; "
            "write a number, a word, a list or a mapping."
        ) from error


def _malformed_key(text: str) -> typing.NoReturn:
    raise _malformed(text)


def _malformed(text: str) -> UsageError:
    hint = ", with underscores in names" if "-" in text else ""
    return UsageError(f"cannot read strategy spec {text!r}: expected name(option=value, ...)+name(...){hint}.")


def _as_options(name: str, given: object) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise UsageError(f"strategy {name!r}: options must be a mapping, not {given!r}.")
    return {str(key): value for key, value in given.items()}


def _canonical(parts: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Write parts as the spec that reads back as them."""

    def call(name: str, given: Mapping[str, Any]) -> str:
        arguments = ", ".join(f"{option}={_literal(value)}" for option, value in given.items())
        return f"{name}({arguments})" if given else name

    return "+".join(call(name, given) for name, given in parts)


def _literal(value: Any) -> str:
    if isinstance(value, str) and value.isidentifier() and value.lower() not in _WORDS:
        return value
    return repr(value)


def _instantiate(name: str, given: Mapping[str, Any]) -> Strategy:
    cls = lookup(name)
    known = options(cls)
    hints = _hints(cls)
    for option in given:
        if option not in known:
            raise unknown_option(f"strategy {name!r}", option, known)
    checked = {
        option: fit(value, hints.get(option, Any), f"strategy {name!r}: {option}")
        for option, value in given.items()
    }
    missing = [
        option for option, default in known.items() if default is inspect.Parameter.empty and option not in given
    ]
    if missing:
        raise UsageError(f"strategy {name!r} needs a value for {', '.join(missing)}: {name}({missing[0]}=...).")
    return cls(**checked)


def _hints(cls: type[Strategy]) -> dict[str, Any]:
    hints: dict[str, Any] = {}
    for owner in cls.__mro__:
        if "__init__" in vars(owner):
            for option, hint in typing.get_type_hints(vars(owner)["__init__"]).items():
                hints.setdefault(option, hint)
    return hints
