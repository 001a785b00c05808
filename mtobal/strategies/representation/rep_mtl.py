"""Representation-level task saliency."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mtobal.errors import UsageError
from mtobal.strategies.base import Regulariser, Step
from mtobal.strategies.card import Card
from mtobal.strategies.loss.positive import FLOOR, positive_losses
from mtobal.strategies.registry import register

ChannelMean = Literal["signed", "absolute"]
Positives = Literal["mean", "sum", "log_sum"]
Denominator = Literal["negatives", "all"]

# Keeps quotients of saliencies finite where all are zero; far below the square of any saliency that matters.
TINY = 1e-30
# Under the logarithm of a share.
EPSILON = 1e-12


def saliencies(losses: Sequence[Tensor], representation: Tensor) -> Tensor:
    """Differentiate each loss with respect to the representation, so that the result can be differentiated again.

    Parameters
    ----------
    losses : sequence of K scalar tensors
    representation : Tensor of shape (B, C, ...)

    Returns
    -------
    Tensor of shape (K, B, C, S)
        With the S places of the representation in one axis; one place if it has none. Zero for a loss that does
        not depend on it.
    """
    rows = [
        torch.autograd.grad(loss, representation, create_graph=True, allow_unused=True, materialize_grads=True)[0]
        for loss in losses
    ]
    return torch.stack(rows).flatten(3) if representation.dim() > 2 else torch.stack(rows)[..., None]


def saliency_entropy(saliency: Tensor, channel_mean: ChannelMean = "signed") -> Tensor:
    r"""Measure how evenly the tasks share each place of the representation.

    The mean over samples and places of the entropy of ``P_t = |s_t| / sum_k |s_k|``, where s_t is the mean
    saliency of a place over its channels. From zero, where each place matters to one task alone, to ``log K``.

    Parameters
    ----------
    saliency : Tensor of shape (K, B, C, S)
    channel_mean : {"signed", "absolute"}
        The absolute value of the mean, or the mean of absolute values, in which signs do not cancel.

    Returns
    -------
    Tensor
        A scalar.
    """
    means = saliency.mean(2).abs() if channel_mean == "signed" else saliency.abs().mean(2)
    shares = means / means.sum(0).clamp(min=TINY)
    return -(shares * (shares + EPSILON).log()).sum(0).mean()


def cross_task_alignment(
    saliency: Tensor,
    temperature: float = 0.5,
    positives: Positives = "mean",
    denominator: Denominator = "negatives",
    *,
    detach_anchor: bool = False,
) -> Tensor:
    r"""Contrast what the tasks do to one sample with what they do to others.

    The anchor ``A_b`` of a sample is its saliency averaged over tasks and places. Of the C x C matrices ``A A^T``
    and ``S_t S_t^T``, which are never built, the cosines are

    - positive, of a sample's anchor and each of its tasks: ``||S_t^T A||^2 / (||A||^2 ||S_t^T S_t||_F)``;
    - negative, of the anchors of two samples: ``cos(A_b, A_k)^2``.

    All lie between zero and one. The loss is the mean over samples of ``-log( exp(p / tau) / sum exp(n / tau) )``.

    Parameters
    ----------
    saliency : Tensor of shape (K, B, C, S)
    temperature : float
        tau.
    positives : {"mean", "sum", "log_sum"}
        Mean or sum over the tasks of a term for each; or one term with the sum of their exponentials.
    denominator : {"negatives", "all"}
        Negatives alone, which lets the loss be negative, or with the positive one added.
    detach_anchor : bool
        Whether no gradient goes through the anchors.

    Returns
    -------
    Tensor
        A scalar; zero for a batch of one sample, which has no negatives.

    References
    ----------
    Rep-MTL: Unleashing the Power of Representation-level Task Saliency for Multi-Task Learning, ICCV 2025,
    arXiv:2507.21049, equations 6 to 9.
    """
    if saliency.shape[1] < 2:
        return saliency.sum() * 0.0
    tasks = _normalized(saliency, (2, 3))
    anchors = saliency.mean((0, 3))
    anchors = _normalized(anchors.detach() if detach_anchor else anchors, (1,))
    products = torch.einsum("tbcs,bc->tbs", tasks, anchors).square().sum(2)
    similar = products / _gram_norms(tasks) / temperature
    cosines = (anchors @ anchors.T).square() / temperature
    own = torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)
    others = cosines.masked_fill(own, -torch.inf).logsumexp(1)
    if positives == "log_sum":
        similar = similar.logsumexp(0, keepdim=True)
    below = others.expand_as(similar) if denominator == "negatives" else torch.logaddexp(similar, others)
    terms = below - similar
    return (terms.sum(0) if positives == "sum" else terms.mean(0)).mean()


@register("rep_mtl")
class RepMTL(Regulariser):
    """Keep what tasks do to the shared representation apart in place, and alike for each sample.

    The penalty is the entropy of task saliency and the cross-task alignment of samples, both functions of the
    gradients of the losses with respect to the representation, through which it is differentiated again. Heads
    need operations that can be differentiated twice. With piecewise linear heads and losses such as L1 these
    gradients are piecewise constant, and only `log_losses` leaves the penalty a gradient.

    Parameters
    ----------
    entropy, alignment : float
        Weights of the two terms.
    temperature : float
        tau of the alignment.
    log_losses : bool
        Whether saliencies are those of the logarithms of the losses; wanted where these are what is trained, as in
        the paper and by `si`.
    channel_mean : {"signed", "absolute"}
        As in `saliency_entropy`.
    positives, denominator, detach_anchor
        As in `cross_task_alignment`.
    """

    card = Card(
        summary="Adds a penalty on the shared representation, so that each place serves few tasks and the tasks "
        "of a sample agree.",
        when="One encoder that all tasks of a batch read, with heads that can be differentiated twice. Needs the "
        "representation, and the graph of the losses once more. The paper claims, in percent over single-task "
        "training, 1.70 rather than -1.78 on NYUv2, 0.62 rather than -2.05 on Cityscapes, 0.41 rather than -0.92 "
        "on Office-Home and 1.31 rather than -0.61 on Office-31 of equal weights.",
        paper="Rep-MTL: Unleashing the Power of Representation-level Task Saliency for Multi-Task Learning, ICCV "
        "2025, arXiv:2507.21049.",
        defaults_source="Both weights from the middle of the paper's grid of 0.7 to 1.5; it gives no temperature, "
        "so 0.5 must be tuned. No official code: what the paper leaves open are the options, their defaults its "
        "most literal reading.",
        scale="sum",
        heads="weighted",
    )
    backward_passes = "1, K of the heads, and 1 of second order"

    def __init__(
        self,
        entropy: float = 0.9,
        alignment: float = 0.9,
        temperature: float = 0.5,
        log_losses: bool = False,
        channel_mean: ChannelMean = "signed",
        positives: Positives = "mean",
        denominator: Denominator = "negatives",
        detach_anchor: bool = False,
    ) -> None:
        super().__init__()
        if not (math.isfinite(entropy) and math.isfinite(alignment)) or temperature <= 0:
            raise UsageError(
                "rep_mtl needs finite weights and a positive temperature, not "
                f"{entropy}, {alignment} and {temperature}."
            )
        self.entropy = entropy
        self.alignment = alignment
        self.temperature = temperature
        self.log_losses = log_losses
        self.channel_mean: ChannelMean = channel_mean
        self.positives: Positives = positives
        self.denominator: Denominator = denominator
        self.detach_anchor = detach_anchor

    def penalty(self, representation: Tensor, losses: Sequence[Tensor], step: Step) -> Tensor:
        if representation.dim() < 2 or not representation.requires_grad:
            raise UsageError(
                "rep_mtl differentiates the representation again, which must be (samples, channels, ...) and in "
                f"the graph of the losses; it has shape {tuple(representation.shape)} and "
                f"{'a' if representation.requires_grad else 'no'} graph."
            )
        if self.log_losses:
            positive_losses(step, "rep_mtl(log_losses=true)")
            losses = [loss.clamp(min=FLOOR).log() for loss in losses]
        saliency = saliencies(losses, representation)
        # Squares of small gradients underflow in half precision.
        saliency = saliency.to(torch.promote_types(saliency.dtype, torch.float32))
        entropy = saliency_entropy(saliency, self.channel_mean)
        alignment = cross_task_alignment(
            saliency, self.temperature, self.positives, self.denominator, detach_anchor=self.detach_anchor
        )
        return self.entropy * entropy + self.alignment * alignment


def _normalized(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Divide by the norm over some dimensions; zero stays zero, and so do its derivatives."""
    return values / (values.square().sum(dims, keepdim=True) + TINY).sqrt()


def _gram_norms(tasks: Tensor) -> Tensor:
    """Return ``||S^T S||_F = ||S S^T||_F``, from the smaller of the two, for tasks of unit norm; shape (K, B)."""
    channels, places = tasks.shape[2:]
    gram = tasks @ tasks.mT if channels <= places else tasks.mT @ tasks
    return (gram.square().sum((2, 3)) + TINY).sqrt()
