"""Learning to branch: a tree of shared stages, drawn while the network is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtobal.errors import UsageError
from mtobal.models.base import Inputs
from mtobal.models.hard_sharing import last_layer
from mtobal.models.parallel import ParallelResNets
from mtobal.models.resnet import ResNet


class LearningToBranch(ParallelResNets):
    """ResNets whose every stage draws, for each task, from which network's features it goes on.

    Training draws one parent a stage and task by a straight-through Gumbel softmax of learned scores, at a
    temperature that falls with the epochs; in the first hundredth of them every stage reads the sum of all.
    Evaluation reads the parents of the highest score, and runs only the stages that lead to some task.

    A training loop says at the start of each epoch where it stands (`start_epoch`); without that, the temperature
    stays at one.

    Parameters
    ----------
    trunks, decoders
        As for `ParallelResNets`.

    References
    ----------
    Guo, Lee and Ulbricht, "Learning to Branch for Multi-Task Learning", ICML 2020.
    """

    temperature: Tensor

    def __init__(self, trunks: Mapping[str, ResNet], decoders: Mapping[str, nn.Module]) -> None:
        super().__init__(trunks, decoders)
        self.scores = nn.Parameter(torch.ones(4, len(trunks), len(trunks)))
        self.register_buffer("temperature", torch.ones(()))

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Set the temperature of an epoch, counted from zero, of so many."""
        if not 0 <= epoch < epochs:
            raise UsageError(f"start_epoch: epoch should be from 0 to {epochs - 1}, not {epoch}.")
        warm_up = epoch < epochs / 100
        self.temperature.fill_(math.inf if warm_up else epochs / 20 / math.sqrt(epoch + 1))

    def parents(self) -> list[dict[str, str]]:
        """Return for each stage, by task, the task whose features it reads."""
        chosen: list[list[int]] = self.scores.argmax(dim=-1).tolist()
        return [{self.tasks[i]: self.tasks[j] for i, j in enumerate(level)} for level in chosen]

    def encode(self, inputs: Inputs) -> dict[str, Tensor]:
        return super().encode(inputs) if self.training else self._walk(inputs)

    def exchange(self, level: int, features: Sequence[Tensor]) -> Sequence[Tensor]:
        if level == 4:
            return features
        together = torch.stack(tuple(features))
        if self.temperature.isinf():
            return [together.sum(0)] * len(features)
        drawn = F.gumbel_softmax(self.scores[level], tau=float(self.temperature), hard=True)
        return torch.einsum("ij,j...->i...", drawn, together).unbind()

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        return [self.get_submodule(f"trunks.{task}.layer4"), self.decoders[task]]

    def last_shared(self) -> nn.Module:
        return nn.ModuleList(last_layer(self.get_submodule(f"trunks.{task}.layer3")) for task in self.tasks)

    def _walk(self, inputs: Inputs) -> dict[str, Tensor]:
        """Return the features of each task by way of its parents, every stage once."""
        assert isinstance(inputs, Tensor)
        resnets = dict(zip(self.tasks, self._resnets(), strict=True))
        parents = self.parents()
        known: dict[tuple[int, str], Tensor] = {}

        def features(level: int, task: str) -> Tensor:
            if (level, task) not in known:
                known[level, task] = (
                    resnets[task].stem(inputs)
                    if level == 0
                    else resnets[task].stages[level - 1](features(level - 1, parents[level - 1][task]))
                )
            return known[level, task]

        return {task: features(4, task) for task in self.tasks}
