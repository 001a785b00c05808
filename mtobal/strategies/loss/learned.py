"""Weightings with learned numbers of their own."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from mtobal.errors import UsageError
from mtobal.strategies.base import LossWeighting, Step

OptimizerName = Literal["adam", "sgd"]

# exp(30) is 1e13: a loss that drives the logarithm of its weight beyond has no best weight.
LOG_LIMIT = 30.0


class LearnedWeighting(LossWeighting):
    """Base of the weightings that learn one number or one row of numbers a task.

    They have an optimizer of their own, without decay unless it is asked for. A task that sits a step out keeps
    its numbers and the moments of the optimizer for them.

    Parameters
    ----------
    lr : float
        Learning rate.
    optimizer : {"adam", "sgd"}
    weight_decay : float
        Added to the gradient, as classic Adam does.
    """

    values: Tensor | None

    def __init__(self, lr: float, optimizer: OptimizerName = "adam", weight_decay: float = 0.0) -> None:
        super().__init__()
        if lr <= 0:
            raise UsageError(f"{self.card.name}: the learning rate must be positive, not {lr}.")
        if weight_decay < 0:
            raise UsageError(f"{self.card.name}: the decay must not be negative, but is {weight_decay}.")
        self.lr = lr
        self.weight_decay = weight_decay
        self.optimizer_name = optimizer
        self.register_parameter("values", None)

    def make_optimizer(self) -> torch.optim.Optimizer:
        kind = torch.optim.Adam if self.optimizer_name == "adam" else torch.optim.SGD
        return kind(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)

    def current(self, step: Step, init: float = 0.0, width: int | None = None) -> Tensor:
        """Return the numbers of the active tasks without graph; at the first step they are made.

        Parameters
        ----------
        step : Step
            The step at hand, with losses.
        init : float
            Where they start.
        width : int, optional
            How many a task has; by default one, and then without an axis for it.

        Returns
        -------
        Tensor of shape (A,) or (A, width)
            On the device and in the dtype of the losses.
        """
        losses = step.require_losses(self.card.name)
        shape = (len(step.tasks),) if width is None else (len(step.tasks), width)
        if self.values is None:
            self.values = nn.Parameter(losses.new_full(shape, init))
        if self.values.shape != shape:
            raise UsageError(
                f"{self.card.name} holds learned numbers of shape {tuple(self.values.shape)}, but this step "
                f"needs {shape}: one row for each of its {len(step.tasks)} tasks."
            )
        if self.values.device != losses.device:  # loaded from a checkpoint on another one
            self.values.data = self.values.data.to(losses.device)
            if self.optimizer is not None:
                self.optimizer.load_state_dict(self.optimizer.state_dict())  # takes its moments along
        return self.values.detach()[list(step.active)].to(losses)

    def learn(self, step: Step, gradient: Tensor, limit: float = math.inf) -> None:
        """Take one step of the optimizer.

        Parameters
        ----------
        step : Step
            The step that was learned from.
        gradient : Tensor of shape (A,) or (A, width)
            With respect to what `current` returned.
        limit : float
            The numbers are kept within plus and minus this.
        """
        values = self.values
        assert isinstance(values, nn.Parameter)
        active = list(step.active)
        absent = [task for task in range(len(step.tasks)) if task not in step.active]
        values.grad = torch.zeros_like(values)
        values.grad[active] = gradient.to(values)
        if self.optimizer is None:
            self.optimizer = self.make_optimizer()
        moments = [value for value in self.optimizer.state[values].values() if isinstance(value, Tensor)]
        rows = [tensor for tensor in (values.data, *moments) if tensor.shape == values.shape]
        kept = [tensor[absent] for tensor in rows]
        self.optimizer.step()
        for tensor, before in zip(rows, kept, strict=True):
            tensor[absent] = before
        values.grad = None
        values.data.clamp_(-limit, limit)
