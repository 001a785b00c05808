"""A training step of a slimmable network: the widest configuration, the narrowest, and some between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mtobal.models.slimmable import Slimmable


@dataclass(frozen=True)
class Sandwich:
    """The losses of one step over several configurations.

    Attributes
    ----------
    losses : dict from str to Tensor or None
        By task the sum over the configurations; None without any label.
    distillation : Tensor
        The sum of `invariance_loss` over all configurations but the widest, on the same graph.
    """

    losses: dict[str, Tensor | None]
    distillation: Tensor


def invariance_loss(features: Tensor, widest: Tensor) -> Tensor:
    """Mean squared distance of a narrow encoder's representation from the first channels of the widest one's.

    The widest encoder has the capacity to serve all tasks at once; no gradient goes into it from here. So the
    representation comes to mean the same at every width, whatever the decoders are.

    Examples
    --------
    >>> invariance_loss(torch.ones(2, 3), torch.tensor([[1.0, 1.0, 3.0, 9.0]]).expand(2, -1))
    tensor(1.3333)
    """
    return F.mse_loss(features, widest.detach()[:, : features.shape[1]])


def sandwich_step(
    model: Slimmable,
    inputs: Tensor,
    losses_of: Callable[[dict[str, Tensor]], Mapping[str, Tensor | None]],
    *,
    narrow: int = 2,
    generator: torch.Generator | None = None,
) -> Sandwich:
    """Run a batch through the widest configuration, the narrowest, and drawn ones.

    Parameters
    ----------
    model : Slimmable
        Afterwards its configuration is what it was.
    inputs : Tensor
        The batch.
    losses_of : callable
        From the outputs to the loss of each task.
    narrow : int
        How many configurations are run beside the widest: the narrowest, and then drawn ones.
    generator : torch.Generator, optional
        Source of the draws, on the CPU.

    Examples
    --------
    The distillation is no task's loss: its gradient comes beside the balanced one, with a factor if need be. It
    goes first and keeps the graph, which both have in common.

    >>> from mtobal import Balancer
    >>> from mtobal.models.slimmable import slimmable
    >>> from mtobal.tasks import Classification
    >>> tasks = [Classification("left", num_classes=4), Classification("right", num_classes=4)]
    >>> model = slimmable((3, 32, 32), tasks, depth=18, width=4, decoder="mlp", decoder_channels=8)
    >>> images, label = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    >>> balancer = Balancer("pcgrad", model)
    >>> def losses_of(outputs):
    ...     return {task.name: task.loss(outputs[task.name], label) for task in tasks}
    >>> step = sandwich_step(model, images, losses_of)
    >>> step.distillation.backward(retain_graph=True)
    >>> balancer(step.losses).backward()
    """
    before = model.configuration
    try:
        model.configure()
        widest: Tensor = model.encoder(inputs)
        losses = dict(losses_of(model.decode(widest, inputs)))
        distillation = widest.new_zeros(())
        for index in range(narrow):
            chosen = model.narrowest if index == 0 else model.sample(generator)
            model.configure(chosen.encoder, chosen.decoders)
            features: Tensor = model.encoder(inputs)
            distillation = distillation + invariance_loss(features, widest)
            for task, loss in losses_of(model.decode(features, inputs)).items():
                total = losses[task]
                losses[task] = loss if total is None or loss is None else total + loss
    finally:
        model.configure(before.encoder, before.decoders)
    return Sandwich(losses, distillation)
