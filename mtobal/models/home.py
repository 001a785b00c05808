"""Hierarchy of multi-gate experts: tasks in groups, and experts of all tasks, of a group and of one task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtobal.errors import UsageError
from mtobal.models.cgc import run
from mtobal.models.experts import Gate, TaskFeatures, last_layers, mix, network, output_shape
from mtobal.models.hard_sharing import HardSharing
from mtobal.tasks import Task

_FEATURE_GATES = 2


class FeatureGate(nn.Module):
    """Scale every feature between 0 and 2, so that each expert learns from an input of its own.

    ``v * sum_l a_l 2 sigmoid(v B_l A_l)`` with ``a = softmax(W v + b)`` and matrices of low rank.
    """

    def __init__(self, features: int, rank: int) -> None:
        super().__init__()
        self.choice = Gate(features, _FEATURE_GATES)
        self.down = nn.ModuleList(nn.Linear(features, rank, bias=False) for _ in range(_FEATURE_GATES))
        self.up = nn.ModuleList(nn.Linear(rank, features, bias=False) for _ in range(_FEATURE_GATES))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the scaled features."""
        scales = [2 * torch.sigmoid(up(down(inputs))) for down, up in zip(self.down, self.up, strict=True)]
        return inputs * mix(self.choice(inputs), torch.stack(scales, dim=1))


class Expert(nn.Sequential):
    """A perceptron behind a feature gate, whose outputs are normalised and activated alike for all experts."""

    def __init__(self, in_features: int, features: int, rank: int) -> None:
        super().__init__(
            FeatureGate(in_features, rank),
            nn.Linear(in_features, features),
            nn.SiLU(),
            nn.Linear(features, features),
            nn.BatchNorm1d(features),
            nn.SiLU(),
        )


class SelfGate(nn.Module):
    """Weights of the experts of one owner alone: a sigmoid for a single one, a softmax for several."""

    def __init__(self, in_features: int, experts: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, experts)

    def forward(self, seen: Tensor) -> Tensor:
        """Return weights (N, experts)."""
        logits = self.linear(seen)
        return torch.sigmoid(logits) if logits.shape[1] == 1 else torch.softmax(logits, dim=1)


