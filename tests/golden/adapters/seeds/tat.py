"""TAT: the loss and its weights for recorded uncertainties, and where these settle."""

from __future__ import annotations

import torch

from golden.adapters.seeds import seed
from golden.adapters.seeds.close import assert_equal
from golden.records import Record, tensor
from mtobal.strategies.loss.tat import (
    SampleUncertainty,
    balanced_loss,
    restoration_losses,
    uncertainty_weights,
)


@seed("tat")
def tat(record: Record) -> None:
    at_the_start(record["at_init"])
    trajectory(record["trajectory_adamw"], record["at_init"]["inputs"])
    for row in record["stationary_uncertainty"]:
        stationary(row)


def at_the_start(record: Record) -> None:
    degraded, target, restored = (tensor(record["inputs"][name]) for name in ("lq", "hq", "restored"))
    losses, descriptors = restoration_losses(degraded, restored, target)
    criterion = SampleUncertainty(descriptors=3).double()
    assert_equal(criterion(losses, descriptors), record["loss"], "loss")
    assert_equal(criterion.estimator(descriptors), record["uncertainty"], "uncertainty")


def trajectory(record: Record, inputs: Record) -> None:
    """Restored images follow the recorded uncertainties, whose estimator's start is not part of the record."""
    degraded, target = tensor(inputs["lq"]), tensor(inputs["hq"])
    restored = tensor(inputs["restored"]).requires_grad_()
    options = {"lr": record["lr"], "betas": tuple(record["betas"]), "weight_decay": record["weight_decay"]}
    optimizer = torch.optim.AdamW([restored], **options)
    for row in record["steps"]:
        losses, descriptors = restoration_losses(degraded, restored, target)
        uncertainties = tensor(row["u"]).requires_grad_()
        loss = balanced_loss(losses, uncertainties)
        optimizer.zero_grad()
        loss.backward()
        assert_equal(descriptors, row["features"], "descriptors")
        assert_equal(losses, row["l_restored"], "losses")
        assert_equal(uncertainty_weights(uncertainties) / len(losses), row["eff_weight"], "weights")
        assert_equal(loss, row["loss"], "loss")
        assert_equal(restored.grad, row["grad_restored"], "gradient")
        assert_equal(uncertainties.grad.sum()[None], row["grad_fc_out_bias"], "gradient of the estimator's bias")
        optimizer.step()


def stationary(row: Record) -> None:
    loss, variance = row["l"], row["s_star"]
    root = tensor(variance).sqrt()[None].requires_grad_()
    (slope,) = torch.autograd.grad(balanced_loss(tensor([loss]), root, floor=variance / 2), root)
    # The 1e-8 beside the variance, which the recorded optimum leaves out, moves the slope by this much.
    assert abs(slope.item()) <= 2e-8 * loss / variance**2.5 + 1e-12
    assert_equal(uncertainty_weights(root, floor=variance / 2), [row["weight"]], "weight", 1e-8 / variance + 1e-12)
