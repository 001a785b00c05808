"""Loss discrepancy control."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mtobal.errors import UsageError
from mtobal.strategies.base import Step
from mtobal.strategies.card import Card
from mtobal.strategies.loss.learned import LearnedWeighting
from mtobal.strategies.loss.positive import FLOOR, log_slopes, positive_losses
from mtobal.strategies.registry import register

Form = Literal["ratio", "raw", "log"]


def gap_signs(weighted: Tensor) -> Tensor:
    r"""Differentiate ``sum_{k<K} |a_k - a_{k+1}|`` with respect to a.

    The sum of the signs of the differences to both neighbours. Differences within rounding count as zero, where
    the derivative is not unique.

    Parameters
    ----------
    weighted : Tensor of shape (K,)
        a, in the order of the tasks.

    Returns
    -------
    Tensor of shape (K,)
        Whole numbers from -2 to 2.
    """
    differences = weighted[:-1] - weighted[1:]
    rounding = 4 * torch.finfo(weighted.dtype).eps * torch.maximum(weighted[:-1].abs(), weighted[1:].abs())
    signs = differences.sign().where(differences.abs() > rounding, 0.0)
    zero = signs.new_zeros(1)
    return torch.cat([signs, zero]) - torch.cat([zero, signs])


def discrepancy_weights(scaled: Tensor, slopes: Tensor, router: Tensor, penalty: float) -> Tensor:
    r"""Differentiate the objective with respect to the losses.

    ``sum_k s_k l_k / sum_k s_k + penalty sum_{k<K} |s_k l_k - s_{k+1} l_{k+1}|`` for router outputs s.

    Parameters
    ----------
    scaled : Tensor of shape (K,)
        The losses l after their scaling.
    slopes : Tensor of shape (K,)
        ``dl_k / dL_k``.
    router : Tensor of shape (K,)
        s, positive.
    penalty : float

    Returns
    -------
    Tensor of shape (K,)

    References
    ----------
    Xiao, Dong, Zou and Ji, LDC-MTL: Balancing Multi-Task Learning through Scalable Loss Discrepancy Control,
    2025, arXiv:2502.08585.
    """
    return router * slopes * (router.sum().reciprocal() + gap_signs(router * scaled) * penalty)


def discrepancy_gradient(scaled: Tensor, router: Tensor, penalty: float, *, detach_sum: bool) -> Tensor:
    """Differentiate the objective of `discrepancy_weights` with respect to the router's outputs.

    Parameters
    ----------
    scaled, router : Tensor of shape (K,)
    penalty : float
    detach_sum : bool
        Whether the sum of the outputs, which the weighted losses are divided by, counts as constant.

    Returns
    -------
    Tensor of shape (K,)
    """
    centre = torch.zeros_like(scaled) if detach_sum else (router * scaled).sum() / router.sum()
    return (scaled - centre) / router.sum() + gap_signs(router * scaled) * scaled * penalty


@register("ldc_mtl")
class LDCMTL(LearnedWeighting):
    """Learn weights from the shared representation that keep the weighted losses of neighbouring tasks alike.

    The router is a linear layer with softmax on the representation, of shape (samples, channels, ...), averaged
    over all but the channels. It starts at equal weights.

    Parameters
    ----------
    form : {"ratio", "raw", "log"}
        What is weighted: losses in proportion to those of the first batch, the losses themselves, or the
        logarithms of what is left of the losses of the first batch of each epoch.
    penalty : float
        Weight of the gaps between neighbouring tasks.
    clamp : sequence of two floats, optional
        Bounds of the router's outputs; None for no bounds.
    lr : float
        Learning rate of the router, which has an Adam of its own.
    """

    card = Card(
        summary="Learns weights from the shared representation that keep the weighted losses of neighbouring "
        "tasks alike.",
        when="A few tasks whose losses should fall together, at the cost of one backward pass. The order of the "
        "tasks matters: only neighbours are compared. Needs the representation.",
        paper="Xiao et al., LDC-MTL: Balancing Multi-Task Learning through Scalable Loss Discrepancy Control, "
        "2025, arXiv:2502.08585.",
        defaults_source="The official runs on NYUv2; there the router shares the model's optimizer, here its "
        "learning rate is that of the runs on CelebA and QM9.",
        state="the router, the moments of its optimizer, and the first losses",
        scale="own",
        heads="weighted",
    )

    first: Tensor | None

    def __init__(
        self,
        form: Form = "ratio",
        penalty: float = 0.05,
        clamp: Sequence[float] | None = (0.2, 0.8),
        lr: float = 1e-3,
    ) -> None:
        super().__init__(lr)
        if penalty < 0:
            raise UsageError(f"ldc_mtl: the penalty must not be negative, but is {penalty}.")
        if clamp is not None and not (len(clamp) == 2 and 0 < clamp[0] < clamp[1] <= 1):
            raise UsageError(f"ldc_mtl: clamp must be two rising numbers between 0 and 1, not {clamp!r}.")
        self.form: Form = form
        self.penalty = penalty
        self.clamp = clamp
        self.register_buffer("first", None)

    def weigh(self, step: Step) -> Tensor:
        losses = positive_losses(step, "ldc_mtl")
        scaled, slopes = self._scaled(step, losses)
        _, router = self._route(step)
        return discrepancy_weights(scaled, slopes, router, self.penalty)

    def update(self, step: Step) -> None:
        scaled, _ = self._scaled(step, step.require_losses("ldc_mtl"))
        shares, router = self._route(step)
        gradient = discrepancy_gradient(scaled, router, self.penalty, detach_sum=self.form != "ratio")
        gradient = gradient.where(shares == router, 0.0)  # a clamped output does not move
        scores = shares * (gradient - (shares * gradient).sum())
        self.learn(step, scores[:, None] * self._features(step))

    def end_epoch(self) -> None:
        if self.form == "log":
            self.first = None

    def _features(self, step: Step) -> Tensor:
        """Return the mean of each channel of the representation, and a one for the bias."""
        z = step.require_representation("ldc_mtl")
        if z.dim() < 2:
            raise UsageError(
                f"ldc_mtl: the representation must be (samples, channels, ...), not {tuple(z.shape)}."
            )
        mean = z.transpose(0, 1).flatten(1).to(step.require_losses("ldc_mtl")).mean(1)
        return torch.cat([mean, mean.new_ones(1)])

    def _route(self, step: Step) -> tuple[Tensor, Tensor]:
        """Return the router's softmax, and its output."""
        equal = 1 / len(step.tasks)
        if self.clamp is not None and equal < 1 and not self.clamp[0] < equal < self.clamp[1]:
            raise UsageError(
                f"ldc_mtl: equal weights of {len(step.tasks)} tasks lie outside of clamp={list(self.clamp)}, so "
                "that nothing could be learned: give wider bounds or clamp=none."
            )
        features = self._features(step)
        shares = (self.current(step, width=len(features)) * features).sum(1).softmax(0)
        return shares, shares if self.clamp is None else shares.clamp(*self.clamp)

    def _scaled(self, step: Step, losses: Tensor) -> tuple[Tensor, Tensor]:
        """Return the losses as they are weighted, and the derivatives by the losses."""
        if self.form == "raw":
            return losses, torch.ones_like(losses)
        active = list(step.active)
        if self.first is None:
            self.first = losses.new_full((len(step.tasks),), torch.nan)
        first = self.first.to(losses).clone()
        first[active] = first[active].where(~first[active].isnan(), losses.where(losses > FLOOR, torch.nan))
        self.first = first
        known = ~first[active].isnan()  # not of a task whose losses have all been zero so far
        if self.form == "log":
            return (losses.clamp(min=FLOOR) / first[active]).log().where(known, 0.0), log_slopes(losses)
        slopes = (first.nan_to_num(torch.inf).min() / first[active]).where(known, 1.0)
        return losses * slopes, slopes
