"""Dual-cone projection: the nearest direction to the mean gradient in which no task gets worse."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtobal.solvers import dual_cone
from mtobal.strategies.base import Aggregation, Step
from mtobal.strategies.card import Card
from mtobal.strategies.gradient.preference import normalized_preference
from mtobal.strategies.per_task import PerTask, check_per_task
from mtobal.strategies.registry import register


def dualproj_weights(gramian: Tensor, preference: Tensor) -> Tensor:
    r"""Return the weights of the projection of ``J^T u`` on ``{d : J d >= 0}``, with the preference u.

    Parameters
    ----------
    gramian : Tensor of shape (K, K)
        ``G = J J^T``, float64 on the CPU.
    preference : Tensor of shape (K,)
        The combination u that is projected.

    Returns
    -------
    Tensor of shape (K,)
        Weights ``v >= u`` with ``G v >= 0`` and ``(v - u)_k (G v)_k = 0``.

    See Also
    --------
    mtobal.solvers.dual_cone : the solver, and its answer for degenerate inputs.

    References
    ----------
    Lopez-Paz and Ranzato, Gradient Episodic Memory for Continual Learning, NeurIPS 2017, arXiv:1706.08840.

    Examples
    --------
    >>> import torch
    >>> gramian = torch.tensor([[1.0, -2.0], [-2.0, 9.0]], dtype=torch.float64)
    >>> dualproj_weights(gramian, torch.tensor([0.5, 0.5], dtype=torch.float64))
    tensor([1.0000, 0.5000], dtype=torch.float64)
    """
    return torch.from_numpy(dual_cone(gramian.numpy(), preference.numpy()))


@register("dualproj")
class DualProj(Aggregation):
    """Follow the mean gradient, projected on the directions in which no task gets worse.

    Parameters
    ----------
    preference : mapping from task to float, or sequence of floats, optional
        Which combination of the gradients is projected; only the ratios count. Uniform by default.
        A task with preference zero is protected but not pursued.
    **common
        ``scale`` and ``heads``, as in every aggregation.
    """

    card = Card(
        summary="Projects the mean gradient on the directions in which no task gets worse.",
        when="When the mean is what you want and no task may get worse. One large gradient decides where it "
        "points; upgrad gives each task its say.",
        paper="Lopez-Paz and Ranzato, Gradient Episodic Memory for Continual Learning, NeurIPS 2017, "
        "arXiv:1706.08840.",
        defaults_source="The uniform preference 1/K, as in Quinton and Rey, arXiv:2406.16232.",
        scale="mean",
        heads="raw",
        non_conflicting=True,
    )

    def __init__(self, preference: PerTask | None = None, **common: Any) -> None:
        super().__init__(**common)
        check_per_task(preference, "the preference of dualproj", minimum=0.0)
        self.preference = preference

    def solve(self, gramian: Tensor, step: Step) -> Tensor:
        return dualproj_weights(gramian, normalized_preference("dualproj", self.preference, step))
