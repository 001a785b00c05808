"""Cross-stitch networks: one network a task, each going on with a learned mixture of the features of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mtobal.models.decoders import Decoder, build_decoders
from mtobal.models.parallel import ParallelResNets, build_trunks, own_and_others
from mtobal.models.resnet import Depth, ResNet
from mtobal.tasks import Task


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


def cross_stitch(
    input_shape: Sequence[int],
    tasks: Sequence[Task],
    *,
    depth: Depth = 50,
    width: int = 64,
    decoder: Decoder = "aspp",
    decoder_channels: int = 256,
    weights: str | None = None,
) -> CrossStitch:
    """Join one ResNet and one decoder a task by cross-stitch units.

    Parameters
    ----------
    input_shape : sequence of int
        Channels, height and width of an image.
    tasks : sequence of Task
        The tasks.
    depth : int
        18, 34, 50 or 101 layers.
    width : int
        Channels of the first stage of a ResNet; 64 in the paper.
    decoder : {"aspp", "pixel_shuffle", "linear", "mlp"}
        The first two for dense tasks, on dilated ResNets; the others for tasks with one label an image.
    decoder_channels : int
        Channels inside a decoder.
    weights : str, optional
        File with pretrained weights of a ResNet under torchvision's names.
    """
    trunks = build_trunks(input_shape[0], tasks, depth=depth, width=width, decoder=decoder, weights=weights)
    channels = trunks[tasks[0].name].out_channels
    return CrossStitch(trunks, build_decoders(decoder, channels, tasks, decoder_channels))
