"""What strategies remember of each task from step to step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mtobal.errors import UsageError
from mtobal.ops import Jacobian
from mtobal.strategies.base import Step


class RowMemory(nn.Module):
    """One row a task over all shared parameters, such as a momentum: as many numbers as K copies of them.

    The rows are kept in one block a parameter, by the parameter's name, since the tasks of one step may reach
    other parameters than those of the next. A row starts at zero.

    Parameters
    ----------
    owner : str
        Name of the strategy, for errors.
    """

    def __init__(self, owner: str) -> None:
        super().__init__()
        self.owner = owner
        self.blocks: dict[str, Tensor] = {}

    def update(self, jacobian: Jacobian, step: Step, rule: Callable[[Tensor, Tensor], Tensor]) -> Iterator[Tensor]:
        """Change the rows of the active tasks, one block at a time.

        Parameters
        ----------
        jacobian : Jacobian
            The gradients of the active tasks.
        step : Step
            Which tasks these are.
        rule : callable
            Takes the rows of a block and its gradients, both of shape (A, n), and returns the new rows. It may
            overwrite the rows that it was given.

        Yields
        ------
        Tensor of shape (A, n)
            The new rows, for each block of the Jacobian; not to be modified.
        """
        active = list(step.active)
        for name, block in zip(jacobian.names, jacobian.blocks, strict=True):
            shape = (len(step.tasks), block.shape[1])
            rows = self.blocks[name].to(block) if name in self.blocks else block.new_zeros(shape)
            if rows.shape != shape:
                raise UsageError(
                    f"{self.owner} remembers rows of shape {tuple(rows.shape)} for {name!r}, but this step has "
                    f"{shape[0]} tasks and {shape[1]} entries: start with a new strategy."
                )
            if len(active) == len(rows):
                rows = new = rule(rows, block)
            else:
                new = rule(rows[active], block)
                rows[active] = new
            self.blocks[name] = rows
            yield new

    def get_extra_state(self) -> dict[str, Any]:
        """Return the blocks by name."""
        return dict(self.blocks)

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over a copy of blocks by name."""
        self.blocks = {name: block.clone() for name, block in state.items()}


def simplex_share(weights: Tensor | None, step: Step) -> Tensor:
    """Return the weights of the active tasks, of all that are remembered, so that they add up to one.

    Parameters
    ----------
    weights : Tensor of shape (K,) or None
        Simplex weights of all tasks; None stands for equal ones.
    step : Step

    Returns
    -------
    Tensor of shape (A,)
        float64 on the CPU. Equal where the active tasks have no weight.
    """
    active = list(step.active)
    if weights is None:
        return torch.full((len(active),), 1.0 / len(active), dtype=torch.float64)
    if len(weights) != len(step.tasks):
        raise UsageError(
            f"the weights of {len(weights)} tasks are remembered, but this step has {len(step.tasks)}: start with "
            "a new strategy."
        )
    share = weights.to("cpu", torch.float64)
    if len(active) == len(weights):
        return share
    share = share[active]
    total = share.sum()
    return share / total if total > 0 else torch.full_like(share, 1.0 / len(active))


def with_share(weights: Tensor | None, share: Tensor, step: Step) -> Tensor:
    """Return the weights of all tasks after the active ones have shared out anew what they had together.

    Parameters
    ----------
    weights : Tensor of shape (K,) or None
        As in `simplex_share`.
    share : Tensor of shape (A,)
        Adds up to one.
    step : Step

    Returns
    -------
    Tensor of shape (K,)

    Examples
    --------
    >>> step = Step(tasks=("seg", "depth", "normal"), active=(0, 2))
    >>> with_share(torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64), torch.tensor([1.0, 0.0]), step)
    tensor([0.5000, 0.5000, 0.0000], dtype=torch.float64)
    """
    if len(step.active) == len(step.tasks):
        return share
    if weights is None:
        weights = torch.full((len(step.tasks),), 1.0 / len(step.tasks), dtype=torch.float64)
    weights = weights.to("cpu", torch.float64)
    active = list(step.active)
    together = weights[active].sum()
    return weights.index_copy(0, torch.tensor(active), together * share.to(weights))
