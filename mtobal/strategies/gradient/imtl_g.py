"""Impartial multi-task learning, the balance of the gradients."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mtobal.solvers import equal_angles
from mtobal.solvers.nonnegative import Array, unit_rows
from mtobal.strategies.base import Aggregation, Step
from mtobal.strategies.card import Card
from mtobal.strategies.registry import register

Form = Literal["descent", "paper", "gramian"]


def imtl_g_weights(gramian: Tensor, form: Form = "descent") -> Tensor:
    r"""Return the weights of a direction on which all gradients project equally.

    With the cosines C and the norms n, ``alpha = (C^-1 1) / n`` is divided by its sum s, so that the weights add
    up to one. The projections are then ``u_k . d = 1 / s``: where s is negative, the published direction points
    uphill for every task.

    Parameters
    ----------
    gramian : Tensor of shape (K, K)
        ``G = J J^T``, float64 on the CPU.
    form : {"descent", "paper", "gramian"}
        ``descent`` divides by the absolute value of s, which turns an uphill direction round and changes nothing
        else, so that its weights add up to minus one; where rows are dependent it takes the pseudo-inverse of C.
        ``paper`` is the closed form ``g_1 U^T (D U^T)^-1`` to the letter: with more tasks than dimensions, its
        direction is zero in general. ``gramian`` divides ``pinv(G) n`` by its sum, another reading of dependent
        rows.

    Returns
    -------
    Tensor of shape (K,)
        A zero row gets no weight. All zero where ``pinv(C) 1`` is zero, as for two opposite rows. Where the sum
        is zero to rounding, the absolute values add up to one instead. The paper's form, where its matrix is
        singular, is the ``descent`` form.

    See Also
    --------
    mtobal.solvers.equal_angles : the solver.

    References
    ----------
    Liu, Li, Kuang, Xue, Chen, Yang, Liao and Zhang, Towards Impartial Multi-task Learning, ICLR 2021, section 3.1.

    Examples
    --------
    >>> import torch
    >>> imtl_g_weights(torch.tensor([[4.0, 0.0], [0.0, 9.0]], dtype=torch.float64))
    tensor([0.6000, 0.4000], dtype=torch.float64)
    """
    if form == "gramian":
        noise = len(gramian) * np.finfo(np.float64).eps
        weights = np.linalg.pinv(gramian.numpy(), rcond=noise, hermitian=True) @ np.sqrt(
            gramian.numpy().diagonal()
        )
        return torch.from_numpy(_divided(weights, weights.sum()))
    published = _closed_form(gramian.numpy()) if form == "paper" else None
    if published is not None:
        return torch.from_numpy(published)
    weights = equal_angles(gramian.numpy())
    return torch.from_numpy(_divided(weights, abs(weights.sum())))


def _divided(weights: Array, divisor: float) -> Array:
    size = np.abs(weights).sum()
    if abs(divisor) > 1e-12 * size:
        return weights / divisor
    return weights / size if size > 0 else weights


def _closed_form(gramian: Array) -> Array | None:
    """Return ``alpha_2..K = g_1 U^T (D U^T)^-1``, rows of D being g_1 - g_k and of U u_1 - u_k, and alpha_1."""
    cosines, norms = unit_rows(gramian)
    products = norms[:, None] * (cosines[:, :1] - cosines[:, 1:])  # g_k . (u_1 - u_j)
    matrix = products[0] - products[1:]
    if not norms.all() or np.linalg.matrix_rank(matrix) < len(matrix):
        return None
    others = np.linalg.solve(matrix.T, products[0])
    return np.concatenate([[1.0 - others.sum()], others])


@register("imtl_g")
class IMTLG(Aggregation):
    """Follow the direction on which all gradients project equally, with weights that add up to one.

    Parameters
    ----------
    form : {"descent", "paper", "gramian"}
        What to do where the published weights point uphill or are not defined; see `imtl_g_weights`.
    **common
        ``scale`` and ``heads``, as in every aggregation.
    """

    card = Card(
        summary="Follows the direction on which all gradients project equally, with weights adding up to one.",
        when="Few tasks that must all improve at the same rate. A task may get a negative weight; nearly "
        "dependent gradients make the weights large.",
        paper="Liu et al., Towards Impartial Multi-task Learning, ICLR 2021.",
        defaults_source="The closed form of the paper, except that it never points uphill. Heads with their own "
        "gradient: a negative weight would train a head the wrong way.",
        scale="mean",
        heads="raw",
    )

    def __init__(self, form: Form = "descent", **common: Any) -> None:
        super().__init__(**common)
        self.form: Form = form

    def solve(self, gramian: Tensor, step: Step) -> Tensor:
        return imtl_g_weights(gramian, self.form)
