"""Progressive layered extraction: levels of shared experts and experts of each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mtobal.errors import UsageError
from mtobal.models.cgc import Extraction, draw_experts_by_task
from mtobal.models.encoders import ConvEncoder, MLPEncoder
from mtobal.models.experts import (
    INPUT_GRID,
    GateInput,
    TaskFeatures,
    last_layers,
    network,
    output_shape,
    seen_size,
)
from mtobal.models.hard_sharing import HardSharing
from mtobal.models.resnet import ResNet
from mtobal.tasks import Task


class PLE(TaskFeatures):
    """Levels of experts, each of which reads what the level before mixed for it.

    With a shared stream, what a task's experts find on any level but the last flows into the shared stream and
    thus to all tasks: by the graph those experts are shared, and so are the gates of all levels but the last two.

    Parameters
    ----------
    levels : sequence of Extraction
        From the input up.
    tail : HardSharing
        The decoders, in a network without an encoder.
    gate_input : str
        What the gates see.
    shared_stream : bool
        Whether the shared experts have a stream of their own; otherwise they read that of each task.
    """

    def __init__(
        self,
        levels: Sequence[Extraction],
        tail: HardSharing,
        gate_input: GateInput = "pooled",
        *,
        shared_stream: bool = True,
    ) -> None:
        super().__init__()
        self.levels = nn.ModuleList(levels)
        self.tail = tail
        self.gate_input = gate_input
        self.shared_stream = shared_stream

    def features(self, inputs: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        streams = dict.fromkeys(self.tasks if self.shared_stream else tasks, inputs)
        shared = inputs if self.shared_stream else None
        for number, level in enumerate(self.levels):
            streams, shared = level(streams, shared, self.gate_input, _grid(number))
        return {task: streams[task] for task in tasks}

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        levels = [level for level in self.levels if isinstance(level, Extraction)]
        with_experts, with_gates = (levels[-1:], levels[-2:]) if self.shared_stream else (levels, levels)
        return [
            *(level.own[task] for level in with_experts),
            *(level.gates[task] for level in with_gates),
            self.tail.decoders[task],
        ]

    def last_shared(self) -> nn.Module:
        level = self.levels[-1]
        assert isinstance(level, Extraction)
        return last_layers(list(level.shared))


def ple(
    input_shape: Sequence[int],
    tasks: Sequence[Task],
    *,
    levels: int = 2,
    shared_experts: int = 2,
    own_experts: int = 2,
    shared_stream: bool = True,
    gate_input: GateInput = "pooled",
    base: str | None = None,
    base_options: Mapping[str, Any] | None = None,
) -> PLE:
    """Build progressive layered extraction.

    On level l task t mixes ``h_t = sum_k g_tk E_k`` over its own experts of ``h_t`` and the shared experts of
    ``h_s`` of the level before, with ``g_t = softmax(W_t s(h_t) + b_t)``, where s is what the gate sees; the
    shared stream h_s mixes the experts of all tasks likewise. Below the first level all streams are the input, and
    the last has no shared one. An expert of level l is the l-th part of a network of the zoo.

    Parameters
    ----------
    input_shape : sequence of int
        Shape of an input.
    tasks : sequence of Task
        The tasks.
    levels : int
        Into how many parts the network is cut: the layers of small networks, the stem and the four stages of a
        ResNet. With one, it is cgc.
    shared_experts, own_experts : int
        How many for all tasks, and for each, on every level.
    shared_stream : bool
        As in the paper. False is LibMTL's form: the shared experts run on the stream of every task, and nothing of
        one task reaches another.
    gate_input : str
        What a gate sees of an image: averages over a grid of 4 by 4, above the first level averages over the whole
        map; or every pixel.
    base : str, optional
        The model whose encoder is cut into experts, and whose decoders the tasks have: any model of hard sharing
        but message_passing and segnet. By default mlp for vectors and hard_sharing for images.
    base_options : mapping, optional
        Options of that model.

    References
    ----------
    Tang et al., "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning (MTL) Model for Personalized
    Recommendations", RecSys 2020.
    """
    draw = network(base, base_options, input_shape)
    shared, own, tail = draw_experts_by_task(draw, tasks, shared_experts, own_experts)
    shared_parts = [cut(encoder, levels) for encoder in shared]
    own_parts = {task: [cut(encoder, levels) for encoder in encoders] for task, encoders in own.items()}
    extractions = []
    shape = tuple(input_shape)
    for number in range(levels):
        level = Extraction(
            [parts[number] for parts in shared_parts],
            {task: [parts[number] for parts in experts] for task, experts in own_parts.items()},
            seen_size(shape, gate_input, _grid(number)),
            shared_gate=shared_stream and number < levels - 1,
        )
        extractions.append(level)
        shape = output_shape(shared_parts[0][number], shape)
    return PLE(extractions, tail, gate_input, shared_stream=shared_stream)


def cut(encoder: nn.Module, parts: int) -> list[nn.Sequential]:
    """Cut an encoder into so many parts of about as many stages; the first ones get those that are left over."""
    stages = _stages(encoder)
    if len(stages) < parts:
        raise UsageError(f"ple: levels should be {len(stages)} at most for a base of as many stages, not {parts}.")
    size, rest = divmod(len(stages), parts)
    ends = [(number + 1) * size + min(number + 1, rest) for number in range(parts)]
    return [
        nn.Sequential(*(layer for stage in stages[start:end] for layer in stage))
        for start, end in zip([0, *ends], ends, strict=False)
    ]


def _stages(encoder: nn.Module) -> list[list[nn.Module]]:
    """Return the stages of an encoder, each as the modules that are run one after another."""
    stages: list[list[nn.Module]] = []
    if isinstance(encoder, ResNet):
        stages.append([encoder.conv1, encoder.bn1, encoder.relu, encoder.maxpool])
        stages += ([stage] for stage in encoder.stages)
        return stages
    layers = encoder.layers if isinstance(encoder, ConvEncoder | MLPEncoder) else encoder
    if isinstance(layers, nn.Sequential) and isinstance(layers[0], ResNet):
        trunk, *rest = layers
        stages += _stages(trunk)
        stages[-1] += rest
        return stages
    if isinstance(layers, nn.Sequential):
        for layer in layers:
            if not stages or isinstance(stages[-1][-1], nn.ReLU):
                stages.append([])
            stages[-1].append(layer)
        return stages
    raise UsageError(
        f"ple: a {type(encoder).__name__} has no stages that follow one another alone; take another base."
    )


def _grid(level: int) -> int:
    """Return the cells a side in which the gates of a level see what it reads."""
    return INPUT_GRID if level == 0 else 1
