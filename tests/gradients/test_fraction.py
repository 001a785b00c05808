"""Gramians of part of each batch."""

from __future__ import annotations

import copy
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mtobal import Balancer, UsageError
from mtobal.callbacks import MultiTaskBalancer
from networks import TASKS, SharedNet, batch, losses, rows_alone

Data = tuple[Tensor, dict[str, Tensor]]


def first(data: Data, share: float) -> Data:
    inputs, targets = data
    count = round(share * len(inputs))
    return inputs[:count], {task: target[:count] for task, target in targets.items()}


@pytest.mark.parametrize("engine", ["", "loop+", "ghost+", "batched+"])
@pytest.mark.parametrize("spec", ["mgda", "uw+pcgrad", "cagrad"])
def test_weights_are_those_of_the_part_and_gradients_those_of_the_whole(spec: str, engine: str) -> None:
    data, net = batch(size=16), SharedNet()
    alone = Balancer(spec, copy.deepcopy(net))
    alone(losses(alone.model, first(data, 0.25))).backward()
    balancer = Balancer(spec, net, gradients=f"{engine}fraction(f=0.25)")
    (3 * balancer(losses(net, data), part=lambda share: losses(net, first(data, share)))).backward()
    if not spec.startswith("uw"):  # whose loss weights are those of the whole batch
        assert balancer.weights == pytest.approx(alone.weights, rel=1e-9)
    rows = rows_alone(net, data)
    for name, parameter in net.encoder.named_parameters(prefix="encoder"):
        expected = sum(balancer.weights[task] * rows[task][name] for task in TASKS)
        torch.testing.assert_close(parameter.grad, 3 * expected, rtol=1e-9, atol=1e-12)


class Noisy(SharedNet):
    def __init__(self) -> None:
        super().__init__()
        self.encoder.insert(1, nn.BatchNorm1d(8).double())
        self.encoder.append(nn.Dropout(0.5))


def test_the_look_at_the_part_leaves_no_trace() -> None:
    plain, net = Noisy(), Noisy()
    for model, gradients in ((plain, "loop"), (net, "fraction(f=0.5)")):
        torch.manual_seed(3)
        balancer = Balancer("pcgrad", model, gradients=gradients)
        data = batch()
        balancer(losses(model, data), part=lambda share, m=model, d=data: losses(m, first(d, share))).backward()
    for one, other in zip(plain.buffers(), net.buffers(), strict=True):
        assert torch.equal(one, other)
    after = torch.rand(3)
    torch.manual_seed(3)
    losses(Noisy(), batch())
    assert torch.equal(after, torch.rand(3))


def test_a_batch_is_looked_at_whole_if_a_task_is_not_in_the_part() -> None:
    data = batch()

    def without_depth(net: nn.Module, share: float) -> dict[str, Tensor | None]:
        return {**losses(net, first(data, share)), "depth": None}

    gradients = []
    for scheme in ("loop", "fraction(f=0.5)"):
        net = SharedNet()
        balancer = Balancer("mgda", net, gradients=scheme)
        balancer(losses(net, data), part=lambda share, net=net: without_depth(net, share)).backward()
        gradients.append([parameter.grad for parameter in net.encoder.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13)


def test_accumulated_batches_are_aggregated_one_by_one() -> None:
    net, alone = SharedNet(), SharedNet()
    balancer, single = (Balancer("mgda", model, gradients="fraction(f=0.5)") for model in (net, alone))
    for number in range(2):
        data = batch(number)
        single(losses(alone, data), part=lambda share, d=data: losses(alone, first(d, share))).backward()
        loss = None
        if number == 0:
            with balancer.accumulating():
                loss = balancer(losses(net, data), part=lambda share, d=data: losses(net, first(d, share)))
        else:
            loss = balancer(losses(net, data), part=lambda share, d=data: losses(net, first(d, share)))
        loss.backward()
    for one, other in zip(net.encoder.parameters(), alone.encoder.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_a_part_that_is_not_finite_skips_the_step() -> None:
    net, data = SharedNet(), batch()
    balancer = Balancer("mgda", net, gradients="fraction(f=0.5)")

    def broken(share: float) -> dict[str, Tensor]:
        found = losses(net, first(data, share))
        return {**found, "depth": found["depth"] * float("nan")}

    with pytest.warns(RuntimeWarning, match="depth"):
        balancer(losses(net, data), part=broken).backward()
    assert balancer.skipped
    assert all(parameter.grad is None for parameter in net.parameters())


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = Noisy()
        self.sizes: list[int] = []

    def training_step(self, data: list[Tensor], batch_idx: int) -> dict[str, Any]:
        inputs, *targets = data
        self.sizes.append(len(inputs))
        values = losses(self.net, (inputs, dict(zip(TASKS, targets, strict=True))))
        self.log("looked", float(len(inputs)), on_step=False, on_epoch=True, reduce_fx="sum")
        return {"loss": sum(values.values()), "losses": values}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
@pytest.mark.parametrize(
    ("gradients", "sizes"),
    [("fraction(f=0.3)", [10, 3, 10, 3, 4, 2]), ("fraction(f=0.3)+every(n=2)", [10, 3, 10, 4, 2])],
)
def test_through_the_callback(gradients: str, sizes: list[int]) -> None:
    inputs, targets = batch(size=24)
    module, callback = Module(), MultiTaskBalancer("mgda", gradients=gradients)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(inputs, *targets.values()), batch_size=10))
    assert module.sizes == sizes
    assert trainer.callback_metrics["looked"] == 24


@pytest.mark.parametrize(
    ("data", "lengths"),
    [([torch.zeros(4, 5), torch.zeros(3)], "3, 4"), ("text", "none")],
)
def test_a_batch_without_one_length_is_refused(data: object, lengths: str) -> None:
    module = Module()

    def training_step(data: object, batch_idx: int) -> dict[str, Any]:
        values = losses(module.net, batch())
        return {"loss": sum(values.values()), "losses": values}

    module.training_step = training_step  # type: ignore[method-assign]
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[MultiTaskBalancer("mgda", gradients="fraction(f=0.5)")],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.raises(UsageError, match=f"tensors have lengths of {lengths}"):
        trainer.fit(module, DataLoader([data], batch_size=None))


def test_wrong_use_is_refused() -> None:
    net = SharedNet()
    with pytest.raises(UsageError, match="part is missing"):
        Balancer("mgda", net, gradients="fraction(f=0.5)")(losses(net, batch()))
    with pytest.raises(UsageError, match="part is a dict"):
        Balancer("mgda", net, gradients="fraction(f=0.5)")(losses(net, batch()), part={})
    for scheme, spec, message in (
        ("fraction(f=0)", "mgda", "above 0 and at most 1, not 0"),
        ("fraction(f=2)", "mgda", "not 2"),
        ("fraction(f=0.5)+layers(names=encoder)", "mgda", "exclude each other"),
        ("fraction(f=0.5)", "graddrop", "without every, fraction and layers"),
        ("fraction(f=0.5)", "sam", "without every, fraction and layers"),
        ("representation+fraction(f=0.5)", "mgda", "leave every, fraction and layers out"),
    ):
        with pytest.raises(UsageError, match=message):
            Balancer(spec, net, gradients=scheme)
