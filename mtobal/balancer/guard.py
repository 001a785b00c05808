"""What happens when a loss or a gradient is not finite."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from mtobal.errors import NotFiniteError, UsageError

Policy = Literal["skip", "drop_task", "raise"]


class Guard:
    """Count the steps in which a task was not finite, and stop when they do not end.

    Parameters
    ----------
    policy : {"skip", "drop_task", "raise"}
        Leave the whole step out, leave the task out of the step, or stop at once.
    patience : int
        After so many such steps in a row, training stops in any case.

    Attributes
    ----------
    counts : dict from str to int
        How often each task was not finite.
    """

    def __init__(self, policy: Policy, patience: int) -> None:
        if policy not in get_args(Policy):
            raise UsageError(f"nonfinite: expected one of {', '.join(get_args(Policy))}, not {policy!r}.")
        if patience < 1:
            raise UsageError(f"patience must be at least 1, not {patience}.")
        self.policy: Policy = policy
        self.patience = patience
        self.counts: dict[str, int] = {}
        self._in_a_row = 0
        self._caught = False  # in the step at hand

    def begin(self) -> None:
        """Take note that a step begins."""
        if not self._caught:
            self._in_a_row = 0
        self._caught = False

    def caught(self, tasks: Sequence[str], what: str) -> None:
        """Take note of a step in which something of these tasks was not finite.

        Raises
        ------
        NotFiniteError
            By the policy, or because it was one too many.
        """
        names = ", ".join(map(repr, tasks))
        for task in tasks:
            self.counts[task] = self.counts.get(task, 0) + 1
        self._in_a_row += not self._caught
        self._caught = True
        if self.policy == "raise":
            raise NotFiniteError(f"the {what} of task {names} is not finite.")
        if self._in_a_row >= self.patience:
            raise NotFiniteError(
                f"the {what} of task {names} is not finite, in the {_ordinal(self._in_a_row)} such step in a row: "
                "training has diverged. Lower the learning rate, or look at that loss."
            )
        answer = "this step is skipped" if self.policy == "skip" else "it sits this step out"
        hint = " If its batch had no labels, give None for that task." if what == "loss" else ""
        warnings.warn(f"the {what} of task {names} is not finite: {answer}.{hint}", RuntimeWarning, stacklevel=2)

    def state_dict(self) -> dict[str, Any]:
        """Return the counts."""
        return {"counts": dict(self.counts), "in_a_row": self._in_a_row if self._caught else 0}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the counts."""
        self.counts, self._in_a_row = dict(state["counts"]), state["in_a_row"]
        self._caught = self._in_a_row > 0


def _ordinal(number: int) -> str:
    suffix = "th" if number // 10 % 10 == 1 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"
