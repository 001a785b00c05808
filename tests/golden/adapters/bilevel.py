"""Loss weightings that look ahead: at the validation losses after a step on the training losses."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn

from golden.adapters import golden
from golden.records import Record, assert_close, tensor
from mtobal import Balancer
from mtobal.strategies.loss import AutoLambda


def number_after(word: str, text: str, default: float = 0.0) -> float:
    found = re.search(rf"\b{word}\s+([\d.e+-]+)", text)
    return default if found is None else float(found[1])


@golden("auto_lambda")
def auto_lambda(record: Record) -> None:
    params, inputs, expected = record["params"], record["inputs"], record["expected"]
    assert params["meta_optimizer"].startswith("adam")
    assert params["model_optimizer"].startswith("sgd")
    hessians = tensor(inputs["hessians"])
    tasks = [f"task {number}" for number in range(len(hessians))]
    theta = nn.Parameter(tensor(inputs["theta0"]))
    optimizer = torch.optim.SGD(
        [theta],
        lr=number_after("lr", params["model_optimizer"]),
        momentum=number_after("momentum", params["model_optimizer"]),
        weight_decay=number_after("wd", params["model_optimizer"]),
    )
    strategy = AutoLambda(
        primary=[tasks[number] for number in params["primary"]],
        lr=number_after("lr", params["meta_optimizer"]),
        init=params["lambda_init"],
    )

    def quadratics(minima: Tensor) -> Callable[[], dict[str, Tensor]]:
        def closure() -> dict[str, Tensor]:
            away = theta - minima
            values = torch.einsum("ki,kij,kj->k", away, hessians, away) / 2
            return dict(zip(tasks, values.unbind(), strict=True))

        return closure

    training, validation = (quadratics(tensor(inputs[name])) for name in ("train_minima", "val_minima"))
    gradients: list[Tensor] = []
    learn = strategy.learn
    strategy.learn = lambda step, gradient: (gradients.append(gradient), learn(step, gradient))[1]
    balancer = Balancer(strategy)
    for number, (gradient, weights, point) in enumerate(
        zip(expected["meta_gradient"], expected["lambda"], expected["theta"], strict=True)
    ):
        balancer.step(training, optimizer, validation=validation)
        assert_close(record, gradients[-1], gradient, f"meta-gradient of step {number}")
        applied = tensor(list(balancer.weights.values()))
        assert_close(record, applied, weights, f"weights of step {number}")
        assert_close(record, theta.detach(), point, f"parameters after step {number}")
