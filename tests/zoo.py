"""Every model of the zoo as small as it goes, for what several tests of all models share."""

from __future__ import annotations

from typing import Any

import torch

from mtobal.models.base import Inputs
from mtobal.tasks import Classification, Depth, Restoration, Segmentation, Task

DENSE: tuple[Task, ...] = (Segmentation("segmentation", num_classes=3), Depth("depth"))
LABELS: tuple[Task, ...] = (Classification("left", num_classes=2), Classification("right", num_classes=3))
PICTURES: tuple[Task, ...] = (Restoration("denoise"), Restoration("deblur"))

SMALL: dict[str, tuple[tuple[int, ...], tuple[Task, ...], dict[str, Any]]] = {
    "celeba_net": ((3, 16, 16), LABELS, {"width": 4}),
    "cgc": ((6,), LABELS, {"base_options": {"hidden": [8]}}),
    "cifar_pcgrad": ((3, 8, 8), LABELS, {"channels": 4, "features": 8}),
    "cifar_routing": ((3, 16, 16), LABELS, {"channels": 4, "features": 8}),
    "cross_stitch": ((3, 32, 32), LABELS, {"depth": 18, "width": 2, "decoder": "linear"}),
    "deeplab": ((3, 32, 32), DENSE, {"depth": 18, "width": 4, "decoder_channels": 4}),
    "dselect_k": ((6,), LABELS, {"base_options": {"hidden": [8]}}),
    "dtrn": ((2, 5, 6), LABELS, {"width": 4, "tower": 8}),
    "hard_sharing": ((1, 12, 12), LABELS, {"channels": [4, 4], "features": 8}),
    "home": ((6,), LABELS, {"features": 8}),
    "lenet": ((1, 20, 20), LABELS, {"features": 8}),
    "ltb": ((3, 32, 32), LABELS, {"depth": 18, "width": 2, "decoder": "linear"}),
    "message_passing": ((4,), LABELS, {"features": 8, "edge_features": 2}),
    "mlp": ((6,), LABELS, {"hidden": [8]}),
    "mmoe": ((1, 12, 12), LABELS, {"base_options": {"channels": [4], "features": 8}}),
    "mtan_resnet": ((3, 32, 32), DENSE, {"depth": 18, "width": 2, "decoder_channels": 2}),
    "mtan_segnet": ((3, 32, 32), DENSE, {"filters": [4, 8]}),
    "nddr": ((3, 32, 32), LABELS, {"depth": 18, "width": 2, "decoder": "linear"}),
    "office_resnet": ((3, 32, 32), LABELS, {"width": 4, "features": 8}),
    "ple": ((1, 12, 12), LABELS, {"base_options": {"channels": [4, 4], "features": 8}}),
    "pretrained": ((3, 8, 8), LABELS, {"encoder": "tiny"}),
    "resnet": ((3, 16, 16), LABELS, {"width": 4}),
    "segnet": ((3, 32, 32), DENSE, {"filters": [4, 8]}),
    "slimmable": ((3, 16, 16), LABELS, {"depth": 18, "width": 2, "decoder": "mlp", "decoder_channels": 4}),
    "tat_network": ((3, 8, 8), PICTURES, {"width": 4, "blocks": [1, 1]}),
    "vit": ((3, 8, 8), LABELS, {"width": 8, "layers": 2, "heads": 2}),
}
"""Shape of an input, tasks and options by model."""


def sample_inputs(name: str) -> Inputs:
    """A batch of two for a model of `SMALL`."""
    shape = SMALL[name][0]
    generator = torch.Generator().manual_seed(1)
    if name == "message_passing":  # two molecules of three atoms and of two
        edges = torch.tensor([[0, 0, 1, 1, 2, 2, 3, 4], [1, 2, 0, 2, 0, 1, 4, 3]])
        nodes, features = (torch.rand(*size, generator=generator) for size in ((5, *shape), (8, 2)))
        return nodes, edges, features, torch.tensor([0, 0, 0, 1, 1])
    return torch.rand(2, *shape, generator=generator)
