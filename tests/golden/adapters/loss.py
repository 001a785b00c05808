"""Loss weightings."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

import mtobal
from golden.adapters import golden
from golden.records import Record, assert_close, tensor
from mtobal.strategies import LossWeighting, Step
from mtobal.strategies.loss import DWA, FAMO, IMTLL, RLW, STCH, UW, GO4Align, IGBv1
from mtobal.strategies.loss.ldc_mtl import discrepancy_weights


@golden("ew_sum", "ew_mean")
def equal_weights(record: Record) -> None:
    spec = f"ew(reduction={record['strategy'].removeprefix('ew_')})"
    jacobian = tensor(record["J"])
    assert_close(record, mtobal.aggregate(jacobian, spec), record["expected_direction"], "direction")
    assert_close(record, mtobal.weights(jacobian @ jacobian.T, spec), record["expected_weights"], "weights")


def assert_weights(record: Record, strategy: LossWeighting, losses: list[float]) -> None:
    """Compare the weights of a single step."""
    step = Step.of(len(losses), tensor(losses))
    assert_close(record, strategy.weigh(step), record["expected"]["loss_weights"], "weights")


def assert_learning(record: Record, strategy: UW | IMTLL) -> None:
    """Compare the weights and the learned numbers of every step."""
    for number, losses in enumerate(record["inputs"]["losses"]):
        step = Step.of(len(losses), tensor(losses))
        weights = strategy.weigh(step)
        assert_close(record, weights, record["expected"]["loss_weights"][number], f"weights of step {number}")
        strategy.update(step)
        assert isinstance(strategy.values, Tensor)
        state = strategy.values.detach()
        assert_close(record, state, record["expected"]["s_after"][number], f"learned numbers after step {number}")


@golden("uw")
def uncertainty_weighting(record: Record) -> None:
    params = record["params"]
    form = "half" if params["variant"] == "half" else "laplace"
    strategy = UW(form=form, init=params["s_init"], lr=params["lr"], optimizer=params["optimizer"])
    assert_learning(record, strategy)


@golden("imtl_l")
def impartial_losses(record: Record) -> None:
    params = record["params"]
    assert_learning(record, IMTLL(init=params["s_init"], lr=params["lr"], optimizer=params["optimizer"]))


@golden("gls", "si")
def products(record: Record) -> None:
    strategy = mtobal.strategies.build(record["strategy"]).loss_weighting
    assert strategy is not None
    assert_weights(record, strategy, record["inputs"]["losses"])


@golden("stch")
def smooth_tchebycheff(record: Record) -> None:
    params, inputs = record["params"], record["inputs"]
    if params["form"] == "paper":
        preference, ideal = params["lambda"], params["ideal"]
        assert_weights(record, STCH("paper", params["mu"], preference=preference, ideal=ideal), inputs["losses"])
        return
    strategy = STCH("log", params["mu"], params["warmup_epoch"])
    for number, (epoch, losses) in enumerate(zip(inputs["epoch"], inputs["losses"], strict=True)):
        while strategy.epoch < epoch:
            strategy.end_epoch()
        step = Step.of(len(losses), tensor(losses))
        weights = strategy.weigh(step)
        assert_close(record, weights, record["expected"]["loss_weights"][number], f"weights of step {number}")
        strategy.update(step)


@golden("dwa")
def dynamic_average(record: Record) -> None:
    params, inputs, expected = record["params"], record["inputs"], record["expected"]
    if params["average"] == "epoch":
        strategy, averages = DWA(params["T"]), inputs["epoch_average_losses"]
        for number, losses in enumerate(averages):
            # Two steps that have this average between them.
            for factor in (0.5, 1.5):
                step = Step.of(len(losses), factor * tensor(losses))
                weights = strategy.weigh(step)
                what = f"weights of epoch {number}"
                assert_close(record, weights, expected["loss_weights_used_in_epoch"][number], what)
                strategy.update(step)
            strategy.end_epoch()
        return
    strategy = DWA(params["T"], "window", params["iteration_window"])
    for number, losses in enumerate(inputs["losses"]):
        step = Step.of(len(losses), tensor(losses))
        assert_close(record, strategy.weigh(step), expected["loss_weights"][number], f"weights of step {number}")
        strategy.update(step)


@golden("famo")
def fast_adaptive(record: Record) -> None:
    params, expected = record["params"], record["expected"]
    strategy = FAMO(lr=params["w_lr"], gamma=params["gamma"], min_losses=params.get("min_losses"))
    if "theta0" in record["inputs"]:
        closed_loop(record, strategy)
        return
    pairs = zip(record["inputs"]["losses_before"], record["inputs"]["losses_after"], strict=True)
    for number, (before, after) in enumerate(pairs):
        step = Step.of(len(before), tensor(before))
        weights = strategy.weigh(step)
        assert_close(record, weights, expected["loss_weights"][number], f"weights of step {number}")
        shares = strategy.current(step).softmax(0)
        assert_close(record, shares, expected["softmax_z"][number], f"shares of step {number}")
        strategy.update(step)
        strategy.look_again(replace(step, losses=tensor(after)))
    assert_close(record, strategy.current(step), expected["logits_end"], "logits at the end")


def closed_loop(record: Record, strategy: FAMO) -> None:
    """Train on quadratic losses with the whole step of the balancer."""
    inputs = record["inputs"]
    theta = tensor(inputs["theta0"]).requires_grad_()
    optimizer = torch.optim.SGD([theta], lr=record["params"]["lr"])
    balancer = mtobal.Balancer(strategy)

    def closure() -> dict[str, Tensor]:
        tasks = enumerate(zip(inputs["hessians"], inputs["minima"], strict=True))
        shifts = {str(task): (theta - tensor(minimum), tensor(hessian)) for task, (hessian, minimum) in tasks}
        return {
            task: 0.5 * (shift @ hessian @ shift) + inputs["offset"] for task, (shift, hessian) in shifts.items()
        }

    for number in range(record["params"]["steps"]):
        assert_close(record, theta.detach(), record["expected"]["theta"][number], f"parameters of step {number}")
        balancer.step(closure, optimizer)
        weights = tensor(list(balancer.weights.values()))
        assert_close(record, weights, record["expected"]["loss_weights"][number], f"weights of step {number}")
    assert_close(record, theta.detach(), record["expected"]["theta"][-1], "parameters at the end")


@golden("igbv1")
def improvable_gap(record: Record) -> None:
    strategy = IGBv1()
    for number, losses in enumerate(record["inputs"]["losses"]):
        if number == record["params"]["base_set_before_step"]:
            strategy.base = tensor(record["params"]["base_losses"])
        step = Step.of(len(losses), tensor(losses))
        weights = strategy.weigh(step)
        assert_close(record, weights, record["expected"]["loss_weights"][number], f"weights of step {number}")
        on_logarithms = weights * step.losses
        expected = record["expected"]["weights_on_log_loss"][number]
        assert_close(record, on_logarithms, expected, f"weights on the logarithms of step {number}")
        strategy.update(step)


@golden("go4align")
def group_alignment(record: Record) -> None:
    expected, losses = record["expected"], record["inputs"]["losses"]
    # As many groups as tasks: each task keeps its own value.
    outcomes = {len(losses[0]): "weights_before_grouping"}
    outcomes |= {1: "loss_weights_1_group", 2: "loss_weights_2_groups"}
    for num_groups, key in outcomes.items():
        strategy = GO4Align(num_groups, record["params"]["robust_step_size"])
        for number, values in enumerate(losses):
            step = Step.of(len(values), tensor(values))
            assert_close(record, strategy.weigh(step), expected[key][number], f"{key} of step {number}")
            strategy.update(step)


@golden("ldc_mtl")
def loss_discrepancy(record: Record) -> None:
    losses, tau = tensor(record["inputs"]["losses"]), tensor(record["params"]["tau"])
    router, penalty = tensor(record["inputs"]["router_weights"]), record["params"]["lambda"]
    weights = discrepancy_weights(losses / tau, 1 / tau, router, penalty)
    assert_close(record, weights, record["expected"]["loss_weights"], "weights")


@golden("rlw")
def random_weighting(record: Record) -> None:
    """The record states a distribution: compare moments, within five standard errors."""
    mean = tensor(record["expected_weights"])
    is_dirichlet = record["params"]["distribution"].startswith("Dirichlet")
    strategy = RLW("dirichlet" if is_dirichlet else "normal", seed=0)
    count, step = 3000, Step.of(len(mean))
    weights = torch.stack([strategy.weigh(step) for _ in range(count)])
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(count, dtype=torch.float64))

    def assert_mean(samples: Tensor, expected: Tensor | float) -> None:
        error = (samples.mean(0) - expected).abs()
        assert (error <= 5 * samples.std(0) / count**0.5).all(), (samples.mean(0), expected)

    assert_mean(weights, mean)
    centred = weights - mean
    variance = record.get("variance", record.get("variance_softmax_normal"))
    if variance is not None:
        assert_mean(centred.square(), variance)
    if "covariance" in record:
        assert_mean(centred[:, :1] * centred[:, 1:], record["covariance"])
    if "prob_first_below_1_over_K" in record:
        assert_mean((centred[:, 0] < 0).double(), record["prob_first_below_1_over_K"])
