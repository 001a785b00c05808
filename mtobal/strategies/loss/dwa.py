"""Dynamic weight average."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mtobal.errors import UsageError
from mtobal.strategies.base import Step
from mtobal.strategies.card import Card
from mtobal.strategies.loss.epochs import EpochWeighting, share
from mtobal.strategies.loss.positive import FLOOR, positive_losses
from mtobal.strategies.registry import register


def dynamic_average_weights(newer: Tensor, older: Tensor, temperature: float = 2.0) -> Tensor:
    r"""Weigh each task by how slowly its loss falls.

    ``w = K softmax(r / T)`` with ``r_k = newer_k / older_k``.

    Parameters
    ----------
    newer, older : Tensor of shape (K,)
        Average losses, not negative; NaN where there is none yet, which gives that task the weight 1. Averages
        below 1e-8 count as that, so that a loss that stays at zero has the ratio one.
    temperature : float
        T, positive; the larger, the more equal the weights.

    Returns
    -------
    Tensor of shape (K,)
        Positive, with an average of one.

    References
    ----------
    Liu, Johns and Davison, End-to-End Multi-Task Learning with Attention, CVPR 2019, arXiv:1803.10704, equation 7.

    Examples
    --------
    >>> import torch
    >>> dynamic_average_weights(torch.tensor([1.0, 0.5]), torch.tensor([1.0, 1.0]))
    tensor([1.1244, 0.8756])
    """
    return share(newer.clamp(min=FLOOR) / older.clamp(min=FLOOR) / temperature)


@register("dwa")
class DWA(EpochWeighting):
    """Give more weight to tasks whose loss falls more slowly.

    Parameters
    ----------
    temperature : float
        The larger, the more equal the weights.
    average : {"epoch", "window"}
        Compare the averages of the last two epochs, with equal weights in the first two; or of the last two
        windows of steps, the present one included, which needs no epochs. The windows start filled with ones
        and are used after `window` steps, so they mix in those ones for almost as many steps more.
    window : int
        Steps in a window.
    """

    card = Card(
        summary="Gives more weight to tasks whose loss falls more slowly.",
        when="Losses of similar magnitude and unit; weights move little at the usual temperature.",
        paper="Liu et al., End-to-End Multi-Task Learning with Attention, CVPR 2019, arXiv:1803.10704.",
        defaults_source="Epoch averages and T = 2 as in the official code (mtan); the window is that of the "
        "benchmark of Nash-MTL.",
        state="the running averages of the epoch and the averages of the last two; or the losses of two windows",
        scale="sum",
        heads="weighted",
    )

    averages: Tensor | None
    history: Tensor | None
    steps: Tensor | None

    def __init__(
        self, temperature: float = 2.0, average: Literal["epoch", "window"] = "epoch", window: int = 25
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise UsageError(f"dwa: the temperature must be positive, not {temperature}.")
        if window < 1:
            raise UsageError(f"dwa: a window has at least one step, not {window}.")
        self.temperature = temperature
        self.average = average
        self.window = window
        for name in ("averages", "history", "steps"):
            self.register_buffer(name, None)

    def weigh(self, step: Step) -> Tensor:
        losses = positive_losses(step, "dwa")
        if self.average == "window":
            history, steps = self._pushed(step, losses)
            older, newer = (half.mean(0).where(steps > self.window + 1, torch.nan) for half in history.chunk(2))
        elif self.averages is None:
            return torch.ones_like(losses)
        else:
            newer, older = self.averages.to(losses)[:, list(step.active)]
        return dynamic_average_weights(newer, older, self.temperature)

    def update(self, step: Step) -> None:
        if self.average == "epoch":
            super().update(step)
            return
        history, steps = self._pushed(step, step.require_losses("dwa"))
        assert self.history is not None
        assert self.steps is not None
        self.history[:, list(step.active)] = history
        self.steps[list(step.active)] = steps

    def learn_epoch(self, averages: Tensor) -> None:
        unknown = averages.new_full((2, len(averages)), torch.nan)
        last = unknown if self.averages is None else self.averages.to(averages)
        # A task that was missing in the epoch keeps the two averages it has.
        self.averages = torch.stack([averages, last[0]]).where(~averages.isnan(), last)

    def _pushed(self, step: Step, losses: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two windows of the active tasks with their losses at the end, and the counts of steps."""
        if self.history is None or self.steps is None:
            self.history = losses.new_ones(2 * self.window, len(step.tasks))
            self.steps = losses.new_zeros(len(step.tasks))
        self.history, self.steps = self.history.to(losses), self.steps.to(losses)
        active = list(step.active)
        return torch.cat([self.history[1:, active], losses[None]]), self.steps[active] + 1
