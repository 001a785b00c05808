"""The ways to take gradients, through the balancer and the Lightning callback."""

from __future__ import annotations

import copy
import logging
import pickle
import re
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import mtobal
from mtobal import Balancer, UsageError
from mtobal.callbacks import MultiTaskBalancer
from mtobal.strategies import Step, build
from networks import TASKS, SharedNet, batch, losses, outcome, rows_alone

ENGINES = ("auto", "loop", "ghost", "batched", "batched(memory=1)", "measured")
SPECS = ("pcgrad", "uw+mgda(normalization=l2)", "graddrop")


class WideNet(SharedNet):
    """An encoder whose first layers are so wide that inputs and cotangents are cheaper than weight gradients."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            wide = [nn.Linear(5, 96), nn.Tanh(), nn.Linear(96, 96), nn.Tanh(), nn.Linear(96, 6), nn.Tanh()]
            self.encoder = nn.Sequential(*wide).double()


def written(net: nn.Module, spec: str, gradients: str, data: object, **options: object) -> list[Tensor | None]:
    balancer = Balancer(spec, net, gradients=gradients, **options)
    values, features = outcome(net, data)
    balancer(values, representation=features).backward()
    return [parameter.grad for parameter in net.parameters()]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("gradients", ENGINES)
def test_every_exact_engine_writes_the_same_gradients(spec: str, gradients: str) -> None:
    expected = written(WideNet(), spec, "loop", batch())
    for found, wanted in zip(written(WideNet(), spec, gradients, batch()), expected, strict=True):
        assert (found is None) == (wanted is None)
        if wanted is not None:
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("gradients", [*(name for name in ENGINES if name != "measured"), "every(n=4)"])
def test_two_runs_and_a_resumed_one_are_equal_bit_by_bit(gradients: str) -> None:
    def train(net: nn.Module, balancer: Balancer, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for number in steps:  # batches of several sizes, for which auto may well do different things
            balancer.step(partial(outcome, net, batch(number, size=8 + 60 * (number % 2))), optimizer)

    def fresh(seed: int = 0) -> tuple[nn.Module, Balancer, torch.optim.Optimizer]:
        net = WideNet(seed)
        balancer = Balancer("pcgrad", net, gradients=gradients)
        return net, balancer, torch.optim.Adam(net.parameters(), lr=0.01)

    first, second, resumed = fresh(), fresh(), fresh(seed=1)
    train(*first, range(6))
    train(*second, range(3))
    for there, here in zip(resumed, second, strict=True):
        there.load_state_dict(copy.deepcopy(here.state_dict()))
    train(*second, range(3, 6))
    train(*resumed, range(3, 6))
    for one, other, third in zip(*(run[0].parameters() for run in (first, second, resumed)), strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, third)


@pytest.mark.parametrize("gradients", [*ENGINES, "representation", "layers(names='encoder')", "every(n=2)"])
def test_hooks_on_parameters_and_tensors_run_as_in_any_backward_pass(gradients: str) -> None:
    plain, net = WideNet(), WideNet()
    expected = written(plain, "pcgrad", gradients, batch())
    seen: list[Tensor] = []
    reached = [parameter for parameter, one in zip(net.parameters(), expected, strict=True) if one is not None]
    for parameter in reached:
        parameter.register_hook(lambda gradient: seen.append(gradient) or 3 * gradient)
    balancer = Balancer("pcgrad", net, gradients=gradients)
    values, features = outcome(net, batch())
    features.register_hook(lambda gradient: -gradient)  # as in adversarial training
    balancer(values, representation=features).backward()
    assert len(seen) == len(reached)
    for (name, parameter), gradient in zip(net.named_parameters(), expected, strict=True):
        if gradient is not None:
            factor = -3 if name.startswith("encoder") else 3
            torch.testing.assert_close(parameter.grad, factor * gradient, rtol=1e-10, atol=1e-13)


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = WideNet()

    def training_step(self, data: list[Tensor], batch_idx: int) -> dict[str, object]:
        inputs, *targets = data
        values = losses(self.net, (inputs, dict(zip(TASKS, targets, strict=True))))
        return {"loss": sum(values.values()), "losses": values}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
@pytest.mark.parametrize("gradients", ENGINES)
def test_through_the_callback(gradients: str, tmp_path) -> None:
    inputs, targets = batch(size=32)

    def fit(callback: MultiTaskBalancer) -> pl.LightningModule:
        module = Module()
        trainer = pl.Trainer(
            max_epochs=2,
            accelerator="cpu",
            accumulate_grad_batches=2,
            gradient_clip_val=0.1,
            callbacks=[callback],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(module, DataLoader(TensorDataset(inputs, *targets.values()), batch_size=8))
        return module

    callback = MultiTaskBalancer("pcgrad", gradients=gradients)
    found, expected = fit(callback), fit(MultiTaskBalancer("pcgrad", gradients="loop"))
    for one, other in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_the_model_is_left_alone() -> None:
    """It holds no hook and nothing of the balancer, so that it can be copied, pickled and run as it was."""
    net = WideNet()
    written(net, "pcgrad", "ghost", batch())
    for module in net.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks
    pickle.loads(pickle.dumps(copy.deepcopy(net)))


@pytest.mark.parametrize(
    ("net", "spec", "size", "reason"),
    [
        (WideNet, "pcgrad", 8, "auto: ghost, because .* cheaper than 3 gradients for 2 of 6 .* which hold 94% of"),
        (WideNet, "pcgrad", 4096, "auto: loop, because .* cheaper for none of 6 shared parameters"),
        (WideNet, "graddrop", 8, "auto: loop, because the strategy reads the gradients themselves"),
    ],
)
def test_auto_says_once_what_it_does_and_why(net, spec: str, size: int, reason: str, caplog) -> None:
    caplog.set_level(logging.INFO, "mtobal")
    model = net()
    balancer = Balancer(spec, model)
    for number in range(2):
        balancer(losses(model, batch(number, size))).backward()
    [record] = [record for record in caplog.records if record.name == "mtobal"]
    assert re.search(reason, record.message), record.message


def test_representation_gradients_for_a_strategy_that_does_not_ask_for_them() -> None:
    """The weights come from the gradients of the representation, and the encoder runs backward once."""
    net, data = SharedNet(), batch()
    values, features = outcome(net, data)
    parts = [torch.autograd.grad(value, features, retain_graph=True)[0].flatten() for value in values.values()]
    rows = torch.stack(parts)
    balancer = Balancer("mgda", net, gradients="representation")
    balancer(values, representation=features).backward()
    expected = mtobal.weights(rows @ rows.T, "mgda")
    torch.testing.assert_close(torch.tensor(list(balancer.weights.values())).double(), expected.double())
    with pytest.raises(UsageError, match="reads the shared representation"):
        balancer(outcome(net, data)[0])


@pytest.mark.parametrize("spec", ["mgda", "uw+mgda", "nash_mtl", "pcgrad(heads=weighted)"])
def test_every_keeps_the_weights_of_the_aggregation_for_n_steps(spec: str) -> None:
    """And not those of the losses, which cost nothing."""
    net = SharedNet()
    balancer = Balancer(spec, net, gradients="every(n=3)")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for number in range(7):
        values = losses(net, batch(number))
        rows = {
            task: torch.autograd.grad(value, list(net.parameters()), retain_graph=True, allow_unused=True)
            for task, value in values.items()
        }
        scales = balancer.strategy.loss_weights(
            Step(TASKS, (0, 1, 2), torch.stack(list(values.values())).detach())
        )
        optimizer.zero_grad()
        balancer(values).backward()
        optimizer.step()
        weights = torch.tensor(list(balancer.weights.values())) / scales
        if number % 3 == 0:
            solved = weights
        torch.testing.assert_close(weights, solved)
        for index, (name, parameter) in enumerate(net.named_parameters()):
            used = balancer.weights if name.startswith("encoder") else balancer.head_weights
            parts = [used[task] * row[index] for task, row in rows.items() if row[index] is not None]
            if parts:
                torch.testing.assert_close(parameter.grad, sum(parts), rtol=1e-11, atol=1e-14)


def test_every_solves_again_when_other_tasks_take_part() -> None:
    net = SharedNet()
    balancer = Balancer("mgda", net, gradients="every(n=100)")
    values = losses(net, batch())
    balancer(values).backward()
    first = balancer.weights
    balancer(losses(net, batch(1))).backward()
    assert balancer.weights == first
    balancer(losses(net, batch(1)) | {"seg": None}).backward()
    assert tuple(balancer.weights) == ("depth", "normal")


@pytest.mark.parametrize("gradients", ["every(n=2)", "layers(names='encoder')", "representation"])
def test_a_strategy_that_reads_the_jacobian_needs_it_at_every_step(gradients: str) -> None:
    with pytest.raises(UsageError, match="the strategy reads the gradients of all parameters at every step"):
        Balancer("graddrop", SharedNet(), gradients=gradients)


@pytest.mark.parametrize(
    ("gradients", "message"),
    [
        ("lop", "unknown way to take gradients 'lop': did you mean 'loop'"),
        ("loop(chunk=3)", "gradients='loop' has no option 'chunk'"),
        ("batched(memry=3)", "gradients='batched' has no option 'memry': did you mean 'memory'"),
        ("batched(memory=0)", "memory must be positive, not 0"),
        ("loop+ghost", "'loop' and 'ghost' exclude each other"),
        ("every", "gradients='every': n is missing"),
        ("every(n=0)", "n must be at least 1, not 0"),
        ("representation+every(n=2)", "leave every"),
    ],
)
def test_a_wrong_scheme_is_refused(gradients: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Balancer("pcgrad", gradients=gradients)


@pytest.mark.parametrize("spec", ["mgda", "uw+pcgrad", "nash_mtl"])
def test_layers_alone_decide_on_the_weights(spec: str) -> None:
    net, data = SharedNet(), batch()
    balancer = Balancer(spec, net, gradients="layers(names='encoder.2')")
    balancer(losses(net, data)).backward()
    rows = rows_alone(net, data)
    names = ["encoder.2.weight", "encoder.2.bias"]
    jacobian = torch.stack([torch.cat([rows[task][name].flatten() for name in names]) for task in TASKS])
    strategy = build(spec)
    step = Step(TASKS, (0, 1, 2), torch.stack([loss.detach() for loss in losses(net, data).values()]))
    scales = strategy.loss_weights(step)
    expected = scales * strategy.aggregation_weights(jacobian @ jacobian.T, step, scales)
    assert tuple(balancer.weights.values()) == pytest.approx(expected.tolist())
    for name in ("encoder.0.weight", "encoder.2.weight"):
        combined = sum(balancer.weights[task] * rows[task][name] for task in TASKS)
        torch.testing.assert_close(net.get_parameter(name).grad, combined, rtol=1e-10, atol=1e-13)
    for task in TASKS:
        own = balancer.head_weights[task] * rows[task][f"heads.{task}.weight"]
        torch.testing.assert_close(net.heads[task].weight.grad, own, rtol=1e-10, atol=1e-13)


def test_layers_that_are_not_there_are_named() -> None:
    net, data = SharedNet(), batch()
    loss = Balancer("mgda", net, gradients="layers(names=['encoder', 'heads.seg'])")(losses(net, data))
    with pytest.raises(UsageError, match=r"'heads\.seg' names no shared parameter"):
        loss.backward()


def test_a_model_that_is_compiled_whole_is_refused() -> None:
    net, data = SharedNet(), batch()
    whole = torch.compile(net, backend="aot_eager")
    loss = Balancer("mgda", net)(losses(whole, data))
    with pytest.raises(UsageError, match=r"model.encoder = torch.compile\(model.encoder\)"):
        loss.backward()
    Balancer("uw", net)(losses(whole, data)).backward()
    torch._dynamo.reset()
