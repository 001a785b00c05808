"""Customised gate control: experts of all tasks beside experts of one task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtobal.models.experts import (
    INPUT_GRID,
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


class Extraction(nn.Module):
    """Shared experts and experts of each task; every task weighs its own and the shared ones.

    Parameters
    ----------
    shared : sequence of Module
        Experts of all tasks.
    own : mapping from str to sequence of Module
        Experts of each task; all experts give features of one shape.
    in_features : int
        Length of what the gates see.
    shared_gate : bool
        Mix all experts once more, into what the shared experts of a next level read.
    """

    def __init__(
        self,
        shared: Sequence[nn.Module],
        own: Mapping[str, Sequence[nn.Module]],
        in_features: int,
        *,
        shared_gate: bool = False,
    ) -> None:
        super().__init__()
        self.shared = nn.ModuleList(shared)
        self.own = nn.ModuleDict({task: nn.ModuleList(experts) for task, experts in own.items()})
        self.gates = nn.ModuleDict(
            {task: Gate(in_features, len(experts) + len(shared)) for task, experts in own.items()}
        )
        total = len(shared) + sum(len(experts) for experts in own.values())
        self.shared_gate = Gate(in_features, total) if shared_gate else None

    def forward(
        self, streams: Mapping[str, Tensor], shared_stream: Tensor | None, gate_input: GateInput, grid: int
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return the next features of the tasks that have a stream, and of the shared stream if it has a gate.

        The shared gate mixes the experts of all tasks, so that with it every task needs a stream. Without a shared
        stream, the shared experts read the stream of each task.
        """
        common = None if shared_stream is None else run(self.shared, shared_stream)
        outputs = {task: run(self.own[task], stream) for task, stream in streams.items()}
        mixed = {}
        for task, stream in streams.items():
            others = run(self.shared, stream) if common is None else common
            weights = self.gates[task](seen_by_gates(stream, gate_input, grid))
            mixed[task] = mix(weights, torch.cat([outputs[task], others], dim=1))
        if self.shared_gate is None or shared_stream is None or common is None:
            return mixed, None
        weights = self.shared_gate(seen_by_gates(shared_stream, gate_input, grid))
        return mixed, mix(weights, torch.cat([*outputs.values(), common], dim=1))


def run(experts: nn.Module, inputs: Tensor) -> Tensor:
    """Return the outputs (N, experts, ...) of a list of experts."""
    return torch.stack([expert(inputs) for expert in experts.children()], dim=1)


class CGC(TaskFeatures):
    """One level of shared experts and experts of each task.

    Parameters
    ----------
    level : Extraction
        The experts and their gates.
    tail : HardSharing
        The decoders, in a network without an encoder.
    gate_input : str
        What the gates see.
    """

    def __init__(self, level: Extraction, tail: HardSharing, gate_input: GateInput = "pooled") -> None:
        super().__init__()
        self.level = level
        self.tail = tail
        self.gate_input = gate_input

    def features(self, inputs: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        mixed, _ = self.level(dict.fromkeys(tasks, inputs), inputs, self.gate_input, INPUT_GRID)
        features: dict[str, Tensor] = mixed
        return features

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        return [self.level.own[task], self.level.gates[task], self.tail.decoders[task]]

    def last_shared(self) -> nn.Module:
        return last_layers(list(self.level.shared))


def cgc(
    input_shape: Sequence[int],
    tasks: Sequence[Task],
    *,
    shared_experts: int = 2,
    own_experts: int = 2,
    gate_input: GateInput = "pooled",
    base: str | None = None,
    base_options: Mapping[str, Any] | None = None,
) -> CGC:
    """Build customised gate control, the single level of progressive layered extraction.

    Task t reads ``h_t = sum_k g_tk E_k(x)`` over its own and the shared experts, with ``g_t = softmax(W_t s(x) +
    b_t)``, where s(x) is what the gate sees.

    Parameters
    ----------
    input_shape : sequence of int
        Shape of an input.
    tasks : sequence of Task
        The tasks.
    shared_experts, own_experts : int
        How many for all tasks, and for each.
    gate_input : str
        What a gate sees of an image: averages over a grid of 4 by 4, or every pixel.
    base : str, optional
        The model whose encoder each expert is, and whose decoders the tasks have: any model of hard sharing but
        message_passing. By default mlp for vectors and hard_sharing for images.
    base_options : mapping, optional
        Options of that model.

    References
    ----------
    Tang et al., "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning (MTL) Model for Personalized
    Recommendations", RecSys 2020.
    """
    draw = network(base, base_options, input_shape)
    shared, own, tail = draw_experts_by_task(draw, tasks, shared_experts, own_experts)
    return CGC(Extraction(shared, own, seen_size(input_shape, gate_input)), tail, gate_input)


def draw_experts_by_task(
    draw: Callable[[Sequence[Task]], HardSharing], tasks: Sequence[Task], shared_experts: int, own_experts: int
) -> tuple[list[nn.Module], dict[str, list[nn.Module]], HardSharing]:
    """Return new experts of all tasks and of each task, and the decoders that read their features.

    The shared experts come first, so that under one seed they start from the same weights whatever the tasks are.
    """
    shared: list[nn.Module] = [draw([]).encoder for _ in range(shared_experts)]
    own: dict[str, list[nn.Module]] = {}
    decoders: dict[str, nn.Module] = {}
    for task in tasks:
        drawn = [draw([]) for _ in range(own_experts - 1)] + [draw([task])]
        own[task.name] = [each.encoder for each in drawn]
        decoders[task.name] = drawn[-1].decoders[task.name]
    return shared, own, behind_encoder(drawn[-1], decoders)
