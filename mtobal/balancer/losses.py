"""The losses of one batch, as they come from the training loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mtobal.balancer.again import Losses
from mtobal.errors import UsageError
from mtobal.gradients import Ranks
from mtobal.strategies import Step


def present_losses(losses: Losses, tasks: Sequence[str] | None) -> dict[str, Tensor]:
    """Check the losses and keep those that take part in the step, in the order of the tasks.

    Parameters
    ----------
    losses : mapping from task to scalar tensor or None
    tasks : sequence of str or None
        The names of all tasks; None means those of this batch.

    Raises
    ------
    UsageError
        An unknown task, or a loss that is no scalar or has no graph.
    """
    if not isinstance(losses, Mapping) or not losses:
        raise UsageError(
            f"expected the losses as a mapping from task to scalar tensor, got {_kind(losses)}: "
            'balancer({"seg": loss_seg, "depth": loss_depth}).'
        )
    names = list(losses) if tasks is None else tasks
    for task in losses:
        if task not in names:
            raise UsageError(
                f"task {task!r} was not among the tasks of the first step ({', '.join(names)}): give every task "
                "there, None for one without labels in that batch, or all names as tasks= of a Balancer."
            )
    present: dict[str, Tensor] = {}
    for task in names:
        loss = losses.get(task)
        if loss is None:
            continue
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
            raise UsageError(
                f"the loss of task {task!r} must be a scalar tensor, got {_kind(loss)}: {_remedy(loss)}."
            )
        if torch.is_grad_enabled() and not loss.requires_grad:
            if loss.item() == 0:  # no valid label in this batch
                continue
            raise UsageError(
                f"the loss of task {task!r} has no graph: was it detached, or made under no_grad or of a number? "
                "Give None for a task that sits a batch out."
            )
        present[task] = loss
    return present


def share_losses(
    present: Mapping[str, Tensor], tasks: tuple[str, ...], model: nn.Module | None, ranks: Ranks
) -> tuple[Step, list[int]]:
    """Average the losses over the ranks.

    Parameters
    ----------
    present : mapping from task to scalar tensor
        What this rank has.
    tasks : tuple of str
        The names of all tasks.
    model : nn.Module or None
        Says what type losses have where this rank has none.
    ranks : Ranks

    Returns
    -------
    Step
        What all ranks do together: a task takes part if any of them has its loss.
    list of int
        The tasks whose loss is not finite on one of the ranks.

    Raises
    ------
    UsageError
        No task has a loss.
    """
    local = [tasks.index(task) for task in present]
    if not local and ranks.size == 1:
        raise UsageError(
            "no task has a loss in this batch: skip its step; in Lightning, return None from training_step."
        )
    values = _side_by_side(present) if present else _no_losses(model)
    finite = values.isfinite().tolist()
    bad = [task for task, good in zip(local, finite, strict=True) if not good]
    if ranks.size == 1:
        return Step(tasks, tuple(local), values), bad
    table = torch.zeros(3, len(tasks), dtype=torch.float64)  # present, not finite, loss
    table[0, local] = 1.0
    table[1, bad] = 1.0
    table[2, local] = torch.where(values.isfinite(), values, 0).to(table)
    count, broken, total = ranks.sum(table)
    active = tuple(count.nonzero().flatten().tolist())
    if not active:
        raise UsageError("no task has a loss in this batch, on any rank: skip its step.")
    means = (total[list(active)] / count[list(active)]).to(values.device, values.dtype)
    return Step(tasks, active, means), broken.nonzero().flatten().tolist()


def _no_losses(model: nn.Module | None) -> Tensor:
    """Return no values, in the type that losses of the model would have."""
    like = None if model is None else next(model.parameters(), None)
    if like is None:
        return torch.zeros(0)
    return torch.zeros(0, device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))


def _side_by_side(losses: Mapping[str, Tensor]) -> Tensor:
    """Put the values of the losses side by side, in float32 or better."""
    values = [loss.detach().reshape(()) for loss in losses.values()]
    dtype = torch.float32
    for value in values:
        dtype = torch.promote_types(dtype, value.dtype)
    return torch.stack([value.to(values[0].device, dtype) for value in values])


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
    if isinstance(value, Mapping) and not value:
        return "an empty one"
    return f"a {type(value).__name__}"


def _remedy(loss: object) -> str:
    if isinstance(loss, Tensor) and loss.numel() != 1:
        return "take its mean() or sum()"
    if isinstance(loss, (float, int)):
        return "leave out item() and float(), which cut it off its graph"
    return "give the tensor that the loss function returned"
