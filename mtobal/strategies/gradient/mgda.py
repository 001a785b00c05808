"""Multiple-gradient descent: the min-norm point of the convex hull of the gradients."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from mtobal.errors import UsageError
from mtobal.solvers import min_norm
from mtobal.strategies.base import Aggregation, Step
from mtobal.strategies.card import Card
from mtobal.strategies.registry import register

Normalization = Literal["none", "l2", "loss", "loss+"]


def mgda_weights(gramian: Tensor, normalizers: Tensor | None = None, *, normalized: bool = False) -> Tensor:
    r"""Return the simplex weights of the min-norm point of the gradients ``g_k / c_k``.

    Solves ``min_w || sum_k w_k g_k / c_k ||^2`` over the simplex.

    Parameters
    ----------
    gramian : Tensor of shape (K, K)
        ``G = J J^T``, float64 on the CPU.
    normalizers : Tensor of shape (K,), optional
        The positive ``c_k``; one by default.
    normalized : bool
        Whether the weights are for the raw rows g_k (False: they are the simplex weights), or carry the
        normalisation with them, ``w_k / c_k``.

    Returns
    -------
    Tensor of shape (K,)

    See Also
    --------
    mtobal.solvers.min_norm : the solver, and its answer for degenerate inputs.
    """
    if normalizers is None:
        return torch.from_numpy(min_norm(gramian.numpy()))
    divisors = normalizers.numpy()
    weights = min_norm(gramian.numpy() / divisors[:, None] / divisors)
    return torch.from_numpy(weights / divisors if normalized else weights)


@register("mgda")
class MGDA(Aggregation):
    """Follow the shortest convex combination of the task gradients, which descends on every task.

    Parameters
    ----------
    normalization : {"none", "l2", "loss", "loss+"}
        What each gradient is divided by before the weights are solved for: one, its norm, its loss, or both.
        A zero norm or loss leaves its row as it is.
    apply_to : {"raw", "normalized"}
        Whether the weights then combine the raw gradients, as in the official code, or the normalised ones.
    **common
        ``scale`` and ``heads``, as in every aggregation.
    """

    card = Card(
        summary="Follows the shortest convex combination of the task gradients.",
        when="When no task may get worse. It moves slowly near Pareto-stationary points and favours the task "
        "with the smallest gradient: normalise when norms differ widely.",
        paper="Desideri, 2012; Sener and Koltun, Multi-Task Learning as Multi-Objective Optimization, "
        "NeurIPS 2018, arXiv:1810.04650.",
        defaults_source="No normalisation, as the paper states the problem; heads as in the official code.",
        scale="mean",
        heads="weighted",
        non_conflicting=True,
    )

    def __init__(
        self,
        normalization: Normalization = "none",
        apply_to: Literal["raw", "normalized"] = "raw",
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.normalization = normalization
        self.apply_to = apply_to

    def solve(self, gramian: Tensor, step: Step) -> Tensor:
        return mgda_weights(gramian, self._normalizers(gramian, step), normalized=self.apply_to == "normalized")

    def _normalizers(self, gramian: Tensor, step: Step) -> Tensor | None:
        if self.normalization == "none":
            return None
        normalizers = torch.ones(len(gramian), dtype=torch.float64)
        if self.normalization in ("l2", "loss+"):
            normalizers = normalizers * gramian.diag().sqrt()
        if self.normalization in ("loss", "loss+"):
            losses = step.require_losses(f"mgda(normalization={self.normalization})").to(normalizers)
            if (losses < 0).any():
                raise UsageError(f"mgda(normalization={self.normalization}) needs losses that are not negative.")
            normalizers = normalizers * losses
        return torch.where(normalizers > 0, normalizers, 1.0)
