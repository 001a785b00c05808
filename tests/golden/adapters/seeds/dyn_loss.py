"""Dynamic loss-based reweighting: scores and weights of samples, and their loss."""

from __future__ import annotations

import re

from golden.adapters.seeds import seed
from golden.adapters.seeds.close import assert_equal
from golden.records import Record, tensor
from mtobal.strategies.loss.loss_reweight import (
    SampleReweighting,
    loss_reweights,
    loss_scores,
    normalized_losses,
)


@seed("dyn_loss")
def loss_reweight(record: Record) -> None:
    losses, lengths = tensor(record["losses"]), tensor(record["lengths"])
    for name, case in record["strategies"].items():
        curve, temperature = re.fullmatch(r"([a-z]+)_r([\d.]+)", name).groups()
        assert_equal(normalized_losses(losses), case["h"], f"normalised losses of {name}")
        assert_equal(loss_scores(losses, curve), case["f"], f"scores of {name}")
        assert_equal(loss_reweights(losses, curve, float(temperature)), case["weights"], f"weights of {name}")
        criterion = SampleReweighting(curve, float(temperature), burn_in=0)
        assert_equal(criterion(losses, lengths), case["loss_one_gpu"], f"loss of {name}")
