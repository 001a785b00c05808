"""A scalar whose backward is an ordinary function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mtobal.errors import UsageError

Backward = Callable[[Tensor], Sequence[Tensor | None]]


def attach_backward(value: Tensor, backward: Backward, inputs: Sequence[Tensor]) -> Tensor:
    """Return `value` as the output of one autograd node over `inputs`.

    Parameters
    ----------
    value : scalar tensor
        Its own graph, if any, is cut.
    backward : callable
        Gets the gradient that arrives at the scalar and returns the gradient of each input. It is called once,
        in the backward pass, and may run further backward passes.
    inputs : sequence of Tensor
        Parameters get their gradients through the ordinary ``AccumulateGrad`` nodes, so whatever hooks these
        (accumulation, a data-parallel reducer, a gradient scaler) works as for any loss.

    Raises
    ------
    UsageError
        In the backward pass, if it is run a second time.
    """
    attached: Tensor = _Node.apply(value, backward, *inputs)  # type: ignore[no-untyped-call]
    return attached


def when_backward_ends(run: Callable[[], None]) -> None:
    """Run something at the end of the backward pass at hand, when all gradients have been written."""
    torch.autograd.Variable._execution_engine.queue_callback(run)


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, backward: Backward, *inputs: Tensor) -> Tensor:
        ctx.run = backward
        return value.detach().clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.run is None:
            raise UsageError("the balanced loss was back-propagated before: call the balancer again.")
        run, ctx.run = ctx.run, None
        return None, None, *run(cotangent)
