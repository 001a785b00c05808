"""Smooth Tchebycheff scalarisation."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mtobal.errors import UsageError
from mtobal.strategies.base import Step
from mtobal.strategies.card import Card
from mtobal.strategies.loss.epochs import EpochWeighting, fill, of_active, share
from mtobal.strategies.loss.positive import FLOOR, log_slopes, positive_losses
from mtobal.strategies.per_task import PerTask, check_per_task, per_task
from mtobal.strategies.registry import register


def smooth_tchebycheff_weights(losses: Tensor, preference: Tensor, ideal: Tensor, mu: float) -> Tensor:
    r"""Differentiate ``mu log sum_k exp(lambda_k (L_k - z_k) / mu)``, a smooth maximum.

    ``w_k = lambda_k softmax(lambda (L - z) / mu)_k``. The value lies between ``max_k lambda_k (L_k - z_k)`` and
    ``mu log K`` above it.

    Parameters
    ----------
    losses, preference, ideal : Tensor of shape (K,)
        L, lambda and z.
    mu : float
        Positive; the smaller, the nearer to the plain maximum.

    Returns
    -------
    Tensor of shape (K,)

    References
    ----------
    Lin, Zhang, Yang, Liu, Wang and Zhang, Smooth Tchebycheff Scalarization for Multi-Objective Optimization,
    ICML 2024, arXiv:2402.19078, equation 10.

    Examples
    --------
    >>> import torch
    >>> smooth_tchebycheff_weights(torch.tensor([1.0, 2.0]), torch.ones(2), torch.zeros(2), mu=1.0)
    tensor([0.2689, 0.7311])
    """
    return preference * (preference * (losses - ideal) / mu).softmax(0)


def log_tchebycheff_weights(losses: Tensor, nadir: Tensor, mu: float) -> Tensor:
    r"""Differentiate ``K mu log sum_k exp(l_k / mu)`` with ``l_k = log(L_k / n_k)``.

    ``w_k = K softmax(l / mu)_k / L_k``, which for mu to infinity becomes ``1 / L_k``.

    Parameters
    ----------
    losses : Tensor of shape (K,)
        Not negative; below 1e-8 the logarithm is continued by its tangent.
    nadir : Tensor of shape (K,)
        The losses n that each task is measured by; NaN for a task that has none yet, whose weight is
        ``1 / L_k``.
    mu : float
        Positive.

    Returns
    -------
    Tensor of shape (K,)
    """
    return share((losses.clamp(min=FLOOR) / nadir.clamp(min=FLOOR)).log() / mu) * log_slopes(losses)


@register("stch")
class STCH(EpochWeighting):
    """Minimise a smooth maximum of the losses, or of their logarithms.

    Parameters
    ----------
    form : {"log", "paper"}
        ``log`` takes the logarithms of the losses, each measured by its average over epoch `warmup_epochs`
        (counted from zero), and up to the end of that epoch the plain sum of the logarithms: the authors' code
        for multi-task learning. ``paper`` is the formula of the paper on the raw losses, without state.
    mu : float
        The smaller, the more the worst task counts.
    warmup_epochs : int
        See `form`. Needs to be told of the end of each epoch.
    preference : mapping or sequence of floats, optional
        Of the paper's form: the factor lambda of each task, by default 1/K.
    ideal : mapping or sequence of floats, optional
        Of the paper's form: the best loss z of each task, by default zero.
    """

    card = Card(
        summary="Minimises a smooth maximum of the losses or of their logarithms.",
        when="When the worst task matters most. The log form is for losses of different units.",
        paper="Lin et al., Smooth Tchebycheff Scalarization for Multi-Objective Optimization, ICML 2024, "
        "arXiv:2402.19078.",
        defaults_source="The log form, mu = 1 and four epochs of warm-up before the one that is averaged, as in "
        "the authors' multi-task code (LibMTL).",
        state="of the log form: the running average of the epoch, and the averages the tasks are measured by",
        scale="own",
        heads="weighted",
    )

    nadir: Tensor | None

    def __init__(
        self,
        form: Literal["log", "paper"] = "log",
        mu: float = 1.0,
        warmup_epochs: int = 4,
        preference: PerTask | None = None,
        ideal: PerTask | None = None,
    ) -> None:
        super().__init__()
        if mu <= 0:
            raise UsageError(f"stch: mu must be positive, not {mu}.")
        if warmup_epochs < 0:
            raise UsageError(f"stch: warmup_epochs must not be negative, but is {warmup_epochs}.")
        if form == "log" and (preference is not None or ideal is not None):
            raise UsageError("stch: preference and ideal belong to form=paper; the log form has neither.")
        check_per_task(preference, "stch: preference", minimum=0.0)
        check_per_task(ideal, "stch: ideal")
        self.form = form
        self.mu = mu
        self.warmup_epochs = warmup_epochs
        self.preference = preference
        self.ideal = ideal
        self.register_buffer("nadir", None)

    def weigh(self, step: Step) -> Tensor:
        if self.form == "paper":
            losses = step.require_losses("stch")
            preference = per_task(self.preference, 1 / len(step.tasks), step, losses, "stch: preference")
            ideal = per_task(self.ideal, 0.0, step, losses, "stch: ideal")
            return smooth_tchebycheff_weights(losses, preference, ideal, self.mu)
        losses = positive_losses(step, "stch")
        return log_tchebycheff_weights(losses, of_active(self.nadir, step, losses), self.mu)

    def update(self, step: Step) -> None:
        if self.form == "log":
            super().update(step)

    def learn_epoch(self, averages: Tensor) -> None:
        if self.epoch >= self.warmup_epochs:
            # A task that was missing in that epoch is measured by the first one that it is in.
            self.nadir = fill(self.nadir, averages)
