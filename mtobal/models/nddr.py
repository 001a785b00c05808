"""NDDR-CNN: one network a task, fused by convolutions that reduce the features of all tasks to those of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mtobal.models.hard_sharing import last_layer
from mtobal.models.parallel import ParallelResNets, own_and_others
from mtobal.models.resnet import ResNet


class NDDR(ParallelResNets):
    """ResNets of which each goes on, behind the stem and every stage, with a fusion of the features of all.

    The fusions of the last stage belong to one task each; everything before them is shared. A learning rate
    a hundred times that of the networks is common for the fusions.

    Parameters
    ----------
    trunks, decoders
        As for `ParallelResNets`.

    References
    ----------
    Gao et al., "NDDR-CNN: Layerwise Feature Fusing in Multi-Task CNNs by Neural Discriminative Dimensionality
    Reduction", CVPR 2019.
    """

    def __init__(self, trunks: Mapping[str, ResNet], decoders: Mapping[str, nn.Module]) -> None:
        super().__init__(trunks, decoders)
        first = next(iter(trunks.values()))
        self.fusions = nn.ModuleDict(
            {
                task: nn.ModuleList(
                    Fusion(channels, row) for channels in (first.conv1.out_channels, *first.stage_channels)
                )
                for task, row in zip(trunks, own_and_others(len(trunks)), strict=True)
            }
        )

    def exchange(self, level: int, features: Sequence[Tensor]) -> Sequence[Tensor]:
        together = torch.cat(list(features), dim=1)
        return [self.get_submodule(f"fusions.{task}.{level}")(together) for task in self.tasks]

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        return [self.get_submodule(f"fusions.{task}.4"), self.decoders[task]]

    def last_shared(self) -> nn.Module:
        return nn.ModuleList(last_layer(trunk) for trunk in self.trunks.values())


class Fusion(nn.Sequential):
    """A 1x1 convolution from the channels of all tasks to those of one, which starts near the task's own.

    Parameters
    ----------
    channels : int
        Channels of each task.
    shares : Tensor of shape (T,)
        What is taken of each task at first.
    """

    def __init__(self, channels: int, shares: Tensor) -> None:
        reduce = nn.Conv2d(len(shares) * channels, channels, 1, bias=False)
        super().__init__(reduce, nn.BatchNorm2d(channels, momentum=0.05), nn.ReLU())
        with torch.no_grad():
            start = torch.kron(shares, torch.eye(channels))
            reduce.weight.copy_(start[:, :, None, None])
