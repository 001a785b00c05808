"""The networks of published comparisons: their sizes, inputs of each task, and messages between atoms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtobal import models
from mtobal.errors import UsageError
from mtobal.models.base import MultiTaskModel
from mtobal.models.message_passing import EdgeConditioned, SetReadout
from mtobal.tasks import Classification, MultiLabel, Regression, Task


def classifications(number: int, classes: int) -> list[Task]:
    return [Classification(f"task_{i}", num_classes=classes) for i in range(number)]


@pytest.mark.parametrize(
    ("name", "shape", "tasks", "options", "shared", "own"),
    [
        ("celeba_net", (3, 64, 64), [MultiLabel(f"a{i}") for i in range(40)], {}, 5_176_640, 20_520),
        ("cifar_pcgrad", (3, 32, 32), classifications(20, 5), {}, 465_600 + 819_520 + 102_720, 32_100),
        (
            "cifar_routing",
            (3, 32, 32),
            classifications(20, 5),
            {},
            28_640 + 256,
            20 * (8256 + 4160 + 325),
        ),
        (
            "cifar_routing",
            (3, 32, 32),
            classifications(20, 5),
            {"own_layers": "last"},
            28_640 + 256 + 8256 + 4160,
            6500,
        ),
        ("resnet", (3, 32, 32), classifications(20, 5), {"small_stem": True}, 11_176_512 - 9408 + 1728, 51_300),
        ("lenet", (1, 36, 36), classifications(2, 10), {}, 30_890, 2 * 510),
        ("message_passing", (11,), [Regression(f"r{i}") for i in range(11)], {}, 616_960, 11 * 65),
        ("office_resnet", (3, 224, 224), classifications(3, 31), {}, 11_176_512 + 263_680, 3 * 15_903),
        ("office_resnet", (3, 224, 224), classifications(4, 65), {}, 11_176_512 + 263_680, 4 * 33_345),
    ],
)
def test_sizes_are_those_of_the_papers(
    name: str, shape: tuple[int, ...], tasks: list[Task], options: dict[str, Any], shared: int, own: int
) -> None:
    model = models.build(name, shape, tasks, **options)
    assert isinstance(model, MultiTaskModel)
    assert sum(parameter.numel() for parameter in model.shared_parameters()) == shared
    assert sum(p.numel() for task in model.tasks for p in model.task_parameters(task)) == own


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("cifar_pcgrad", (3, 7, 8), "at least 8 pixels a side, not inputs of shape"),
        ("cifar_routing", (11,), "at least 16 pixels a side"),
        ("lenet", (1, 19, 36), "at least 20 pixels a side"),
        ("message_passing", (3, 8, 8), "molecules whose atoms have features"),
    ],
)
def test_other_inputs_are_refused(name: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        models.build(name, shape, classifications(2, 2))


def test_the_linear_layer_of_the_office_network_starts_as_published() -> None:
    torch.manual_seed(0)
    encoder = models.build("office_resnet", (3, 32, 32), classifications(1, 2), width=8).get_submodule("encoder")
    (linear,) = (part for part in encoder.children() if isinstance(part, nn.Linear))
    assert linear.weight.std().item() == pytest.approx(0.005, rel=0.05)
    assert (linear.bias == 0.1).all()


def test_every_task_may_have_inputs_of_its_own() -> None:
    torch.manual_seed(0)
    tasks = classifications(3, 2)
    model = models.build("cifar_pcgrad", (3, 8, 8), tasks, channels=4, features=8)
    inputs = {task.name: torch.rand(size, 3, 8, 8) for task, size in zip(tasks[:2], (4, 5), strict=True)}
    outputs = model({**inputs, "another": torch.rand(1, 3, 8, 8)})
    assert outputs.keys() == {"task_0", "task_1"}
    for task, values in inputs.items():
        assert torch.allclose(outputs[task], model(values)[task])


def molecules(sizes: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return complete graphs of these sizes as one."""
    generator = torch.Generator().manual_seed(0)
    molecule = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    edges = ((molecule[:, None] == molecule) & ~torch.eye(len(molecule), dtype=torch.bool)).nonzero().T
    nodes = torch.rand(len(molecule), 4, generator=generator, dtype=torch.float64)
    return nodes, edges, torch.rand(edges.shape[1], 3, generator=generator, dtype=torch.float64), molecule


def test_messages_are_the_senders_times_the_matrix_of_the_edge() -> None:
    nodes, edges, features, _ = molecules((3, 1, 4))
    shuffled = torch.randperm(edges.shape[1], generator=torch.Generator().manual_seed(1))
    edges, features = edges[:, shuffled], features[shuffled]
    torch.manual_seed(0)
    layer = EdgeConditioned(4, edge_features=3, hidden=6).double()
    expected = layer.root(nodes)
    degrees = torch.bincount(edges[1], minlength=len(nodes)).clamp(min=1)
    for (sender, receiver), edge in zip(edges.T.tolist(), features, strict=True):
        matrix = layer.edge_matrix(layer.edge_hidden(edge).relu()).view(4, 4)
        expected[receiver] = expected[receiver] + nodes[sender] @ matrix / degrees[receiver]
    assert torch.allclose(layer(nodes, edges, features), expected)


def test_a_readout_knows_neither_the_order_of_atoms_nor_other_molecules() -> None:
    nodes, _, _, molecule = molecules((3, 1, 4))
    torch.manual_seed(0)
    readout: nn.Module = SetReadout(4).double()
    whole = readout(nodes, molecule)
    for number in range(3):
        alone = nodes[molecule == number].flip(0)
        assert torch.allclose(readout(alone, torch.zeros(len(alone), dtype=torch.long))[0], whole[number])
    # Numbers whose exponential is infinite are no obstacle.
    assert readout(nodes * 1e4, molecule).isfinite().all()
