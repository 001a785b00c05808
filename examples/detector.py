"""A detector with three losses: which shape, where, and which pixels.

Each picture shows one shape on noise. The box loss is measured in square pixels and starts at about 80, the class
loss at 1.1 and the mask loss at 0.7. Scaling losses by hand is the usual remedy; here a strategy does it. The
training loop is plain torch.

    python examples/detector.py                       # ew against uw
    python examples/detector.py --strategies upgrad
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

import mtobal

SIZE = 16
SHAPES = ("disc", "square", "ring")


def pictures(number: int, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Draw shapes on noise; return pictures, and of each its class, its box in pixels and its mask."""
    draw = torch.Generator().manual_seed(seed)
    kind = torch.randint(len(SHAPES), (number,), generator=draw)
    radius = 3 + 3 * torch.rand(number, generator=draw)
    centre = radius[:, None] + (SIZE - 1 - 2 * radius[:, None]) * torch.rand(number, 2, generator=draw)
    grid = torch.stack(torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="xy"), dim=-1)
    offset = (grid - centre[:, None, None]) / radius[:, None, None, None]
    round_, square = offset.norm(dim=-1), offset.abs().amax(-1)
    inside = torch.stack([round_ <= 1, square <= 1, (round_ <= 1) & (round_ >= 0.6)])
    mask = inside[kind, torch.arange(number)].float()
    image = 0.5 * mask + 0.3 * torch.randn(number, SIZE, SIZE, generator=draw)
    box = torch.cat([centre - radius[:, None], centre + radius[:, None]], dim=1)
    return image[:, None], {"class": kind, "box": box, "mask": mask}


class Detector(nn.Module):
    """One encoder, three heads."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()
        )
        self.classify = nn.Sequential(nn.Flatten(), nn.Linear(16 * (SIZE // 2) ** 2, len(SHAPES)))
        self.locate = nn.Sequential(nn.Flatten(), nn.Linear(16 * (SIZE // 2) ** 2, 4))
        self.segment = nn.ConvTranspose2d(16, 1, 2, stride=2)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.encoder(images)
        return {
            "class": self.classify(features),
            "box": self.locate(features),
            "mask": self.segment(features)[:, 0],
        }


def losses_of(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the loss of every task, in its own unit."""
    return {
        "class": nn.functional.cross_entropy(outputs["class"], targets["class"]),
        "box": nn.functional.mse_loss(outputs["box"], targets["box"]),
        "mask": nn.functional.binary_cross_entropy_with_logits(outputs["mask"], targets["mask"]),
    }


def train(strategy: str, steps: int) -> tuple[Detector, dict[str, float]]:
    """Train with a strategy; return the network, and the weights that were applied in the last step."""
    torch.manual_seed(0)
    images, targets = pictures(2000, seed=0)
    model = Detector()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    balancer = mtobal.Balancer(strategy, model)
    for _ in range(steps):
        rows = torch.randint(len(images), (64,))
        losses = losses_of(model(images[rows]), {task: target[rows] for task, target in targets.items()})
        optimizer.zero_grad()
        balancer(losses).backward()
        optimizer.step()
    return model, balancer.weights


def scores(model: Detector) -> dict[str, float]:
    """Return accuracy, error of the box's edges in pixels, and overlap of the masks, on new pictures."""
    images, targets = pictures(500, seed=1)
    with torch.no_grad():
        outputs = model(images)
    found, wanted = outputs["mask"] > 0, targets["mask"] > 0
    overlap = (found & wanted).sum((1, 2)) / (found | wanted).sum((1, 2))
    return {
        "accuracy": (outputs["class"].argmax(1) == targets["class"]).float().mean().item(),
        "box error": (outputs["box"] - targets["box"]).abs().mean().item(),
        "mask IoU": overlap.mean().item(),
    }


def main() -> None:
    """Compare the strategies, and print one row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategies", nargs="+", default=["uw"], help="compared with ew; uw by default")
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()

    print(f"{options.steps} steps, one seed; 500 new pictures")
    print("strategy  accuracy  box error [pixels]  mask IoU  weights of the last step")
    for strategy in dict.fromkeys(["ew", *options.strategies]):
        model, weights = train(strategy, options.steps)
        accuracy, error, overlap = scores(model).values()
        shown = ", ".join(f"{task} {weight:.3g}" for task, weight in weights.items())
        print(f"{strategy:8}  {accuracy:8.3f}  {error:18.2f}  {overlap:8.3f}  {shown}")


if __name__ == "__main__":
    main()
