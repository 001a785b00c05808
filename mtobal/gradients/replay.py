"""Running a model on the same batch again without leaving a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class RNGState:
    """States of torch's global random generators."""

    cpu: Tensor
    cuda: list[Tensor]


def rng_state() -> RNGState:
    """Read the states of torch's global random generators."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return RNGState(torch.get_rng_state(), cuda)


def _set_rng_state(state: RNGState) -> None:
    torch.set_rng_state(state.cpu)
    if state.cuda:
        torch.cuda.set_rng_state_all(state.cuda)


@contextmanager
def replayed(model: nn.Module | None, state: RNGState) -> Iterator[None]:
    """Run a block with the random numbers of an earlier run, and leave generators and buffers untouched.

    Buffers hold the running statistics of batch norms, which a second look at a batch must not count twice. They
    are put back bit by bit, also when an exception passes through.

    Parameters
    ----------
    model : nn.Module or None
        Whose buffers are protected.
    state : RNGState
        The generators as they were before the earlier run, so that dropout draws the same masks.
    """
    now = rng_state()
    buffers = [] if model is None else [(buffer, buffer.clone()) for buffer in model.buffers()]
    _set_rng_state(state)
    try:
        yield
    finally:
        _set_rng_state(now)
        for buffer, value in buffers:
            buffer.data.copy_(value)  # a graph from before the block holds this value: autograd need not know
