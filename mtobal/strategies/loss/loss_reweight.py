"""Dynamic loss-based reweighting of samples or tasks."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mtobal.errors import UsageError
from mtobal.strategies.base import LossWeighting, Step
from mtobal.strategies.card import Card
from mtobal.strategies.registry import register

Curve = Literal["linupper", "mid", "upper", "extremes"]

# Losses closer together than this count as equal, as in the official code.
MIN_RANGE = 1e-6


def normalized_losses(losses: Tensor) -> Tensor:
    """Map losses linearly to -1 for the least and 1 for the largest.

    Parameters
    ----------
    losses : Tensor of shape (B,)

    Returns
    -------
    Tensor of shape (B,)
        All -1 for losses that are alike.
    """
    least, largest = losses.aminmax()
    return 2 * (losses - least) / (largest - least).clamp(min=MIN_RANGE) - 1


def loss_scores(losses: Tensor, curve: Curve) -> Tensor:
    """Return how much each loss of a batch matters.

    With h from `normalized_losses`: ``min(h + 1, 1)`` for ``linupper``, ``1 - h^2`` for ``mid``, ``(h + 1) / 2``
    for ``upper`` and ``|h|`` for ``extremes``.

    Parameters
    ----------
    losses : Tensor of shape (B,)
    curve : {"linupper", "mid", "upper", "extremes"}

    Returns
    -------
    Tensor of shape (B,)
        From 0 to 1.
    """
    h = normalized_losses(losses)
    if curve == "linupper":
        return (h + 1).clamp(max=1)
    if curve == "mid":
        return 1 - h.square()
    if curve == "upper":
        return (h + 1) / 2
    return h.abs()


def loss_reweights(losses: Tensor, curve: Curve = "linupper", temperature: float = 0.4) -> Tensor:
    """Weigh losses by their rank within the range of the batch.

    ``w = softmax(f / r)`` with the scores f of `loss_scores` and the temperature r.

    Parameters
    ----------
    losses : Tensor of shape (B,)
    curve : {"linupper", "mid", "upper", "extremes"}
    temperature : float
        Positive; the larger, the more equal the weights.

    Returns
    -------
    Tensor of shape (B,)
        Positive, with sum one.

    References
    ----------
    Dynamic Loss-Based Sample Reweighting for Improved Large Language Model Pretraining, ICLR 2025,
    arXiv:2502.06733.

    Examples
    --------
    >>> import torch
    >>> loss_reweights(torch.tensor([0.0, 1.0, 2.0]), temperature=1.0)
    tensor([0.1554, 0.4223, 0.4223])
    """
    return (loss_scores(losses, curve) / temperature).softmax(0)


class SampleReweighting(nn.Module):
    """Weigh the samples of a batch, whatever task each belongs to, by where their loss lies in the batch.

    On several ranks each looks at its own part of the batch; the official code gathers the losses of all.

    Parameters
    ----------
    curve : {"linupper", "mid", "upper", "extremes"}
        As in `loss_scores`.
    temperature : float
        As in `loss_reweights`.
    burn_in : int
        Calls with equal weights at first.

    Examples
    --------
    >>> import torch
    >>> criterion = SampleReweighting(burn_in=0)
    >>> loss = criterion(torch.tensor([0.4, 1.1, 2.0]), counts=torch.tensor([4, 2, 3]))
    """

    steps: Tensor

    def __init__(self, curve: Curve = "linupper", temperature: float = 0.4, burn_in: int = 1000) -> None:
        super().__init__()
        _check(temperature, burn_in)
        self.curve: Curve = curve
        self.temperature = temperature
        self.burn_in = burn_in
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, losses: Tensor, counts: Tensor | None = None) -> Tensor:
        """Return ``B sum_i w_i c_i l_i``; with equal weights, the mean over what is counted.

        Parameters
        ----------
        losses : Tensor of shape (B,)
            One loss a sample; the mean over its tokens or pixels, if it has several.
        counts : Tensor of shape (B,), optional
            How many tokens or pixels each sample has, of which ``c`` are the shares; by default all alike.
        """
        shares = torch.ones_like(losses) if counts is None else counts.to(losses)
        shares = shares / shares.sum()
        weights = shares.new_full(losses.shape, 1 / len(losses))
        if self.steps >= self.burn_in:
            weights = loss_reweights(losses.detach(), self.curve, self.temperature)
        self.steps += 1
        return len(losses) * (weights * shares * losses).sum()


@register("loss_reweight")
class LossReweight(LossWeighting):
    """Weigh tasks by where their loss lies between the least and the largest.

    For samples, the form of the paper, use `SampleReweighting`.

    Parameters
    ----------
    curve : {"linupper", "mid", "upper", "extremes"}
        As in `loss_scores`.
    temperature : float
        The larger, the more equal the weights.
    burn_in : int
        Steps with equal weights at first.
    """

    card = Card(
        summary="Weighs tasks, or samples by SampleReweighting, by where their loss lies between the least and "
        "the largest.",
        when="Losses of one unit, such as the cross entropies of many tasks or samples: those with little left to "
        "learn count less, and the largest weight is bounded. With two tasks there are just two weights. The "
        "paper claims faster convergence and better few-shot accuracy in pre-training language models, the more "
        "so the larger the model.",
        paper="Dynamic Loss-Based Sample Reweighting for Improved Large Language Model Pretraining, ICLR 2025, "
        "arXiv:2502.06733.",
        defaults_source="LinUpper with r = 0.4 after 1000 equal steps, as in the official runs of larger models; "
        "weights of tasks in place of those of samples are ours.",
        state="the number of steps",
        scale="mean",
        heads="weighted",
    )

    steps: Tensor

    def __init__(self, curve: Curve = "linupper", temperature: float = 0.4, burn_in: int = 1000) -> None:
        super().__init__()
        _check(temperature, burn_in)
        self.curve: Curve = curve
        self.temperature = temperature
        self.burn_in = burn_in
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def weigh(self, step: Step) -> Tensor:
        losses = step.require_losses("loss_reweight")
        if self.steps < self.burn_in:
            return torch.full_like(losses, 1 / len(losses))
        return loss_reweights(losses, self.curve, self.temperature)

    def update(self, step: Step) -> None:
        self.steps += 1


def _check(temperature: float, burn_in: int) -> None:
    if temperature <= 0 or burn_in < 0:
        raise UsageError(
            "loss_reweight: the temperature must be positive and burn_in not negative, not "
            f"{temperature} and {burn_in}."
        )
