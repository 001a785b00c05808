"""Improvable gap balancing, by loss ratios."""

from __future__ import annotations

from torch import Tensor

from mtobal.errors import UsageError
from mtobal.strategies.base import Step
from mtobal.strategies.card import Card
from mtobal.strategies.loss.epochs import EpochWeighting, fill, of_active, share
from mtobal.strategies.loss.positive import FLOOR, log_slopes, positive_losses
from mtobal.strategies.registry import register


def improvable_gap_weights(losses: Tensor, base: Tensor) -> Tensor:
    r"""Weigh the logarithms of the losses by what is left of an earlier loss.

    The objective is ``sum_k v_k log L_k`` with ``v = K softmax(L / B)``, in which v counts as constant; so
    ``w_k = v_k / L_k``.

    Parameters
    ----------
    losses : Tensor of shape (K,)
        Not negative; below 1e-8 the logarithm is continued by its tangent.
    base : Tensor of shape (K,)
        The losses B early in training; NaN for a task that has none yet, for which ``v_k = 1``.

    Returns
    -------
    Tensor of shape (K,)

    References
    ----------
    Dai, Fei and Lu, Improvable Gap Balancing for Multi-Task Learning, UAI 2023, arXiv:2307.15429, IGBv1.
    """
    return share(losses / base.clamp(min=FLOOR)) * log_slopes(losses)


@register("igb_v1")
class IGBv1(EpochWeighting):
    """Weigh the logarithm of each loss by how much of its early value is left.

    Parameters
    ----------
    base_epoch : int
        The epoch, counted from zero, whose average losses are the base; up to its end all logarithms weigh
        alike. Needs to be told of the end of each epoch.
    """

    card = Card(
        summary="Weighs the logarithm of each loss by how much of its early value is left.",
        when="Positive losses of different units that should all fall by similar factors.",
        paper="Dai et al., Improvable Gap Balancing for Multi-Task Learning, UAI 2023, arXiv:2307.15429.",
        defaults_source="The second epoch as base, as in the official code.",
        state="the running averages of the epoch, and the base losses",
        scale="own",
        heads="weighted",
    )

    base: Tensor | None

    def __init__(self, base_epoch: int = 1) -> None:
        super().__init__()
        if base_epoch < 0:
            raise UsageError(f"igb_v1: base_epoch must not be negative, but is {base_epoch}.")
        self.base_epoch = base_epoch
        self.register_buffer("base", None)

    def weigh(self, step: Step) -> Tensor:
        losses = positive_losses(step, "igb_v1")
        return improvable_gap_weights(losses, of_active(self.base, step, losses))

    def learn_epoch(self, averages: Tensor) -> None:
        if self.epoch >= self.base_epoch:
            # A task that was missing in that epoch is measured by the first one that it is in.
            self.base = fill(self.base, averages)
