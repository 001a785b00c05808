"""The card of a strategy: what it is, what it costs and where its defaults come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Reads = Literal["losses", "gramian", "jacobian", "gradients", "representation", "validation"]
Scale = Literal["sum", "mean", "own"]
Heads = Literal["raw", "weighted"]


@dataclass(frozen=True)
class Card:
    """Facts about one strategy, shown by ``mtobal strategies`` and by the documentation.

    A strategy writes the fields that only its author knows; its name, its place in the step, its options and
    the fields that follow from the place are filled in when it is registered.

    Attributes
    ----------
    summary : str
        One sentence: what the strategy does.
    when : str
        When to use it, and when not.
    paper : str
        Where the method comes from.
    defaults_source : str
        Where the default options come from.
    state : str
        What survives from step to step, and so lies in ``state_dict``.
    scale : {"sum", "mean", "own"}
        The native scale of the weights: equal gradients get weights that add up to the number of tasks
        (``sum``), to one (``mean``), or neither (``own``).
    heads : {"raw", "weighted"}
        Whether task-own parameters get the plain gradient of their loss or the weighted one.
    degree : float or None
        The direction scales with the gradients as ``d(t J) = t**degree d(J)`` for ``t > 0``;
        ``None`` where no such law holds.
    non_conflicting : bool
        Whether the direction never points against a task's gradient (``J d >= 0``).
    raises_losses : bool
        Whether it lets the loss of a task rise on purpose, for the sake of the others.
    example : str
        A spec that can be built, for tasks named seg, depth and normal; the bare name unless it needs an option.
    """

    summary: str = ""
    when: str = ""
    paper: str = ""
    defaults_source: str = ""
    state: str = "none"
    scale: Scale = "sum"
    heads: Heads = "weighted"
    degree: float | None = 1.0
    non_conflicting: bool = False
    raises_losses: bool = False
    example: str = ""
    # Filled in at registration.
    name: str = ""
    place: str = ""
    reads: Reads = "losses"
    forward_passes: str = "1"
    backward_passes: str = "1"
    options: Mapping[str, Any] = field(default_factory=dict)
