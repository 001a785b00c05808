"""Conflict-free gradients: one direction at the same angle to every task."""

from __future__ import annotations

import torch
from torch import Tensor

from mtobal.solvers import equal_angles
from mtobal.strategies.base import Aggregation, Step
from mtobal.strategies.card import Card
from mtobal.strategies.registry import register


def config_weights(gramian: Tensor) -> Tensor:
    r"""Return the weights of the direction at equal angles, as long as the gradients project on it in sum.

    With the unit rows U, ``x = pinv(U) 1`` has ``u_k . x`` equal for all k where the rows are independent, and as
    equal as can be where not; the direction is ``(sum_k g_k . x) x / ||x||^2``. As ``x = U^T pinv(U U^T) 1``, the
    Gramian is enough.

    Parameters
    ----------
    gramian : Tensor of shape (K, K)
        ``G = J J^T``, float64 on the CPU.

    Returns
    -------
    Tensor of shape (K,)
        A zero row has no part in it. All zero where ``pinv(U) 1`` is zero, as for two opposite rows.

    See Also
    --------
    mtobal.solvers.equal_angles : the solver.

    References
    ----------
    Liu, Chu and Thuerey, ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks, ICLR 2025,
    arXiv:2408.11104, equations 2 and 3.

    Examples
    --------
    >>> import torch
    >>> config_weights(torch.tensor([[4.0, 0.0], [0.0, 9.0]], dtype=torch.float64))
    tensor([1.2500, 0.8333], dtype=torch.float64)
    """
    weights = equal_angles(gramian.numpy())
    if weights.any():
        products = gramian.numpy() @ weights
        weights *= products.sum() / (weights @ products)
    return torch.from_numpy(weights)


@register("config")
class ConFIG(Aggregation):
    """Follow the direction at the same angle to every gradient, with the length that they have on it in sum.

    Parameters
    ----------
    **common
        ``scale`` and ``heads``, as in every aggregation.
    """

    card = Card(
        summary="Follows the direction at the same angle to every gradient, with their summed length along it.",
        when="Few tasks that must all improve at the same rate, as the losses of physics-informed networks. A "
        "task may get a negative weight; nearly dependent gradients make the weights large.",
        paper="Liu, Chu and Thuerey, ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks, "
        "ICLR 2025, arXiv:2408.11104.",
        defaults_source="Equal weights and the projection length of the official code; the pseudo-inverse instead "
        "of its least-squares routine, which is wrong for a zero row.",
        scale="sum",
        heads="raw",
    )

    def solve(self, gramian: Tensor, step: Step) -> Tensor:
        return config_weights(gramian)
