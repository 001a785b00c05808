"""From parsed JSON to typed records; a value of another type is named with its place."""

from __future__ import annotations

import dataclasses
import json
import math
import types
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints


class Mismatch(Exception):
    """A value that is not of the declared type; the text says where."""


@cache
def _fields(cls: type[Any]) -> dict[str, Any]:
    return get_type_hints(cls)


def decode(expected: Any, value: Any, where: str) -> Any:
    """Turn parsed JSON into the type `expected`: dataclasses, tuples, string-keyed dicts, scalars; null is NaN."""
    if expected is Any:
        return value
    if dataclasses.is_dataclass(expected):
        return _decode_dataclass(expected, value, where)
    origin, args = get_origin(expected), get_args(expected)
    if origin is tuple:
        items = _expect(value, list, "a list", where)
        return tuple(decode(args[0], item, f"{where}[{index}]") for index, item in enumerate(items))
    if origin is dict:
        mapping = _expect(value, dict, "an object", where)
        return {key: decode(args[1], item, f"{where}[{key!r}]") for key, item in mapping.items()}
    if origin is types.UnionType:  # a scalar or None
        return None if value is None else decode(args[0], value, where)
    if origin is Literal:
        if value not in args:
            raise Mismatch(f"{where}: expected one of {', '.join(map(repr, args))}, got {shown(value)}")
        return value
    if expected is float:
        if value is None:
            return math.nan
        return float(_expect(value, (int, float), "a number", where))
    return _expect(
        value,
        expected,
        {str: "a text", int: "an integer", bool: "true or false"}[expected],
        where,
    )


def _decode_dataclass(cls: Any, value: Any, where: str) -> Any:
    mapping = _expect(value, dict, "an object", where or "the record")
    fields = _fields(cls)
    place = f"{where}: " if where else ""
    if missing := fields.keys() - mapping.keys():
        raise Mismatch(f"{place}expected the fields {', '.join(sorted(missing))}, which are missing")
    if unknown := mapping.keys() - fields.keys():
        raise Mismatch(f"{place}unknown fields {', '.join(sorted(unknown))}")
    prefix = f"{where}." if where else ""
    return cls(**{name: decode(kind, mapping[name], prefix + name) for name, kind in fields.items()})


def _expect(value: Any, kind: type[Any] | tuple[type[Any], ...], description: str, where: str) -> Any:
    # bool is a subclass of int, but true is no epoch number.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise Mismatch(f"{where}: expected {description}, got {shown(value)}")
    return value


def shown(value: Any) -> str:
    """Return a value as JSON, cut short."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
