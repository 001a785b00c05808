"""AnyLoss: values and gradients."""

from __future__ import annotations

import torch

from golden.adapters.seeds import seed
from golden.adapters.seeds.close import assert_equal
from golden.records import Record, tensor
from mtobal.tasks.anyloss import anyloss

SCORES = {"f1": "f_beta", "acc": "accuracy", "gmean": "g_mean", "balacc": "balanced_accuracy"}


@seed("anyloss")
def any_loss(record: Record) -> None:
    inputs, targets = tensor(record["X"]), tensor(record["y"])
    for name, expected in record["loss"].items():
        theta = tensor(record["theta"]).requires_grad_()
        probabilities = (inputs @ theta).sigmoid()
        assert_equal(probabilities, record["p"], "probabilities")
        loss = anyloss(probabilities, targets, SCORES[name], amplification=record["L"])
        assert_equal(loss, expected, name)
        (gradient,) = torch.autograd.grad(loss, theta)
        assert_equal(gradient, record["autograd_grad"][name], f"gradient of {name}")
