"""Scores of a binary confusion matrix as losses."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mtobal.errors import UsageError
from mtobal.tasks.labels import MISSING

# Keeps the root differentiable where all predictions of a class are surely wrong.
TINY = 1e-30

Score = Literal["accuracy", "f_beta", "g_mean", "balanced_accuracy"]


def anyloss(
    probabilities: Tensor,
    targets: Tensor,
    score: Score = "f_beta",
    *,
    beta: float = 1.0,
    amplification: float = 73.0,
) -> Tensor:
    r"""Return one minus a score of the confusion matrix, made smooth.

    Each probability is pushed towards 0 or 1 by ``A(p) = 1 / (1 + exp(-L (p - 1/2)))``, and the entries of the
    confusion matrix are sums of these over the batch. All losses lie between zero and one, so those of several
    tasks are on one scale.

    Parameters
    ----------
    probabilities : Tensor of shape (N,)
        Of the positive class; ``logits.sigmoid()``.
    targets : Tensor of shape (N,)
        1, 0, and -1 for a sample without a label, which is left out.
    score : {"accuracy", "f_beta", "g_mean", "balanced_accuracy"}
        The last two are the geometric and the arithmetic mean of the rates of both classes that are right. For a
        class that the batch lacks, that rate is one; and without positives ``f_beta`` is a loss of one, with no
        gradient.
    beta : float
        How many times more recall counts than precision, in ``f_beta``.
    amplification : float
        L.

    Returns
    -------
    Tensor
        A scalar; without any label a zero without a graph.

    References
    ----------
    Han, Moniz and Chawla, AnyLoss: Transforming Classification Metrics into Loss Functions, KDD 2024,
    arXiv:2405.14745. It advises 73 for L, and claims for example an F1 of 0.980 rather than 0.965 by cross entropy
    on MNIST.

    Examples
    --------
    >>> import torch
    >>> anyloss(torch.tensor([0.9, 0.8, 0.2, 0.6]), torch.tensor([1.0, 1.0, 0.0, 0.0]), "accuracy")
    tensor(0.2498)
    """
    if probabilities.dim() != 1 or targets.shape != probabilities.shape:
        raise UsageError(
            "anyloss: expected one probability and one target for each sample, got shapes "
            f"{tuple(probabilities.shape)} and {tuple(targets.shape)}."
        )
    labelled = targets != MISSING
    if not labelled.any():
        return probabilities.new_zeros(())
    positive = targets[labelled].to(probabilities)
    amplified = amplification * (probabilities[labelled] - 0.5)
    predicted = amplified.sigmoid()
    true_positives = (positive * predicted).sum()
    true_negatives = ((1 - positive) * (-amplified).sigmoid()).sum()
    positives, negatives = positive.sum(), (1 - positive).sum()
    if score == "accuracy":
        return 1 - (true_positives + true_negatives) / len(positive)
    if score == "f_beta":
        return 1 - (1 + beta**2) * true_positives / (beta**2 * positives + predicted.sum())
    recall = true_positives / positives if positives > 0 else true_positives + 1
    specificity = true_negatives / negatives if negatives > 0 else true_negatives + 1
    if score == "g_mean":
        return 1 - (recall * specificity).clamp(min=TINY).sqrt()
    return 1 - (recall + specificity) / 2
