"""Strategies that read the gradients at the shared representation."""

from __future__ import annotations

from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import mtobal
from mtobal import Balancer, UsageError
from mtobal.callbacks import MultiTaskBalancer
from networks import TASKS, batch

FACTORS = (1.0, 5.0, 0.2)
specs = pytest.mark.parametrize(
    ("spec", "reference"),
    [
        ("mgda_ub", "mgda"),
        ("mgda_ub(normalization=l2)", "mgda(normalization=l2)"),
        ("mgda_ub(normalization='loss+', heads=raw)", "mgda(normalization='loss+')"),
        ("aligned_mtl_ub", "aligned_mtl"),
        ("aligned_mtl_ub(scale_mode=mean, heads=weighted)", "aligned_mtl(scale_mode=mean)"),
    ],
)


class Net(nn.Module):
    """An encoder whose output is random and depends on the batch, and one decoder a task."""

    def __init__(self, skip: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.stem = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh())
            self.encoder = nn.Sequential(nn.Dropout(0.3), nn.Linear(8, 6), nn.Tanh())
            self.heads = nn.ModuleDict(
                {task: nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.2), nn.Linear(4, 2)) for task in TASKS}
            )
            self.shortcut = nn.Linear(8, 2) if skip else None
        self.double()

    def forward(self, inputs: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        early = self.stem(inputs)
        features = self.encoder(early)
        outputs = {task: head(features) for task, head in self.heads.items()}
        if self.shortcut is not None:
            outputs["depth"] = outputs["depth"] + self.shortcut(early)
        return outputs, features

    def losses(self, data: tuple[Tensor, dict[str, Tensor]]) -> tuple[dict[str, Tensor], Tensor]:
        outputs, features = self(data[0])
        found = {
            task: factor * (outputs[task] - data[1][task]).square().mean()
            for task, factor in zip(TASKS, FACTORS, strict=True)
        }
        return found, features

    def shared(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.named_parameters() if name.startswith(("stem", "encoder"))]


@specs
def test_weights_are_those_of_the_gradients_at_the_representation(spec: str, reference: str) -> None:
    net = Net()
    values, features = net.losses(batch())
    balancer = Balancer(spec, net)
    # Flattened over samples and features: a sum over the samples would be another Gramian.
    rows = torch.stack(
        [torch.autograd.grad(value, features, retain_graph=True)[0].flatten() for value in values.values()]
    )
    expected = mtobal.weights(rows @ rows.T, reference, [value.item() for value in values.values()])
    parameters = [parameter for _, parameter in net.shared()]
    own = {task: torch.autograd.grad(values[task], parameters, retain_graph=True) for task in TASKS}
    heads = {
        task: torch.autograd.grad(values[task], list(net.heads[task].parameters()), retain_graph=True)
        for task in TASKS
    }
    balancer(values, representation=features).backward()

    found = torch.tensor(list(balancer.weights.values()), dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
    for index, (name, parameter) in enumerate(net.shared()):
        combined = sum(weight * own[task][index] for task, weight in balancer.weights.items())
        torch.testing.assert_close(parameter.grad, combined, rtol=1e-9, atol=1e-12, msg=name)
    weighted = balancer.strategy.aggregation.heads == "weighted"
    assert balancer.head_weights == (balancer.weights if weighted else dict.fromkeys(TASKS, 1.0))
    for task in TASKS:
        for parameter, gradient in zip(net.heads[task].parameters(), heads[task], strict=True):
            torch.testing.assert_close(parameter.grad, balancer.head_weights[task] * gradient)


def test_the_encoder_runs_backward_once_and_forward_never_again() -> None:
    net = Net()
    passes = []

    def follow(module: nn.Module, inputs: object, output: Tensor) -> None:
        passes.append("forward")
        output.register_hook(lambda gradient: passes.append("backward"))

    net.stem.register_forward_hook(follow)
    values, features = net.losses(batch())
    Balancer("mgda_ub", net)(values, representation=features).backward()
    assert passes == ["forward", "backward"]
    assert net.stem[1].num_batches_tracked == 1


def test_loss_weights_come_first() -> None:
    net, plain = Net(), Net()
    torch.manual_seed(0)
    values, features = net.losses(batch())
    balancer = Balancer("static(weights={seg: 2, depth: 0.5, normal: 3})+mgda_ub", net)
    balancer(values, representation=features).backward()
    torch.manual_seed(0)
    values, features = plain.losses(batch())
    scaled = {task: factor * values[task] for task, factor in zip(TASKS, (2.0, 0.5, 3.0), strict=True)}
    Balancer("mgda_ub", plain)(scaled, representation=features).backward()
    for left, right in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(left.grad, right.grad, rtol=1e-9, atol=1e-12)


def test_a_connection_around_the_representation_is_refused() -> None:
    net = Net(skip=True)
    values, features = net.losses(batch())
    with pytest.raises(UsageError, match=r"task 'depth' reaches 'stem.* around the representation"):
        Balancer("mgda_ub", net)(values, representation=features)


def test_a_missing_representation_says_what_to_do() -> None:
    net = Net()
    values, _ = net.losses(batch())
    with pytest.raises(UsageError, match=r"mgda_ub.* reads the shared representation: call balancer\(losses,"):
        Balancer("mgda_ub", net)(values)


def test_a_representation_without_encoder_below_is_refused() -> None:
    net = Net()
    values, features = net.losses(batch())
    with pytest.raises(UsageError, match="no parameter lies below the representation that was given"):
        Balancer("mgda_ub", net)(values, representation=features.detach())


class Module(pl.LightningModule):
    def __init__(self, give: bool = True) -> None:
        super().__init__()
        self.net = Net()
        self.give = give

    def training_step(self, data: tuple[Tensor, dict[str, Tensor]], batch_idx: int) -> dict[str, object]:
        torch.manual_seed(batch_idx)  # of the dropout
        values, features = self.net.losses(data)
        output = {"loss": sum(values.values()), "losses": values}
        return {**output, "representation": features} if self.give else output

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> DataLoader:
        return DataLoader([batch(number) for number in range(4)], batch_size=None)


def trainer(spec: str) -> pl.Trainer:
    return pl.Trainer(
        callbacks=[MultiTaskBalancer(spec)],
        max_epochs=1,
        accelerator="cpu",
        barebones=True,
    )


def test_it_trains_under_lightning_as_in_a_loop() -> None:
    module, net = Module(), Net()
    trainer("mgda_ub").fit(module)
    balancer = Balancer("mgda_ub", net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for number in range(4):
        torch.manual_seed(number)
        balancer.step(partial(net.losses, batch(number)), optimizer)
    for left, right in zip(module.net.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)
    assert not torch.equal(net.stem[0].weight, Net().stem[0].weight)


def test_lightning_says_what_to_return() -> None:
    with pytest.raises(UsageError, match="return it from training_step under 'representation'"):
        trainer("mgda_ub").fit(Module(give=False))
