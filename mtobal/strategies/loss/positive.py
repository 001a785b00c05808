"""What weightings that take the logarithm of a loss have in common."""

from __future__ import annotations

from torch import Tensor

from mtobal.errors import UsageError
from mtobal.strategies.base import Step

# Below it the logarithm is continued by its tangent, so that a loss of zero has a finite slope.
FLOOR = 1e-8


def positive_losses(step: Step, strategy: str) -> Tensor:
    """Return the losses of the active tasks, or say which of them `strategy` cannot take the logarithm of."""
    losses = step.require_losses(strategy)
    if (losses < 0).any():
        bad = [f"{step.tasks[k]!r} ({v:.4g})" for k, v in zip(step.active, losses.tolist(), strict=True) if v < 0]
        raise UsageError(
            f"{strategy} needs losses that are not negative, but got that of task {', '.join(bad)}: add a "
            "constant to it, or take a strategy that allows negative losses, such as uw."
        )
    return losses


def log_slopes(losses: Tensor) -> Tensor:
    """Differentiate ``log L_k``: ``1 / L_k``, and ``1 / FLOOR`` for losses below `FLOOR`.

    A floor, unlike a constant added to the loss, leaves every larger loss exact, and with it the invariance of
    the logarithm to the scale of a loss.
    """
    return losses.clamp(min=FLOOR).reciprocal()
