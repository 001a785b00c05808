"""Rep-MTL: saliencies, both terms, and the gradient through them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from golden.adapters.seeds import seed
from golden.adapters.seeds.close import assert_equal
from golden.records import Record
from mtobal.strategies import Step, build
from mtobal.strategies.representation.rep_mtl import cross_task_alignment, saliencies, saliency_entropy

CONSTRUCT = (
    "idx=arange(24).view(3,2,2,2); Z=sin(.9 idx+.2); a1=cos(.3 idx); a2=sin(1.7 idx+.5); "
    "L1=mean_b((sum Z a1)^2)+.1 mean(Z^3); L2=mean_b softplus(sum Z a2)+.05 mean(Z^2)"
)


@seed("repmtl")
def rep_mtl(record: Record) -> None:
    assert record["construct"] == CONSTRUCT
    index = torch.arange(24, dtype=torch.float64).view(3, 2, 2, 2)
    z = (0.9 * index + 0.2).sin().requires_grad_()
    first = (z * (0.3 * index).cos()).flatten(1).sum(1).square().mean() + 0.1 * z.pow(3).mean()
    second = F.softplus((z * (1.7 * index + 0.5).sin()).flatten(1).sum(1)).mean() + 0.05 * z.square().mean()
    losses = [first, second]
    assert_equal(first, record["L1"], "first loss")
    assert_equal(second, record["L2"], "second loss")

    saliency = saliencies(losses, z)
    assert_equal(saliency[0].view_as(z), record["S1"], "first saliency")
    assert_equal(saliency[1].view_as(z), record["S2"], "second saliency")
    means = saliency.mean(2).abs()
    assert_equal((means / means.sum(0))[0].view(3, 2, 2), record["P_task1"], "share of the first task")
    assert_equal(saliency_entropy(saliency), record["L_tsr"], "entropy")
    assert_equal(alignment(record, saliency, "negatives"), record["L_csa_variantA_denominator_neg_only"], "A")
    assert_equal(alignment(record, saliency, "all"), record["L_csa_variantB_denominator_pos_plus_neg"], "B")

    options = {
        "entropy": record["lambda_tsr"],
        "alignment": record["lambda_csa"],
        "temperature": record["tau"],
    }
    regulariser = build({"rep_mtl": options}).regulariser
    assert regulariser is not None
    total = first + second + regulariser.penalty(z, losses, Step.of(2, torch.stack(losses).detach()))
    (gradient,) = torch.autograd.grad(total, z)
    assert_equal(gradient, record["grad_total_variantA_wrt_Z"], "gradient of the whole")


def alignment(record: Record, saliency: Tensor, denominator: str) -> Tensor:
    return cross_task_alignment(saliency, record["tau"], denominator=denominator)
