"""Cross-stitch networks: one network a task, each going on with a learned mixture of the features of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mtobal.models.parallel import ParallelResNets, own_and_others
from mtobal.models.resnet import ResNet


class CrossStitch(ParallelResNets):
    """ResNets of which each goes on, behind every stage, with a weighted sum of the features of all.

    One weight a stage and pair of tasks is learned. They start near the task's own features, as `own_and_others`
    says; a learning rate a hundred times that of the networks is common for them.

    Parameters
    ----------
    trunks, decoders
        As for `ParallelResNets`.

    References
    ----------
    Misra et al., "Cross-stitch Networks for Multi-task Learning", CVPR 2016.
    """

    def __init__(self, trunks: Mapping[str, ResNet], decoders: Mapping[str, nn.Module]) -> None:
        super().__init__(trunks, decoders)
        self.units = nn.ModuleList(CrossStitchUnit(len(trunks)) for _ in range(4))

    def exchange(self, level: int, features: Sequence[Tensor]) -> Sequence[Tensor]:
        return features if level == 0 else self.units[level - 1](features)

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        return [self.decoders[task]]

    def last_shared(self) -> nn.Module:
        return self.units[-1]


class CrossStitchUnit(nn.Module):
    """The weights of one stage: a row for each task, of the features of all."""

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(own_and_others(tasks))

    def forward(self, features: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the mixture of each task."""
        return torch.einsum("ij,j...->i...", self.weight, torch.stack(tuple(features))).unbind()
