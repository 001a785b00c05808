"""The recipes of the package, by name; each is a YAML file beside this one."""

from __future__ import annotations

from importlib.resources import files


def recipe_names() -> list[str]:
    """Return their names.

    Examples
    --------
    >>> "digits" in recipe_names()
    True
    """
    names = [file.name for file in files("mtobal.bench.recipes").iterdir()]
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def read_recipe(name: str) -> bytes:
    """Return the YAML of one of them."""
    return (files("mtobal.bench.recipes") / f"{name}.yaml").read_bytes()
