"""F-MTL: gradients at both points, their difference, and final gradients of every official trainer."""

from __future__ import annotations

from golden.adapters.seeds import seed
from golden.adapters.seeds.close import assert_equal
from golden.adapters.seeds.linear_net import (
    Batch,
    LinearNet,
    assert_heads,
    assert_written,
    flat,
    gradients,
    rows,
)
from golden.adapters.seeds.trainers import TrainersCAGrad, TrainersMGDA
from golden.records import Record
from mtobal.strategies import Composition, Strategy, build
from mtobal.strategies.sharpness import FMTL


@seed("fmtl")
def fmtl(record: Record) -> None:
    for case in record.values():
        one_step(case)


def aggregation_of(hyper: Record, trainer: str, num_tasks: int) -> tuple[list[Strategy], float, float]:
    """Return the aggregation, the trainer's factor on its direction, and the tolerance."""
    method = hyper["method"].removeprefix("a-")
    if method == "ew":
        return [], 1 / num_tasks, 1e-10
    if method == "mgda":
        normalized = trainer == "nyuv2" and method == hyper["method"]
        return [TrainersMGDA(normalized)], 1 if trainer == "multi-mnist" else num_tasks, 1e-10
    if method == "cagrad":
        return [TrainersCAGrad(hyper["c"])], 1, 1e-6
    spec = {"pcgrad": "pcgrad(heads=raw)", "imtl": "imtl_g(form=paper, heads=raw)"}[method]
    return build(spec).strategies, 1, 1e-10


def one_step(case: Record) -> None:
    hyper, batch, trainer = case["hyper"], Batch.of(case), case["source"].split("/")[1]
    options = {
        "rho": hyper["rho"],
        "adaptive": hyper["adaptive"],
        "norm": hyper["perturbation_norm"].split()[0].rstrip(":"),
    }
    count = len(batch.targets)
    apart = FMTL(mode="separate", **options)
    clean = rows(LinearNet(count), batch, apart)
    direct = rows(LinearNet(count), batch, FMTL(mode="direct", **options))
    for task in range(count):
        assert_equal(clean[task], flat(case["g_loss"][task]).tolist(), "gradient")
        assert_equal(direct[task], flat(case["g_sam"][task]).tolist(), "gradient at the moved point")
        if "g_flat" in case:
            assert_equal(apart.flat.rows[task], flat(case["g_flat"][task]).tolist(), "flatness")

    aggregation, factor, tolerance = aggregation_of(hyper, trainer, count)
    perturbation = FMTL(mode="direct" if hyper["method"].startswith("a-") else "separate", **options)
    net = LinearNet(count)
    gradients(net, batch, Composition([*aggregation, perturbation], "golden"))
    assert_written(net, case["final_grads"], factor, tolerance)
    assert_heads(net, list(case["final_grads"].values())[3:])