class HoME(TaskFeatures):
    """Two levels of experts behind a hierarchy of who may read whom.

    On the first level each group of tasks mixes its own experts and the shared ones, and a shared mixture has the
    experts of all groups. On the second, a task mixes shared experts of the shared mixture with experts of its
    group and of itself, both of which read its group's mixture. To every mixture of a group or a task its own
    experts are added once more through a gate that no other expert competes in.

    Parameters
    ----------
    encoder : Module
        From the input to one vector a sample.
    in_features : int
        Its length.
    groups : mapping from str to sequence of str
        The tasks of each group.
    out_features : mapping from str to int
        Outputs of each task.
    shared_experts, group_experts, own_experts : int
        How many for all tasks and for each group, on both levels, and for each task on the second.
    features : int
        Size of what an expert gives.
    rank : int
        Of the feature gates.
    """

    def __init__(
        self,
        encoder: nn.Module,
        in_features: int,
        groups: Mapping[str, Sequence[str]],
        out_features: Mapping[str, int],
        *,
        shared_experts: int,
        group_experts: int,
        own_experts: int,
        features: int,
        rank: int,
    ) -> None:
        super().__init__()
        self.groups = {group: tuple(tasks) for group, tasks in groups.items()}
        self.group_of = {task: group for group, tasks in groups.items() for task in tasks}

        def experts(size: int, count: int) -> nn.ModuleList:
            return nn.ModuleList(Expert(size, features, rank) for _ in range(count))

        # What all tasks share comes first, so that it starts alike under one seed.
        self.encoder = encoder
        self.meta_shared = experts(in_features, shared_experts)
        self.shared = experts(features, shared_experts)
        self.meta_groups = nn.ModuleDict({group: experts(in_features, group_experts) for group in groups})
        self.meta_shared_gate = Gate(in_features, shared_experts + len(groups) * group_experts)
        self.meta_gates = nn.ModuleDict(
            {group: Gate(in_features, shared_experts + group_experts) for group in groups}
        )
        self.meta_self_gates = nn.ModuleDict({group: SelfGate(in_features, group_experts) for group in groups})
        self.group_experts = nn.ModuleDict({group: experts(features, group_experts) for group in groups})
        self.own = nn.ModuleDict({task: experts(features, own_experts) for task in out_features})
        total = shared_experts + group_experts + own_experts
        self.gates = nn.ModuleDict({task: Gate(2 * features, total) for task in out_features})
        self.self_gates = nn.ModuleDict({task: SelfGate(features, own_experts) for task in out_features})
        self.tail = HardSharing(
            nn.Identity(), {task: nn.Linear(features, size) for task, size in out_features.items()}
        )

    def features(self, inputs: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        if self.training and len(inputs) == 1:
            raise UsageError(
                "HoME trains on batches of two samples or more: its experts are normalised over the batch, and "
                "this batch has one; choose another batch_size."
            )
        by_group, of_all = self.meta(self.encoder(inputs))
        shared = run(self.shared, of_all)
        groups = dict.fromkeys(self.group_of[task] for task in tasks)
        of_group = {group: run(self.group_experts[group], by_group[group]) for group in groups}
        features = {}
        for task in tasks:
            group = self.group_of[task]
            own = run(self.own[task], by_group[group])
            weights = self.gates[task](torch.cat([by_group[group], of_all], dim=1))
            mixed = mix(weights, torch.cat([shared, of_group[group], own], dim=1))
            features[task] = mixed + mix(self.self_gates[task](by_group[group]), own)
        return features

    def meta(self, seen: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return what the first level mixes for each group, and for all tasks."""
        shared = run(self.meta_shared, seen)
        of_group = {group: run(experts, seen) for group, experts in self.meta_groups.items()}
        by_group = {}
        for group, own in of_group.items():
            mixed = mix(self.meta_gates[group](seen), torch.cat([shared, own], dim=1))
            by_group[group] = mixed + mix(self.meta_self_gates[group](seen), own)
        of_all = mix(self.meta_shared_gate(seen), torch.cat([shared, *of_group.values()], dim=1))
        return by_group, of_all

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        modules = [self.own[task], self.gates[task], self.self_gates[task], self.tail.decoders[task]]
        group = self.group_of[task]
        if self.groups[group] == (task,):
            modules += [self.group_experts[group], self.meta_gates[group], self.meta_self_gates[group]]
        return modules

    def last_shared(self) -> nn.Module:
        return last_layers(list(self.shared))


def home(
    input_shape: Sequence[int],
    tasks: Sequence[Task],
    *,
    groups: Mapping[str, tuple[str, ...]] | None = None,
    shared_experts: int = 2,
    group_experts: int = 2,
    own_experts: int = 1,
    features: int = 64,
    rank: int = 8,
    base: str | None = None,
    base_options: Mapping[str, Any] | None = None,
) -> HoME:
    """Build a hierarchy of multi-gate experts.

    Every expert is ``E(v) = swish(BN(MLP(v * F(v))))`` with a feature gate F of its own. First level: ``z_g = sum
    g E(v)`` over shared experts and those of group g, and ``z_s`` over all. Second level, for a task of group g:
    ``z_t = sum g E`` over shared experts of z_s and over experts of the group and of the task of z_g, with gates
    that see both. A self-gate adds ``sum s E`` over the own experts of each group and task.

    Vectors are read as they are, images through the encoder of another model of the zoo.

    Parameters
    ----------
    input_shape : sequence of int
        Shape of an input.
    tasks : sequence of Task
        The tasks, with one label a sample.
    groups : mapping from str to tuple of str, optional
        The tasks of each group; by default the tasks of one kind, such as all classifications. Tasks that are not
        trained are left aside.
    shared_experts, group_experts, own_experts : int
        How many for all tasks and for each group, on both levels, and for each task on the second.
    features : int
        Size of what an expert gives.
    rank : int
        Of the feature gates.
    base : str, optional
        The model whose encoder reads the input, such as resnet. By default none for vectors and hard_sharing for
        images.
    base_options : mapping, optional
        Options of that model.

    References
    ----------
    Wang et al., "HoME: Hierarchy of Multi-Gate Experts for Multi-Task Learning at Kuaishou", 2024. The paper's
    sizes are those of its service; the defaults here are small.
    """
    chosen = _groups(tasks, groups)
    encoder: nn.Module = nn.Flatten()
    if base is not None or len(input_shape) > 1:
        encoder = network(base, base_options, input_shape)([]).encoder
    elif base_options:
        raise UsageError("home: base_options are those of a base, and vectors are read as they are; name a base.")
    shape = output_shape(encoder, input_shape)
    if len(shape) != 1:
        raise UsageError(
            f"home: the base should give one vector a sample, not features of shape {shape}; "
            "take hard_sharing, mlp or resnet."
        )
    return HoME(
        encoder,
        shape[0],
        chosen,
        {task.name: task.out_features for task in tasks},
        shared_experts=shared_experts,
        group_experts=group_experts,
        own_experts=own_experts,
        features=features,
        rank=rank,
    )


def _groups(tasks: Sequence[Task], given: Mapping[str, tuple[str, ...]] | None) -> dict[str, tuple[str, ...]]:
    """Return the groups that hold any of the tasks, with these tasks alone."""
    names = [task.name for task in tasks]
    if given is None:
        kinds = dict.fromkeys(type(task).__name__ for task in tasks)
        return {kind: tuple(task.name for task in tasks if type(task).__name__ == kind) for kind in kinds}
    groups = {group: tuple(task for task in held if task in names) for group, held in given.items()}
    if sorted(task for held in groups.values() for task in held) != sorted(names):
        raise UsageError(f"home: groups should hold each of the tasks {', '.join(names)} once, not {dict(given)}.")
    return {group: held for group, held in groups.items() if held}
