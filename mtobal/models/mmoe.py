"""Multi-gate mixture of experts: all tasks share all experts, and each weighs them by a gate of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtobal.models.experts import (
    Gate,
    GateInput,
    TaskFeatures,
    behind_encoder,
    last_layers,
    mix,
    network,
    seen_by_gates,
    seen_size,
)
from mtobal.models.hard_sharing import HardSharing
from mtobal.tasks import Task


class MMoE(TaskFeatures):
    """Experts that all tasks share, and for each task a gate that weighs them sample by sample.

    Parameters
    ----------
    experts : sequence of Module
        From the input to features, all of one shape.
    gates : mapping from str to Module
        For each task, from what it sees of a sample to one weight an expert.
    tail : HardSharing
        The decoders, in a network without an encoder.
    gate_input : str
        What the gates see.
    """

    def __init__(
        self,
        experts: Sequence[nn.Module],
        gates: Mapping[str, nn.Module],
        tail: HardSharing,
        gate_input: GateInput = "pooled",
    ) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.gates = nn.ModuleDict(dict(gates))
        self.tail = tail
        self.gate_input = gate_input

    def features(self, inputs: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        outputs = torch.stack([expert(inputs) for expert in self.experts], dim=1)
        seen = seen_by_gates(inputs, self.gate_input)
        return {task: mix(self.gates[task](seen), outputs) for task in tasks}

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        return [self.gates[task], self.tail.decoders[task]]

    def last_shared(self) -> nn.Module:
        return last_layers(list(self.experts))


def mmoe(
    input_shape: Sequence[int],
    tasks: Sequence[Task],
    *,
    experts: int = 4,
    gate_input: GateInput = "pooled",
    base: str | None = None,
    base_options: Mapping[str, Any] | None = None,
) -> MMoE:
    """Build a multi-gate mixture of experts.

    Task t reads ``h_t = sum_k g_tk E_k(x)`` with ``g_t = softmax(W_t s(x) + b_t)``, where s(x) is what the gate
    sees.

    Parameters
    ----------
    input_shape : sequence of int
        Shape of an input.
    tasks : sequence of Task
        The tasks.
    experts : int
        How many.
    gate_input : str
        What a gate sees of an image: averages over a grid of 4 by 4, or every pixel.
    base : str, optional
        The model whose encoder each expert is, and whose decoders the tasks have: any model of hard sharing but
        message_passing. By default mlp for vectors and hard_sharing for images.
    base_options : mapping, optional
        Options of that model.

    References
    ----------
    Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts", KDD 2018.
    """
    encoders, tail = draw_experts(input_shape, tasks, experts, base, base_options)
    in_features = seen_size(input_shape, gate_input)
    gates = {task.name: Gate(in_features, experts) for task in tasks}
    return MMoE(encoders, gates, tail, gate_input)


def draw_experts(
    input_shape: Sequence[int],
    tasks: Sequence[Task],
    experts: int,
    base: str | None,
    base_options: Mapping[str, Any] | None,
) -> tuple[list[nn.Module], HardSharing]:
    """Return new experts, and the decoders that read their features.

    The experts come first, so that under one seed they start from the same weights whatever the tasks are.
    """
    draw = network(base, base_options, input_shape)
    drawn = [draw([]) for _ in range(experts - 1)] + [draw(tasks)]
    decoders = {task: drawn[-1].decoders[task] for task in drawn[-1].tasks}
    return [each.encoder for each in drawn], behind_encoder(drawn[-1], decoders)
