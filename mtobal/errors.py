"""The errors that tell a user what to change."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST_LIST = 100
"""Names in an error; large models have more modules."""


class UsageError(ValueError):
    """Wrong use of the library: one line that says what was expected, what came and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class NotFiniteError(UsageError):
    """Losses or gradients that are not finite, and training that cannot go on like this."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Build the error for a name that is not known, with the nearest known one.

    Examples
    --------
    >>> print(unknown_name("strategy", "pcgard", ["mgda", "pcgrad", "uw"]))
    unknown strategy 'pcgard': did you mean 'pcgrad'? Known: mgda, pcgrad, uw.
    """
    return UsageError(f"unknown {kind} {name!r}: {_hint(name, known)}")


def unknown_option(owner: str, name: str, known: Iterable[str]) -> UsageError:
    """Build the error for an option that its owner does not have, with the nearest one that it has.

    Examples
    --------
    >>> print(unknown_option("strategy 'uw'", "learning_rate", ["lr", "scale"]))
    strategy 'uw' has no option 'learning_rate': Known: lr, scale.
    """
    return UsageError(f"{owner} has no option {name!r}: {_hint(name, known)}")


def _hint(name: str, known: Iterable[str]) -> str:
    """List the known names, the nearest one first; capitals and hyphens count as typing errors."""
    names = sorted(known)
    if not names:
        return "None is known here."
    plain = {name.lower(): name for name in names}
    nearest = difflib.get_close_matches(name.lower().replace("-", "_"), plain, n=1)
    hint = f"did you mean {plain[nearest[0]]!r}? " if nearest else ""
    rest = f", and {len(names) - LONGEST_LIST} others" if len(names) > LONGEST_LIST else ""
    return f"{hint}Known: {', '.join(names[:LONGEST_LIST])}{rest}."
