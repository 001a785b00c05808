"""Entropy-based balance of the temperatures of several teachers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtobal.errors import UsageError

# Added to probabilities under the logarithm, as in the official code.
EPSILON = 1e-5


def teacher_entropy(logits: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
    """Return the mean over samples and classes of ``-q log(q + 1e-5)``, q the softened probabilities.

    Parameters
    ----------
    logits : Tensor of shape (B, C)
    temperature : Tensor or float

    Returns
    -------
    Tensor
        A scalar.
    """
    probabilities = (logits / temperature).softmax(1)
    return -(probabilities * (probabilities + EPSILON).log()).mean()


def distillation_loss(student: Tensor, teacher: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
    """Return the divergence of a student from the softened probabilities of its teacher.

    The mean over samples and classes of ``q (log(q + 1e-5) - log p)``, q of the teacher at this temperature, p of
    the student at one.

    Parameters
    ----------
    student, teacher : Tensor of shape (B, C)
        Logits.
    temperature : Tensor or float

    Returns
    -------
    Tensor
        A scalar: the usual divergence divided by the number of classes.
    """
    probabilities = (teacher / temperature).softmax(1)
    return (probabilities * ((probabilities + EPSILON).log() - student.log_softmax(1))).mean()


def balanced_temperatures(
    temperatures: Tensor, entropies: Tensor, rate: float = 0.001, low: float = 1.0, high: float = 10.0
) -> Tensor:
    """Cool the teachers that are less sure than the others, and heat those that are surer.

    ``tau_k - rate sign(H_k / H_other - 1)``, kept within bounds; of more than two teachers, the others count by
    their mean entropy.

    Parameters
    ----------
    temperatures, entropies : Tensor of shape (K,)
    rate, low, high : float

    Returns
    -------
    Tensor of shape (K,)

    References
    ----------
    Zhao et al., Mitigating Accuracy-Robustness Trade-off via Balanced Multi-Teacher Adversarial Distillation,
    TPAMI 2024, arXiv:2306.16170.

    Examples
    --------
    >>> import torch
    >>> balanced_temperatures(torch.tensor([2.0, 2.0]), torch.tensor([0.1, 0.3]))
    tensor([2.0010, 1.9990])
    """
    # Being above the mean of the others is being above the mean of all.
    return (temperatures - rate * (entropies - entropies.mean()).sign()).clamp(low, high)


class EntropyBalancedTemperature(nn.Module):
    """Temperatures of several teachers of one student, which bring the entropies of the teachers together.

    Parameters
    ----------
    teachers : int
        How many.
    rate : float
        Change of a temperature in one step.
    low, high : float
        Bounds of the temperatures, which start at the lower one.

    Examples
    --------
    >>> import torch
    >>> temperature = EntropyBalancedTemperature(2)
    >>> student, clean, robust = torch.randn(3, 8, 10)
    >>> losses = {
    ...     "clean": distillation_loss(student, clean, temperature.values[0]),
    ...     "robust": distillation_loss(student, robust, temperature.values[1]),
    ... }
    >>> temperature.update([clean, robust])
    """

    values: Tensor

    def __init__(self, teachers: int, rate: float = 0.001, low: float = 1.0, high: float = 10.0) -> None:
        super().__init__()
        if teachers < 2 or rate < 0 or not 0 < low <= high:
            raise UsageError(
                "EntropyBalancedTemperature needs two or more teachers, a rate that is not negative and rising "
                f"positive bounds, not {teachers}, {rate}, {low} and {high}."
            )
        self.rate = rate
        self.low = low
        self.high = high
        self.register_buffer("values", torch.full((teachers,), low, dtype=torch.float64))

    @torch.no_grad()
    def update(self, logits: Sequence[Tensor]) -> None:
        """Change the temperatures by the logits of the teachers, one tensor of shape (B, C) for each."""
        if len(logits) != len(self.values):
            raise UsageError(f"expected the logits of {len(self.values)} teachers, got {len(logits)}.")
        entropies = [teacher_entropy(given, value) for given, value in zip(logits, self.values, strict=True)]
        moved = balanced_temperatures(
            self.values, torch.stack(entropies).to(self.values), self.rate, self.low, self.high
        )
        self.values.copy_(moved)
