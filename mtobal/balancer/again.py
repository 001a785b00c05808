"""The model on the batch at hand, to be run once more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mtobal.errors import UsageError
from mtobal.gradients import RNGState

Losses = Mapping[str, Tensor | None]
Closure = Callable[[], Losses | tuple[Losses, Tensor]]
Part = Callable[[float], Losses | tuple[Losses, Tensor]]


@dataclass(frozen=True)
class Again:
    """Runs the model on the batch at hand once more, in the way in which it was run the first time.

    Attributes
    ----------
    closure : callable
        Returns the losses by task, or a pair of these and the shared representation.
    rng : RNGState or None
        The random generators before the first run, if they are known.
    autocast : dict
        The mixed precision around the balancer, which its backward pass does not see.
    """

    closure: Closure
    rng: RNGState | None
    autocast: dict[str, Any]

    @classmethod
    def of(cls, again: Closure | tuple[Closure, RNGState] | None, device: str, spec: str) -> Again:
        """Take what a user gave to the strategy of `spec`, and the mixed precision of this moment."""
        if again is None:
            raise UsageError(
                f"{spec!r} takes gradients at other points: call balancer(losses, again=closure), where closure() "
                "runs the model on the same batch and returns the losses by task, or balancer.step(closure, "
                "optimizer)."
            )
        closure, rng = again if isinstance(again, tuple) else (again, None)
        if not callable(closure):
            raise UsageError(
                f"again must be a function that runs the model on the same batch and returns the losses by task, "
                f"not a {type(closure).__name__}."
            )
        return cls(closure, rng, _autocast(device))

    @classmethod
    def on_part(cls, part: Part | None, share: float, device: str) -> Again:
        """Take what runs the model on a share of the batch, and the mixed precision of this moment."""
        if not callable(part):
            raise UsageError(
                "gradients='fraction' reads the losses of a share of the batch: call balancer(losses, part=part), "
                "where part(f) runs the model on that share of its samples and returns the losses by task; part "
                f"is {'missing' if part is None else f'a {type(part).__name__}'}."
            )
        return cls(partial(part, share), None, _autocast(device))

    def present(self) -> dict[str, Tensor]:
        """Run the model, and return the losses that it has."""
        with torch.autocast(**self.autocast):
            result = self.closure()
        losses = result[0] if isinstance(result, tuple) else result
        return {task: loss for task, loss in losses.items() if loss is not None}

    def losses(self, tasks: Iterable[str]) -> list[Tensor]:
        """Run the model, and return the losses of these tasks."""
        losses = self.present()
        found = {task: losses.get(task) for task in tasks}
        lacking = [task for task, loss in found.items() if not isinstance(loss, Tensor)]
        if lacking:
            raise UsageError(
                f"again gave no loss of {', '.join(lacking)}, which the batch had the first time: it must run the "
                "model on the same batch."
            )
        return [loss for loss in found.values() if loss is not None]


def _autocast(device: str) -> dict[str, Any]:
    return {
        "device_type": device,
        "enabled": torch.is_autocast_enabled(device),
        "dtype": torch.get_autocast_dtype(device),
    }
