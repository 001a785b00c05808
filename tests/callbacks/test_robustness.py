"""What goes wrong in a training, and must not go unseen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from fits import Module, assert_close, assert_equal, fit, state
from mtobal import UsageError
from mtobal.callbacks import MultiTaskBalancer
from networks import TASKS, SharedNet

pytestmark = pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")

SPECS = ["uw", "nash_mtl", "mgda", "pcgrad", "cagrad", "graddrop", "samo", "f_mtl", "famo", "rlw+config"]
MOVING = ["sam", "samo", "f_mtl", "samo+pcgrad", "famo"]


class Altered(Module):
    """The losses of some steps are not what they were."""

    def __init__(self, alter, net: nn.Module | None = None) -> None:
        super().__init__(net)
        self.alter = alter

    def task_losses(self, data):
        return self.alter(self, super().task_losses(data))


def parameters(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("spec", MOVING)
@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_an_error_in_the_users_model_leaves_everything_in_place(spec: str, call: int, tmp_path: Path) -> None:
    """Wherever it is raised: in the step itself, or when the model runs again at a moved point."""

    class NoisyNet(SharedNet):
        def __init__(self) -> None:
            super().__init__()
            self.encoder.insert(1, nn.BatchNorm1d(8).double())
            self.calls = 0

        def forward(self, inputs):
            self.calls += 1
            if self.calls == call:
                raise RuntimeError("from the user's code")
            return super().forward(inputs)

    module = Module(NoisyNet())
    before: list[dict[str, torch.Tensor]] = []  # the steps
    module.on_train_batch_start = lambda data, batch_idx: before.append(parameters(module))
    with pytest.raises(RuntimeError, match="from the user's code"):
        fit(tmp_path, module, MultiTaskBalancer(spec))
    if spec == "famo" and call % 2 == 0:  # the second look comes after the update
        assert not torch.equal(parameters(module)["net.encoder.0.weight"], before[-1]["net.encoder.0.weight"])
    else:
        assert_equal(parameters(module), before[-1])
    assert all(m.training for m in module.modules())
    assert not {"training_step", "log", "log_dict"} & vars(module).keys()
    fit(tmp_path, module, MultiTaskBalancer(spec), max_epochs=1)


def missing(module: Module, values: dict) -> dict:
    """A task sits two steps of three out; one is left out of the mapping, the other is None."""
    if module.number % 3:
        values = {**values, "depth": None}
    if module.number % 4 == 1:
        del values["seg"]
    return values


@pytest.mark.parametrize("spec", SPECS)
def test_task_sets_may_change_from_step_to_step(spec: str, tmp_path: Path) -> None:
    callback, module = MultiTaskBalancer(spec), Altered(missing)
    fit(tmp_path, module, callback)
    assert all(value.isfinite().all() for value in state(module).values())
    assert callback.balancer.losses.keys() == {"seg", "normal"}  # of the twelfth step
    assert callback.balancer.guard.counts == {}


@pytest.mark.parametrize("spec", SPECS)
def test_a_new_task_is_refused_by_name(spec: str, tmp_path: Path) -> None:
    def grows(module, values):
        return {**values, "sky": values["seg"]} if module.number == 2 else values

    with pytest.raises(UsageError, match="task 'sky' was not among the tasks of the first step"):
        fit(tmp_path, Altered(grows), MultiTaskBalancer(spec))


@pytest.mark.parametrize("spec", SPECS)
def test_a_gradient_of_zero(spec: str, tmp_path: Path) -> None:
    def flat(module, values):
        return {**values, "depth": 0 * values["depth"] + 1} if module.number >= 3 else values

    callback, module = MultiTaskBalancer(spec), Altered(flat)
    fit(tmp_path, module, callback)
    assert all(value.isfinite().all() for value in state(module).values())
    assert all(torch.isfinite(torch.tensor(list(callback.balancer.weights.values()))))
    assert not callback.balancer.skipped


@pytest.mark.parametrize("spec", SPECS)
def test_all_gradients_are_zero(spec: str, tmp_path: Path) -> None:
    """Nothing moves, and nothing breaks."""

    def flat(module, values):
        return {task: 0 * value + 1 for task, value in values.items()}

    module = Altered(flat)
    before = state(module)
    fit(tmp_path, module, MultiTaskBalancer(spec))
    assert_close(state(module), before)


class Forgetting(SharedNet):
    """From its third training step on, a task is computed by its head alone."""

    def __init__(self) -> None:
        super().__init__()
        self.forgets = False

    def forward(self, inputs):
        features = self.encoder(inputs)
        own = features.detach() if self.forgets else features
        return {task: head(own if task == "depth" else features) for task, head in self.heads.items()}


@pytest.mark.parametrize("spec", SPECS)
def test_a_task_that_stops_depending_on_the_shared_parameters(spec: str, tmp_path: Path) -> None:
    net = Forgetting()
    module = Altered(lambda module, values: values, net)
    module.on_train_batch_start = lambda data, batch_idx: setattr(net, "forgets", module.global_step >= 3)
    heads: list[torch.Tensor] = []
    module.on_train_batch_end = lambda *_: heads.append(net.heads["depth"].weight.detach().clone())
    callback = MultiTaskBalancer(spec)
    fit(tmp_path, module, callback)
    assert all(value.isfinite().all() for value in state(module).values())
    assert callback.balancer.weights.keys() in (set(TASKS), set())
    assert all(name.startswith("net.encoder") for name in callback.balancer.partition.shared)
    if spec != "mgda":  # whose weight goes to the task with a gradient of zero
        assert not torch.equal(heads[-1], heads[3])


@pytest.mark.parametrize("spec", ["pcgrad", "nash_mtl", "graddrop", "samo+mgda"])
def test_shared_parameters_that_are_frozen_in_the_middle(spec: str, tmp_path: Path) -> None:
    class Freezing(Module):
        def on_train_epoch_start(self):
            self.net.encoder.requires_grad_(self.current_epoch == 0)

    module, encoders = Freezing(), []
    module.on_train_epoch_end = lambda: encoders.append(parameters(module.net.encoder))
    with pytest.warns(RuntimeWarning, match="no trainable parameter is shared, so"):
        fit(tmp_path, module, MultiTaskBalancer(spec))
    assert_equal(encoders[0], encoders[1])


def test_without_any_shared_parameter_an_aggregation_is_refused(tmp_path: Path) -> None:
    class Separate(Module):
        def __init__(self) -> None:
            super().__init__(SharedNet())
            self.net.spare.requires_grad_(True)

        def task_losses(self, data):
            return {task: head.weight.square().sum() for task, head in self.net.heads.items()}

    with pytest.raises(UsageError, match="no trainable parameter is reached by two of the losses"):
        fit(tmp_path, Separate(), MultiTaskBalancer("pcgrad"))
