"""Independent component alignment: the gradients, made orthogonal and of one length."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mtobal.errors import UsageError
from mtobal.solvers.nonnegative import Array, unit_rows
from mtobal.strategies.base import Aggregation, Step
from mtobal.strategies.card import Card
from mtobal.strategies.per_task import PerTask, check_per_task, per_task
from mtobal.strategies.registry import register

ScaleMode = Literal["min", "median", "mean"]
# A ratio of eigenvalues down to which the smaller one keeps eleven digits.
_SAFE_RATIO = 1e-4
# The squared sine of the angle between each row and those before it, above which none is near to dependent.
_INDEPENDENT = 1e-2


def aligned_mtl_weights(
    gramian: Tensor,
    preference: Tensor,
    scale_mode: ScaleMode = "min",
    eps: float = float(np.finfo(np.float64).eps),
) -> Tensor:
    r"""Return the weights of the sum of the aligned gradients, ``B p``.

    With the eigenvalues lambda > 0 of ``G = V diag(lambda) V^T``, the balance transformation
    ``B = sqrt(s) V diag(lambda)^(-1/2) V^T`` makes the rows of ``B J`` orthogonal and of length sqrt(s), as near
    to those of J as such rows can be.

    Parameters
    ----------
    gramian : Tensor of shape (K, K)
        ``G = J J^T``, float64 on the CPU.
    preference : Tensor of shape (K,)
        The weights p of the aligned gradients.
    scale_mode : {"min", "median", "mean"}
        What s is of the positive eigenvalues; of an even number, the lower of the two in the middle.
    eps : float
        Eigenvalues of at most ``K eps`` times the largest count as zero.

    Returns
    -------
    Tensor of shape (K,)
        A zero row has no part in it. The preference itself, where all rows are zero.

    References
    ----------
    Senushkin, Patakin, Kuznetsov and Konushin, Independent Component Alignment for Multi-Task Learning, CVPR 2023,
    arXiv:2305.19000, algorithm 1.

    Examples
    --------
    >>> import torch
    >>> gramian = torch.tensor([[4.0, 0.0], [0.0, 9.0]], dtype=torch.float64)
    >>> aligned_mtl_weights(gramian, torch.ones(2, dtype=torch.float64))
    tensor([1.0000, 0.6667], dtype=torch.float64)
    """
    values, vectors = _positive_part(gramian, eps)
    if not len(values):
        return preference
    scale = {"min": values[0], "median": values[(len(values) - 1) // 2], "mean": values.mean()}[scale_mode]
    return torch.from_numpy(vectors @ (np.sqrt(scale / values) * (preference.numpy() @ vectors)))


def _positive_part(gramian: Tensor, eps: float) -> tuple[Array, Array]:
    """Return the eigenvalues above the tolerance, in ascending order, and their eigenvectors."""
    squared_norms = gramian.numpy().diagonal()
    graded = not squared_norms.min() > _SAFE_RATIO * squared_norms.max()  # the eigenvalues are further apart yet
    if not graded:
        values, vectors = (part.numpy() for part in torch.linalg.eigh(gramian))
        graded = not values[0] > _SAFE_RATIO * values[-1]
    if graded:
        values, vectors = _graded_eigh(gramian, eps)
    first = np.count_nonzero(values <= len(gramian) * eps * values[-1:])
    return values[first:], vectors[:, first:]


def _graded_eigh(gramian: Tensor, eps: float) -> tuple[Array, Array]:
    """Find the eigenvalues of rows of very different lengths, each exact on its own scale.

    They are the squared singular values of a factor of G with rows as long as the gradients. From the longest row
    to the shortest, its decomposition does not mix the scales.
    """
    order = (-gramian.numpy().diagonal()).argsort()
    ordered = torch.from_numpy(gramian.numpy()[order][:, order])
    factor, failed = torch.linalg.cholesky_ex(ordered)
    if failed or not (factor.diagonal() ** 2 > _INDEPENDENT * ordered.diagonal()).all():
        factor = _dependent_factor(ordered.numpy(), eps)
    left, roots, _ = (part.numpy() for part in torch.linalg.svd(factor, full_matrices=False))
    vectors = np.empty_like(left)
    vectors[order] = left
    return roots[::-1] ** 2, vectors[:, ::-1]


def _dependent_factor(gramian: Array, eps: float) -> Tensor:
    """Return F with ``G = F F^T``, of as many columns as there are independent rows."""
    cosines, norms = unit_rows(gramian)
    squares, axes = np.linalg.eigh(cosines)
    kept = squares > len(gramian) * eps * squares[-1]
    return torch.from_numpy(norms[:, None] * axes[:, kept] * np.sqrt(squares[kept]))


@register("aligned_mtl")
class AlignedMTL(Aggregation):
    """Make the gradients orthogonal and of one length, as near to what they were as can be, and sum them.

    Parameters
    ----------
    scale_mode : {"min", "median", "mean"}
        The common length: the root of the smallest, the median or the mean eigenvalue of the Gramian.
    preference : mapping from task to float, or sequence of floats, optional
        Weights of the aligned gradients; one each by default.
    eps : float
        Eigenvalues of at most K times this, relative to the largest, count as zero. The default is the precision
        of float64, in which the eigenvalues are found; that of the gradients, 1.2e-7 for float32, leaves out
        what may be their rounding, and with it gradients shorter than the longest by more than its root.
    **common
        ``scale`` and ``heads``, as in every aggregation.
    """

    card = Card(
        summary="Makes the gradients orthogonal and of one length, as near to what they were as can be, and sums.",
        when="Conflicting gradients of similar length. The common length is that of the weakest component: one "
        "tiny or nearly dependent gradient stalls all tasks, unless scale_mode is median or mean.",
        paper="Senushkin et al., Independent Component Alignment for Multi-Task Learning, CVPR 2023, "
        "arXiv:2305.19000.",
        defaults_source="The official code: smallest eigenvalue, a plain sum, heads with their own gradient; its "
        "'rmse' is mean here. The tolerance is that of float64 instead of float32.",
        scale="sum",
        heads="raw",
    )

    def __init__(
        self,
        scale_mode: ScaleMode = "min",
        preference: PerTask | None = None,
        eps: float = float(np.finfo(np.float64).eps),
        **common: Any,
    ) -> None:
        super().__init__(**common)
        check_per_task(preference, "the preference of aligned_mtl", minimum=0.0)
        if not 0 < eps < 1:
            raise UsageError(f"aligned_mtl: eps must lie between 0 and 1, not {eps}.")
        self.scale_mode: ScaleMode = scale_mode
        self.preference = preference
        self.eps = eps

    def solve(self, gramian: Tensor, step: Step) -> Tensor:
        preference = per_task(self.preference, 1.0, step, gramian[0], "the preference of aligned_mtl")
        return aligned_mtl_weights(gramian, preference, self.scale_mode, self.eps)
