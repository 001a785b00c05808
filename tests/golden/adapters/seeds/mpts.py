"""MPTS: scores of tasks by sampled predictions.

The record's objective and divergence come without their inputs; the tests of the sampler hold these.
"""

from __future__ import annotations

import torch

from golden.adapters.seeds import seed
from golden.adapters.seeds.close import assert_equal
from golden.records import Record
from mtobal.data.samplers.mpts import acquisition_scores

SAMPLES = "sin(.37*arange(100)).view(20,5,1)+.1*arange(5)"


@seed("mpts")
def mpts(record: Record) -> None:
    assert record["samples"] == SAMPLES
    predictions = (0.37 * torch.arange(100, dtype=torch.float64)).sin().view(20, 5)
    predictions = predictions + 0.1 * torch.arange(5, dtype=torch.float64)
    scores = acquisition_scores(predictions, record["gamma_mu"], record["gamma_sigma"])
    assert_equal(scores, record["score"], "scores")
    best = record["top3"]
    assert scores.topk(len(best)).indices.tolist() == best
