"""Join the losses of single samples or tokens of several tasks."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mtobal.errors import UsageError

Mode = Literal["tokens", "samples", "tasks", "task_samples"]


def join_losses(
    losses: Tensor,
    task_ids: Tensor,
    weights: Tensor | None = None,
    valid: Tensor | None = None,
    mode: Mode = "tokens",
    num_tasks: int | None = None,
) -> Tensor:
    r"""Average losses that are not reduced yet, of a batch in which every sample belongs to one task.

    ========================  =========================================================  =======================
    mode                      with task weights w                                        known as
    ========================  =========================================================  =======================
    ``tokens``                ``sum_k w_k sum_k l / sum_k w_k n_k``                      VisATB's VITW; case 1
    ``samples``               mean over samples of ``w_k`` times the mean of a sample,   case 2
                              divided by the mean ``w_k``
    ``tasks``                 ``sum_k w_k (sum_k l / n_k) / sum_k w_k``                  case 3; CoBa, case 5
    ``task_samples``          the same with the mean over a task's samples of their      case 4
                              means
    ========================  =========================================================  =======================

    The cases are those of MFTCoder; the sums over tasks are over those in the batch. On several ranks each divides
    by the counts of its own part of the batch, as the official codes do.

    Parameters
    ----------
    losses : Tensor of shape (B, T) or (B,)
        One loss a token (or pixel), or one a sample.
    task_ids : Tensor of shape (B,)
        The task of each sample, from 0.
    weights : Tensor of shape (K,), optional
        Task weights without graph; by default one.
    valid : Tensor of the shape of the losses, optional
        Which of them count; all by default. A sample without any counts nowhere.
    mode : {"tokens", "samples", "tasks", "task_samples"}
    num_tasks : int, optional
        K, if there are no weights to tell it.

    Returns
    -------
    Tensor
        A scalar; zero if nothing counts.

    References
    ----------
    VisATB, arXiv:2403.04343, equation 2; MFTCoder, KDD 2024, arXiv:2311.02303.

    Examples
    --------
    >>> import torch
    >>> losses = torch.tensor([[1.0, 3.0], [8.0, 0.0]])
    >>> valid = torch.tensor([[True, True], [True, False]])
    >>> join_losses(losses, torch.tensor([0, 1]), torch.tensor([1.0, 0.5]), valid)
    tensor(3.2000)
    """
    totals, counts = sample_totals(losses, valid)
    size = len(weights) if weights is not None else num_tasks or int(task_ids.max()) + 1
    if task_ids.shape != totals.shape or task_ids.min() < 0 or task_ids.max() >= size:
        raise UsageError(
            f"expected one task id below {size} for each of {len(totals)} samples, got {task_ids.tolist()}."
        )
    of_task = totals.new_ones(size) if weights is None else weights.detach().to(totals)
    if mode in ("tokens", "samples"):
        if mode == "samples":
            totals, counts = _means(totals, counts)
        of_sample = of_task[task_ids]
        return _ratio((of_sample * totals).sum(), (of_sample * counts).sum())
    means, present = task_losses(losses, task_ids, size, valid, per_sample=mode == "task_samples")
    return _ratio((of_task * means).sum(), (of_task * present).sum())


def task_losses(
    losses: Tensor, task_ids: Tensor, num_tasks: int, valid: Tensor | None = None, *, per_sample: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the mean loss of each task in a batch, and whether the task is in the batch.

    Parameters
    ----------
    losses, task_ids, valid
        As in `join_losses`.
    num_tasks : int
    per_sample : bool
        Average over the means of the samples rather than over all tokens.

    Returns
    -------
    means : Tensor of shape (K,)
        Zero for a task that is not there.
    present : Tensor of shape (K,)
        Bool.
    """
    totals, counts = sample_totals(losses, valid)
    if per_sample:
        totals, counts = _means(totals, counts)
    summed = totals.new_zeros(num_tasks).index_add(0, task_ids, totals)
    number = totals.new_zeros(num_tasks).index_add(0, task_ids, counts)
    return _ratio(summed, number), number > 0


def sample_totals(losses: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return for each sample the sum of its losses that count, and their number, both of shape (B,)."""
    flat = losses.flatten(1) if losses.dim() > 1 else losses[:, None]
    if valid is None:
        return flat.sum(1), torch.full_like(flat[:, 0], flat.shape[1])
    mask = valid.reshape(flat.shape).bool()
    return flat.where(mask, 0.0).sum(1), mask.sum(1).to(flat)


def _means(totals: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Let every sample that has a valid loss count once, with its mean."""
    return _ratio(totals, counts), (counts > 0).to(totals)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide, with zero for nothing in nothing."""
    return numerator / denominator.where(denominator > 0, 1.0)
