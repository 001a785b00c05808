"""A classifier in Lightning with an auxiliary loss: read a digit, and tell by how much it was turned.

The network learns to read digits from few labels. Turning the scans by quarters gives a second task whose labels
cost nothing; it may help the encoder, or take it over. The balancer is one callback, and the module returns its
losses one by one.

    python examples/lightning_auxiliary.py                        # ew against uw+pcgrad
    python examples/lightning_auxiliary.py --strategy mgda_ub

It needs mtobal[bench], for the scans that scikit-learn ships.
"""

from __future__ import annotations

import argparse
import logging
import warnings

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mtobal.callbacks import MultiTaskBalancer

LABELLED = 200


class DigitReader(L.LightningModule):
    """A small convolutional encoder with one head for the digit and one for the turn."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 64),
            nn.ReLU(),
        )
        self.digit, self.turn = nn.Linear(64, 10), nn.Linear(64, 4)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, object]:
        """Return the losses one by one: all that the callback asks for."""
        scans, labels = batch
        turns = torch.randint(4, (len(scans),))
        turned = torch.stack([scan.rot90(turn, (1, 2)) for scan, turn in zip(scans, turns.tolist(), strict=True)])
        features = self.encoder(turned)
        losses = {
            "digit": nn.functional.cross_entropy(self.digit(features), labels),
            "turn": nn.functional.cross_entropy(self.turn(features), turns),
        }
        # mgda_ub and others read the shared representation; for the rest, the entry may be left out.
        return {"loss": sum(losses.values()), "losses": losses, "representation": features}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Optimize as always: the balancer changes gradients, not what is done with them."""
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def train(strategy: str, scans: Tensor, labels: Tensor, epochs: int) -> tuple[float, dict[str, float]]:
    """Train with a strategy; return the test accuracy, and the weights that were applied in the last step."""
    L.seed_everything(0, verbose=False)
    model, balancer = DigitReader(), MultiTaskBalancer(strategy)
    loader = DataLoader(TensorDataset(scans[:LABELLED], labels[:LABELLED]), batch_size=50, shuffle=True)
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[balancer],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, loader)
    model.eval()
    with torch.no_grad():
        guesses = model.digit(model.encoder(scans[LABELLED:])).argmax(1)
    assert balancer.balancer is not None
    return (guesses == labels[LABELLED:]).float().mean().item(), balancer.balancer.weights


def main() -> None:
    """Compare the strategies, and print one row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategy", default="uw+pcgrad", help="compared with ew; %(default)s by default")
    parser.add_argument("--epochs", type=int, default=40)
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")

    bundle = load_digits()
    order = torch.randperm(len(bundle.target), generator=torch.Generator().manual_seed(0))
    scans = torch.tensor(bundle.images, dtype=torch.float32)[order, None] / 16
    labels = torch.tensor(bundle.target)[order]

    print(f"{LABELLED} labelled scans, {len(labels) - LABELLED} to test on, {options.epochs} epochs, one seed")
    print("strategy      accuracy  weights of the last step")
    for strategy in dict.fromkeys(["ew", options.strategy]):
        accuracy, weights = train(strategy, scans, labels, options.epochs)
        print(f"{strategy:12}  {accuracy:8.3f}  {', '.join(f'{task} {w:.3g}' for task, w in weights.items())}")


if __name__ == "__main__":
    main()
