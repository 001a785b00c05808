"""Task balancing by difficulty that is measured during training."""

from __future__ import annotations

import torch
from torch import Tensor

from mtobal.errors import UsageError
from mtobal.strategies.base import Revision, Validation
from mtobal.strategies.card import Card
from mtobal.strategies.registry import register
from mtobal.strategies.validation.visatb import difficulties


@register("visatb_online")
class VisATBOnline(Revision):
    """Revise the weights after each validation by how far the loss of each task has fallen since the last.

    Parameters
    ----------
    temperature : float
        The larger, the more equal the weights.
    """

    card = Card(
        summary="Gives more weight to tasks whose validation loss still falls.",
        when="An experiment: the intra-task difficulty of visatb without its small models. Training until now "
        "takes the place of the mini subset, training until the next validation that of the large one. What tasks "
        "contribute to each other is not measured.",
        paper="Ours, after the difficulty of VisATB, arXiv:2403.04343, equation 6; no published results.",
        defaults_source="T = 0.5 as in visatb.",
        state="the last validation losses and the weights",
        scale="sum",
        heads="weighted",
    )

    last: Tensor | None

    def __init__(self, temperature: float = 0.5) -> None:
        super().__init__()
        if temperature <= 0:
            raise UsageError(f"visatb_online: the temperature must be positive, not {temperature}.")
        self.temperature = temperature
        self.register_buffer("last", None)

    def initial(self, tasks: tuple[str, ...]) -> Tensor:
        return torch.ones(len(tasks), dtype=torch.float64)

    def learn(self, validation: Validation) -> Tensor:
        losses = validation.losses
        if (losses < 0).any():
            raise UsageError(
                f"visatb_online needs validation losses that are not negative, but got {losses.tolist()}."
            )
        last = losses if self.last is None else self.last
        # A task without a loss in either validation counts as one that stands still; a rise is as bad as none.
        fall = difficulties(losses, last, higher_is_better=False).nan_to_num(nan=0.0).clamp(min=0)
        self.last = losses.where(~losses.isnan(), last)
        return len(losses) * (fall / self.temperature).softmax(0)
