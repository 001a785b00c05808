"""One aggregation, without a model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtobal.errors import UsageError
from mtobal.ops import Jacobian
from mtobal.strategies.base import Step
from mtobal.strategies.composition import Composition
from mtobal.strategies.spec import Spec, build


def weights(gramian: Tensor, spec: Spec, losses: Tensor | Sequence[float] | None = None) -> Tensor:
    """Return the task weights that a strategy gives for a Gramian.

    Parameters
    ----------
    gramian : Tensor of shape (K, K)
        ``G = J J^T`` of the gradients of the raw losses.
    spec : str, mapping or Strategy
        As in `mtobal.strategies.build`. A string is built anew, so it has no memory of earlier calls;
        an instance has.
    losses : Tensor or sequence of shape (K,), optional
        For strategies that read the losses.

    Returns
    -------
    Tensor of shape (K,)
        Weights on the raw gradients, in the dtype and on the device of the Gramian.

    Examples
    --------
    >>> import torch, mtobal
    >>> mtobal.weights(torch.tensor([[4.0, 0.0], [0.0, 9.0]]), "mgda")
    tensor([0.6923, 0.3077])
    """
    _check("gramian", gramian)
    _check_finite("gramian", gramian)
    if gramian.shape[0] != gramian.shape[1]:
        raise UsageError(f"the Gramian must be square, not of shape {tuple(gramian.shape)}.")
    composition = _without_model(spec)
    if composition.aggregation is not None and composition.aggregation.reads == "jacobian":
        raise UsageError(f"{composition.spec!r} reads the Jacobian itself: use mtobal.aggregate.")
    step = Step.of(len(gramian), _losses(losses, gramian))
    exact = gramian.detach().to("cpu", torch.float64)
    loss_weights = composition.loss_weights(step)
    solved = composition.aggregation_weights(exact, step, loss_weights)
    composition.update(step, loss_weights)
    return (solved * loss_weights.to(solved)).to(gramian)


def aggregate(jacobian: Tensor, spec: Spec, losses: Tensor | Sequence[float] | None = None) -> Tensor:
    """Combine the rows of a Jacobian into one direction.

    Parameters
    ----------
    jacobian : Tensor of shape (K, P)
        One row a task: the gradient of its raw loss.
    spec : str, mapping or Strategy
        As in `mtobal.strategies.build`.
    losses : Tensor or sequence of shape (K,), optional
        For strategies that read the losses.

    Returns
    -------
    Tensor of shape (P,)
        What a strategy writes into ``.grad`` of the shared parameters.

    Examples
    --------
    >>> import torch, mtobal
    >>> mtobal.aggregate(torch.tensor([[1.0, 0.0], [-1.0, 2.0]]), "pcgrad")
    tensor([0.8000, 2.4000])
    """
    _check("jacobian", jacobian)
    rows = jacobian.detach()
    composition = _without_model(spec)
    working = Jacobian((rows.to(torch.promote_types(rows.dtype, torch.float32)),), ("jacobian",))
    if composition.aggregation is None or composition.aggregation.reads != "jacobian":
        gram = working.gramian()
        if not gram.isfinite().all():
            _check_finite("jacobian", rows)
            gram = working.double().gramian()  # finite rows whose squares overflow
        return working.combine(weights(gram, composition, losses))[0].to(rows)
    _check_finite("jacobian", rows)
    step = Step.of(len(rows), _losses(losses, rows))
    loss_weights = composition.loss_weights(step)
    direction = composition.aggregation_direction(working, step, loss_weights)
    composition.update(step, loss_weights)
    return direction.blocks[0].to(rows)


def _without_model(spec: Spec) -> Composition:
    composition = build(spec)
    if composition.perturbation is not None or composition.regulariser is not None:
        raise UsageError(
            f"{composition.spec!r} needs the model and not only its gradients: use mtobal.Balancer, or leave out "
            "what stands beside the aggregation."
        )
    return composition


def _check(name: str, tensor: Tensor) -> None:
    if not (isinstance(tensor, Tensor) and tensor.dim() == 2 and tensor.is_floating_point() and len(tensor)):
        raise UsageError(f"the {name} must be a floating-point tensor with one row a task, not {_kind(tensor)}.")


def _check_finite(name: str, tensor: Tensor) -> None:
    # A sum is finite only if all of it is, and costs a fraction of looking at each entry.
    if not tensor.sum().isfinite() and not tensor.isfinite().all():
        bad = [str(task) for task, row in enumerate(tensor) if not row.isfinite().all()]
        raise UsageError(f"the {name} has NaN or infinite entries in row {', '.join(bad)}.")


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"one of shape {tuple(value.shape)} and {value.dtype}"
    return type(value).__name__


def _losses(losses: Tensor | Sequence[float] | None, like: Tensor) -> Tensor | None:
    if losses is None:
        return None
    values = torch.as_tensor(losses, dtype=torch.float64).detach()
    if values.shape != (len(like),):
        raise UsageError(f"expected {len(like)} losses, one for each row; got shape {tuple(values.shape)}.")
    if not values.isfinite().all():
        raise UsageError(f"the losses must be finite, not {values.tolist()}.")
    return values
