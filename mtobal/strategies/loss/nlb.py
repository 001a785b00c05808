"""Normalization loss balance."""

from __future__ import annotations

import torch
from torch import Tensor

from mtobal.errors import UsageError
from mtobal.strategies.base import LossWeighting, Step
from mtobal.strategies.card import Card
from mtobal.strategies.loss.positive import FLOOR, positive_losses
from mtobal.strategies.registry import register


def normalized_targets(losses: Tensor, initial: Tensor, exponent: float = 1.0) -> Tensor:
    """Share out the weight by how much of its first value is left of each loss.

    ``r_k^b / sum_j r_j^b`` with ``r_k = L_k / L_k(0)``.

    Parameters
    ----------
    losses, initial : Tensor of shape (K,)
        Not negative; an initial loss below 1e-8 counts as that.
    exponent : float
        b, which sharpens the shares.

    Returns
    -------
    Tensor of shape (K,)
        With sum one; equal shares where no loss is left.

    References
    ----------
    Zhao et al., Mitigating Accuracy-Robustness Trade-off via Balanced Multi-Teacher Adversarial Distillation,
    TPAMI 2024, arXiv:2306.16170.

    Examples
    --------
    >>> import torch
    >>> normalized_targets(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0]))
    tensor([0.2500, 0.7500])
    """
    left = (losses.clamp(min=FLOOR) / initial.clamp(min=FLOOR)).log()
    return (exponent * left).softmax(0)


@register("nlb")
class NLB(LossWeighting):
    """Move the weights towards the tasks of whose first loss most is left.

    Parameters
    ----------
    rate : float
        How far the weights go towards their target at every step.
    exponent : float
        Sharpens the target.
    """

    card = Card(
        summary="Moves the weights towards the tasks of whose first loss most is left.",
        when="Losses that should fall by the same factor, such as those of a student with several teachers, at "
        "no cost. The loss of the first batch is the measure for all of training. The paper claims the best "
        "weighted robust accuracy of its time on CIFAR-10, CIFAR-100 and Tiny-ImageNet, together with "
        "entropy-balanced temperatures (EntropyBalancedTemperature).",
        paper="Zhao et al., Enhanced Accuracy and Robustness via Multi-Teacher Adversarial Distillation, "
        "ECCV 2022; Mitigating Accuracy-Robustness Trade-off via Balanced Multi-Teacher Adversarial Distillation, "
        "TPAMI 2024, arXiv:2306.16170.",
        defaults_source="Rate 0.025 and exponent 1 of the official runs.",
        state="K weights and the first loss of each task",
        scale="mean",
        heads="weighted",
    )

    shares: Tensor | None
    initial: Tensor | None

    def __init__(self, rate: float = 0.025, exponent: float = 1.0) -> None:
        super().__init__()
        if not 0 <= rate <= 1:
            raise UsageError(f"nlb: the rate must lie between 0 and 1, not at {rate}.")
        self.rate = rate
        self.exponent = exponent
        self.register_buffer("shares", None)
        self.register_buffer("initial", None)  # NaN for a task that has had no loss yet

    def weigh(self, step: Step) -> Tensor:
        shares, _ = self._moved(step)
        return shares

    def update(self, step: Step) -> None:
        shares, initial = self._moved(step)
        assert self.shares is not None
        assert self.initial is not None
        active = list(step.active)
        self.shares[active], self.initial[active] = shares, initial

    def _moved(self, step: Step) -> tuple[Tensor, Tensor]:
        """Return the weights of the active tasks after this step, and their first losses."""
        losses = positive_losses(step, "nlb")
        if self.shares is None or self.initial is None:
            size = len(step.tasks)
            self.shares, self.initial = losses.new_full((size,), 1 / size), losses.new_full((size,), torch.nan)
        if len(self.shares) != len(step.tasks):
            raise UsageError(f"nlb holds {len(self.shares)} tasks, but this step has {len(step.tasks)}.")
        self.shares, self.initial = self.shares.to(losses), self.initial.to(losses)
        active = list(step.active)
        initial = self.initial[active].where(~self.initial[active].isnan(), losses)
        # Tasks that sit out keep their weight, so the others share out what they had.
        target = normalized_targets(losses, initial, self.exponent) * self.shares[active].sum()
        return torch.lerp(self.shares[active], target, self.rate), initial
