"""Active multi-task representation learning: draw more from the sources that are relevant for a target."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import Sampler

from mtobal.errors import UsageError
from mtobal.solvers import SolverError

Array = NDArray[np.float64]


def sparsest_relevance(heads: ArrayLike, target: ArrayLike) -> Array:
    """Combine source heads to a target head with coefficients of least absolute sum.

    ``argmin ||nu||_1`` with ``W nu = w``, a linear program.

    Parameters
    ----------
    heads : array of shape (k, T)
        W, the head of one source task in each column.
    target : array of shape (k,)

    Returns
    -------
    array of shape (T,)
        At most k of them are not zero.

    Raises
    ------
    UsageError
        The target head is no combination of the source heads; `lasso_relevance` always has an answer.

    Examples
    --------
    >>> sparsest_relevance([[1.0, 0.0, 0.7], [0.0, 1.0, 0.7]], [1.4, 1.4])
    array([0., 0., 2.])
    """
    from scipy.optimize import linprog

    matrix = np.asarray(heads, dtype=np.float64)
    size = matrix.shape[1]
    found = linprog(np.ones(2 * size), A_eq=np.hstack([matrix, -matrix]), b_eq=target, method="highs")
    if found.status != 0:
        raise UsageError("the target head is no linear combination of the source heads: use lasso_relevance.")
    return np.asarray(found.x[:size] - found.x[size:] + 0.0)  # without a minus before a zero


def lasso_relevance(heads: ArrayLike, target: ArrayLike, penalty: float = 0.01) -> Array:
    r"""Combine source heads to nearly a target head, with few coefficients that are not zero.

    ``argmin 1/2 ||W nu - w||^2 + penalty ||nu||_1``, by coordinate descent until its duality gap is within
    rounding.

    Parameters
    ----------
    heads : array of shape (k, T)
        W, the head of one source task in each column.
    target : array of shape (k,)
    penalty : float
        Positive; the larger, the fewer tasks.

    Returns
    -------
    array of shape (T,)

    Examples
    --------
    >>> lasso_relevance([[1.0, 0.0], [0.0, 1.0]], [0.5, 0.1], penalty=0.2)
    array([0.3, 0. ])
    """
    matrix, wanted = np.asarray(heads, dtype=np.float64), np.asarray(target, dtype=np.float64)
    if not penalty > 0:
        raise UsageError(f"the penalty of the lasso must be positive, not {penalty}.")
    norms = np.sqrt((matrix**2).sum(axis=0))
    chosen = norms > 0
    columns = matrix[:, chosen] / norms[chosen]
    # Positive and negative parts are variables of their own, of which at most one is not zero.
    parts = _nonnegative_lasso(np.hstack([columns, -columns]), wanted, penalty / np.tile(norms[chosen], 2))
    relevance = np.zeros(len(norms))
    relevance[chosen] = (parts[: chosen.sum()] - parts[chosen.sum() :]) / norms[chosen]
    return relevance


def allocate(relevance: ArrayLike, total: int, least: int = 0) -> Array:
    """Share out samples by relevance: ``max(total |nu_t| / ||nu||_1, least)``.

    Parameters
    ----------
    relevance : array of shape (T,)
    total : int
        Samples to be shared; with `least` the sum can exceed it.
    least : int
        Samples that every task gets.

    Returns
    -------
    array of shape (T,)
        Not rounded. Equal shares if no task is relevant.

    Examples
    --------
    >>> allocate([1.5, 0.0, -0.5], total=100, least=10)
    array([75., 10., 25.])
    """
    sizes = np.abs(np.asarray(relevance, dtype=np.float64))
    shares = sizes / sizes.sum() if sizes.any() else np.full(len(sizes), 1 / len(sizes))
    return np.asarray(np.maximum(total * shares, least))


class RelevanceSampler(Sampler[int]):
    """Draw samples of source tasks, first in equal numbers and then by their relevance for a target task.

    Train on the first epochs, give the heads that were learned to `focus`, and train on.

    Parameters
    ----------
    task_ids : sequence of int
        The source task of every sample of the data set, from 0.
    total : int
        Samples in an epoch that are shared out.
    least : int
        Samples in an epoch that every task gets after `focus`.
    penalty : float
        Of the lasso that finds the relevance.
    seed : int

    References
    ----------
    Wang, Chen, Jamieson and Du, Improved Active Multi-Task Representation Learning via Lasso, ICML 2023,
    arXiv:2306.02556. Without official code; `total`, `least` and `penalty` are not those of its experiments. It
    claims a need of samples that grows with ``||nu||_1^2``, rather than with ``||nu||_2^2`` times the number of
    relevant tasks.

    Examples
    --------
    >>> sampler = RelevanceSampler([0, 0, 0, 1, 1, 1], total=4)
    >>> sampler.focus([[1.0, 0.0], [0.0, 1.0]], target=[0.0, 1.0])
    >>> sampler.counts
    [1, 4]
    """

    def __init__(
        self, task_ids: Sequence[int] | Tensor, total: int, least: int = 1, penalty: float = 0.01, seed: int = 0
    ) -> None:
        ids = torch.as_tensor(task_ids)
        self.members = [torch.nonzero(ids == task).flatten() for task in range(int(ids.max()) + 1)]
        if empty := [task for task, members in enumerate(self.members) if not len(members)]:
            raise UsageError(f"source task {empty[0]} has no samples: number the tasks from 0 without gaps.")
        self.total = total
        self.least = least
        self.penalty = penalty
        self.relevance = np.ones(len(self.members))
        self.generator = torch.Generator().manual_seed(seed)

    def focus(self, heads: ArrayLike, target: ArrayLike) -> None:
        """Take the relevance of the source tasks from heads on a common representation.

        Parameters
        ----------
        heads : array of shape (k, T)
            The head of one source task in each column.
        target : array of shape (k,)
            The head of the target task.
        """
        relevance = lasso_relevance(heads, target, self.penalty)
        if len(relevance) != len(self.members):
            raise UsageError(f"expected the heads of {len(self.members)} source tasks, got {len(relevance)}.")
        self.relevance = relevance

    @property
    def counts(self) -> list[int]:
        """How many samples of each task an epoch draws."""
        return [round(count) for count in allocate(self.relevance, self.total, self.least).tolist()]

    def __len__(self) -> int:
        return sum(self.counts)

    def __iter__(self) -> Iterator[int]:
        drawn = torch.cat([self._draw(members, n) for members, n in zip(self.members, self.counts, strict=True)])
        yield from drawn[torch.randperm(len(drawn), generator=self.generator)].tolist()

    def _draw(self, members: Tensor, count: int) -> Tensor:
        """Draw from the samples of a task, each again only when all have been drawn."""
        rounds = -(-count // len(members))
        orders = [torch.randperm(len(members), generator=self.generator) for _ in range(rounds)]
        return members[torch.cat(orders)[:count]] if orders else members[:0]


def _nonnegative_lasso(columns: Array, target: Array, penalties: Array) -> Array:
    """Solve ``min 1/2 ||C x - t||^2 + p^T x`` over ``x >= 0`` by variables that enter and leave one at a time.

    There may be more columns, of unit length, than rows. Where those of the support become dependent, x moves
    along what leaves ``C x`` as it is and lowers the penalty, until a variable leaves. The objective falls with
    every support, so none comes twice.
    """
    x = np.zeros(columns.shape[1])
    support = np.zeros(len(x), dtype=bool)
    rounding = 1e-12 * max(float(np.abs(target).max()), float(penalties.max(initial=0.0)))
    for _ in range(100 * len(x) + 1):
        slopes = np.where(support, -np.inf, columns.T @ (target - columns @ x) - penalties)
        if slopes.max(initial=-np.inf) <= rounding:
            return x
        support[slopes.argmax()] = True
        arrived = False
        while not arrived:
            places = np.flatnonzero(support)
            chosen = columns[:, places]
            _, sizes, axes = np.linalg.svd(chosen)
            null = axes[np.count_nonzero(sizes > 1e-10) :]
            direction = -(penalties[places] @ null.T) @ null
            if np.abs(direction).max() <= 1e-10 * penalties.max():
                direction = np.linalg.pinv(chosen) @ target - x[places]
                direction -= np.linalg.pinv(chosen.T @ chosen, hermitian=True) @ penalties[places]
                limit = 1.0
            else:
                limit = np.inf
            falling = direction < 0
            lengths = np.full(len(places), np.inf)
            lengths[falling] = x[places][falling] / -direction[falling]
            length = min(limit, float(lengths.min()))
            x[places] += length * direction
            arrived = length == limit
            if not arrived:
                leaving = places[lengths == length]
                x[leaving] = 0.0
                support[leaving] = False
    raise SolverError(f"the lasso over {columns.shape[1] // 2} tasks did not settle.")
