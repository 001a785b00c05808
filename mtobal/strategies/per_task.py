"""One number a task, given by the user."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from mtobal.errors import UsageError, unknown_name
from mtobal.strategies.base import Step

PerTask = Mapping[str, float] | Sequence[float]


def check_per_task(given: PerTask | None, option: str, minimum: float = -math.inf) -> None:
    """Refuse numbers that are not finite or lie below `minimum`, and numbers that are all zero at that minimum."""
    if given is None:
        return
    values = list(given.values()) if isinstance(given, Mapping) else list(given)
    if not all(math.isfinite(value) and value >= minimum for value in values):
        wanted = "finite" if minimum == -math.inf else f"finite and at least {minimum:g}"
        raise UsageError(f"{option} must be {wanted}, not {given!r}.")
    if minimum == 0 and not any(values):
        raise UsageError(f"{option} must not be all zero.")


def per_task(given: PerTask | None, default: float, step: Step, losses: Tensor, option: str) -> Tensor:
    """Return the numbers of the active tasks.

    Parameters
    ----------
    given : mapping from task to float, sequence of K floats, or None
        For all K tasks; None gives each the default.
    default : float
    step : Step
        Whose tasks are meant.
    losses : Tensor of shape (A,)
        Whose dtype and device the result has.
    option : str
        What these numbers are, for the error.

    Returns
    -------
    Tensor of shape (A,)

    Raises
    ------
    UsageError
        An unknown task, a task without number, or another count of numbers than of tasks.
    """
    if given is None:
        return losses.new_full(losses.shape, default)
    if isinstance(given, Mapping):
        for name in given:
            if name not in step.tasks:
                raise unknown_name(f"task in {option}", name, step.tasks)
        missing = [task for task in step.tasks if task not in given]
        if missing:
            raise UsageError(f"{option} has no number for {', '.join(map(repr, missing))}.")
        values = [given[task] for task in step.tasks]
    else:
        values = list(given)
        if len(values) != len(step.tasks):
            raise UsageError(
                f"{option} has {len(values)} numbers for {len(step.tasks)} tasks ({', '.join(step.tasks)})."
            )
    return losses.new_tensor([values[task] for task in step.active])
