"""Distillation with several objectives: two teachers and the labels for one small student.

One teacher has learned from clean scans of digits, the other from noisy ones, and each is good at its own kind.
The student is to be good at both, with a fraction of their parameters, and its three losses have different sizes.
`nlb` weighs them by how much is left of each loss, and the temperatures of the teachers move towards equal
certainty, as in multi-teacher distillation by Zhao et al. (arXiv:2306.16170).

    python examples/distillation.py                       # ew against nlb
    python examples/distillation.py --strategies upgrad

It needs mtobal[bench], for the scans that scikit-learn ships.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import mtobal
from mtobal.strategies.loss import EntropyBalancedTemperature, distillation_loss

NOISE = 0.4


def network(width: int) -> nn.Sequential:
    """Return a perceptron that reads digits."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def noisy(scans: Tensor) -> Tensor:
    """Return the scans with noise."""
    return scans + NOISE * torch.randn_like(scans)


def accuracy(model: nn.Module, scans: Tensor, labels: Tensor) -> float:
    """Return the share of scans that are read rightly."""
    with torch.no_grad():
        return (model(scans).argmax(1) == labels).float().mean().item()


def teach(scans: Tensor, labels: Tensor, steps: int, noise: bool) -> nn.Module:
    """Train a teacher from labels, on clean or on noisy scans."""
    model = network(128)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(steps):
        rows = torch.randint(len(scans), (64,))
        inputs = noisy(scans[rows]) if noise else scans[rows]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels[rows]).backward()
        optimizer.step()
    return model.requires_grad_(False)


def distil(
    strategy: str, teachers: dict[str, nn.Module], scans: Tensor, labels: Tensor, steps: int
) -> tuple[nn.Module, dict[str, float]]:
    """Train a student with a strategy; return it, and the weights that were applied in the last step."""
    torch.manual_seed(1)
    student = network(16)
    optimizer = torch.optim.Adam(student.parameters(), lr=5e-3)
    balancer = mtobal.Balancer(strategy, student)
    temperature = EntropyBalancedTemperature(len(teachers), rate=0.01)
    for _ in range(steps):
        rows = torch.randint(len(scans), (64,))
        inputs = {"clean": scans[rows], "noisy": noisy(scans[rows])}
        answers = {kind: student(images) for kind, images in inputs.items()}
        logits = {kind: teacher(inputs[kind]) for kind, teacher in teachers.items()}
        losses = {
            kind: distillation_loss(answers[kind], logits[kind], heat)
            for kind, heat in zip(teachers, temperature.values, strict=True)
        }
        losses["labels"] = nn.functional.cross_entropy(answers["clean"], labels[rows])
        optimizer.zero_grad()
        balancer(losses).backward()
        optimizer.step()
        temperature.update(list(logits.values()))
    return student, balancer.weights


def main() -> None:
    """Compare the strategies, and print one row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategies", nargs="+", default=["nlb"], help="compared with ew; nlb by default")
    parser.add_argument("--steps", type=int, default=500)
    options = parser.parse_args()

    torch.manual_seed(0)
    bundle = load_digits()
    order = torch.randperm(len(bundle.target))
    scans = torch.tensor(bundle.images, dtype=torch.float32)[order] / 16
    labels = torch.tensor(bundle.target)[order]
    seen, unseen = slice(0, 1000), slice(1000, None)
    teachers = {
        kind: teach(scans[seen], labels[seen], options.steps, noise)
        for kind, noise in (("clean", False), ("noisy", True))
    }

    tests = {"clean": scans[unseen], "noisy": noisy(scans[unseen])}
    print(f"{options.steps} steps, one seed; accuracy on {len(labels[unseen])} new scans")
    print("                clean  noisy  weights of the last step")
    for name, teacher in teachers.items():
        found = "  ".join(f"{accuracy(teacher, images, labels[unseen]):.3f}" for images in tests.values())
        print(f"{name + ' teacher':14}  {found}")
    for strategy in dict.fromkeys(["ew", *options.strategies]):
        student, weights = distil(strategy, teachers, scans[seen], labels[seen], options.steps)
        found = "  ".join(f"{accuracy(student, images, labels[unseen]):.3f}" for images in tests.values())
        print(f"{strategy:14}  {found}  {', '.join(f'{task} {weight:.3g}' for task, weight in weights.items())}")


if __name__ == "__main__":
    main()
