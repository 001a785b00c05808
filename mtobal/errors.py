"""The errors that tell a user what to change."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
    names = sorted(known)
    nearest = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    listing = f"Known: {', '.join(names)}." if names else "None is known here."
    return UsageError(f"unknown {kind} {name!r}: {hint}{listing}")
