"""Per-task gradients, one backward pass a task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def task_gradients(
    losses: Sequence[Tensor], parameters: Sequence[Tensor], cotangent: Tensor, *, retain_graph: bool = False
) -> list[list[Tensor | None]]:
    """Differentiate every loss with respect to every parameter.

    Parameters
    ----------
    losses : sequence of A scalar tensors with graph
        Their graphs are freed by the last pass.
    parameters : sequence of P leaf tensors
        Shared and task-own ones alike, so that every decoder runs backward exactly once.
    cotangent : scalar tensor
        Factor on every gradient: the gradient that arrives at the balanced loss, which holds the loss scale of
        mixed precision and the division by accumulated batches.
    retain_graph : bool
        Whether the graphs outlive the last pass too.

    Returns
    -------
    list of A lists of P tensors
        None where a loss does not reach a parameter.
    """
    return [
        list(
            torch.autograd.grad(
                [loss],
                list(parameters),
                grad_outputs=[cotangent.to(loss.device, loss.dtype).reshape(loss.shape)],
                retain_graph=retain_graph or task < len(losses) - 1,
                allow_unused=True,
            )
        )
        for task, loss in enumerate(losses)
    ]
