from __future__ import annotations

import itertools
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from fits import Module, assert_equal, fit, loader, state, trainer
from mtobal import UsageError
from mtobal.callbacks import MultiTaskBalancer, TaskAffinity
from networks import TASKS, SharedNet, batch

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:You are using .ddp_fork."),
]


class NoisyNet(SharedNet):
    """The shared net with dropout and batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder.insert(1, nn.BatchNorm1d(8).double())
        self.encoder.append(nn.Dropout(0.3))


def by_hand(module: Module, lr: float) -> torch.Tensor:
    """The definition, on the first batch."""
    inputs, targets = batch(size=48)
    data = [inputs[:8], *(target[:8] for target in targets.values())]
    found = torch.zeros(3, 3, dtype=torch.float64)
    before = {task: loss.item() for task, loss in module.task_losses(data).items()}
    home = state(module)
    for i, one in enumerate(TASKS):
        parameters = list(module.net.encoder.parameters())
        gradients = torch.autograd.grad(module.task_losses(data)[one], parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= lr * gradient
            after = {task: loss.item() for task, loss in module.task_losses(data).items()}
        for j, other in enumerate(TASKS):
            found[i, j] = 1 - after[other] / before[other]
        module.load_state_dict(home)
    return found


@pytest.mark.parametrize("balancers", [[], ["ew"], ["pcgrad"], ["samo"]], ids=str)
def test_it_is_the_definition(balancers: list[str], tmp_path: Path) -> None:
    affinity = TaskAffinity(every_n_steps=100)
    fit(tmp_path, Module(), *map(MultiTaskBalancer, balancers), affinity, max_epochs=1)
    assert affinity.tasks == list(TASKS)
    torch.testing.assert_close(affinity.matrix(), by_hand(Module(), 0.05), rtol=1e-9, atol=1e-12)
    assert (affinity.matrix().diag() > 0).all()  # a small step for a task helps it


def test_the_step_may_be_of_another_length(tmp_path: Path) -> None:
    affinity = TaskAffinity(lr=0.2)
    fit(tmp_path, Module(), affinity, max_epochs=1)
    torch.testing.assert_close(affinity.matrix(), by_hand(Module(), 0.2), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("spec", ["ew", "rlw+pcgrad", "famo"])
def test_it_leaves_no_trace(spec: str, tmp_path: Path) -> None:
    """Dropout, batch norm, momentum and the strategy's own generator go on as without it."""
    found = []
    for measured in ([], [TaskAffinity(every_n_steps=1)]):
        torch.manual_seed(0)
        module = Module(NoisyNet())
        fit(tmp_path, module, MultiTaskBalancer(spec), *measured)
        found.append(state(module))
    assert_equal(*found)


def test_a_step_that_leads_nowhere_has_no_affinity(tmp_path: Path) -> None:
    """All runs of a batch see the same dropout masks."""
    affinity = TaskAffinity(every_n_steps=1, lr=0.0)
    fit(tmp_path, Module(NoisyNet()), affinity, max_epochs=1)
    assert not affinity.matrix().any()


def test_it_is_averaged_and_resumed(tmp_path: Path) -> None:
    whole = TaskAffinity(every_n_steps=4)
    fit(tmp_path, Module(), whole, max_epochs=4)
    half = TaskAffinity(every_n_steps=4)
    fit(tmp_path, Module(), half).save_checkpoint(tmp_path / "half.ckpt")
    torch.load(tmp_path / "half.ckpt", weights_only=True)
    resumed = TaskAffinity(every_n_steps=4)
    rest = trainer(tmp_path, resumed, max_epochs=4)
    rest.fit(Module(), loader(), ckpt_path=tmp_path / "half.ckpt")
    assert torch.equal(resumed.matrix(), whole.matrix())
    assert not torch.equal(resumed.matrix(), half.matrix())


def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    class Keep(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            torch.save(together.matrix(), tmp_path / str(trainer.global_rank))

    alone, together = TaskAffinity(every_n_steps=4), TaskAffinity(every_n_steps=4)
    ddp = DDPStrategy(start_method="fork", process_group_backend="gloo")
    fit(tmp_path, Module(), MultiTaskBalancer("pcgrad"), together, Keep(), strategy=ddp, devices=2)
    fit(tmp_path, Module(), MultiTaskBalancer("pcgrad"), alone)
    one, other = (torch.load(tmp_path / str(rank)) for rank in range(2))
    assert torch.equal(one, other)
    torch.testing.assert_close(one, alone.matrix(), rtol=1e-9, atol=1e-12)


def test_tasks_that_never_meet_have_no_affinity(tmp_path: Path) -> None:
    class Alternating(Module):
        def task_losses(self, data):
            values = super().task_losses(data)
            values[("seg", "depth")[self.global_step % 2]] = None
            return values

    affinity = TaskAffinity(every_n_steps=1)
    fit(tmp_path, Alternating(), affinity, max_epochs=1)
    assert set(affinity.tasks) == set(TASKS)
    seg, depth = affinity.tasks.index("seg"), affinity.tasks.index("depth")
    assert affinity.matrix().isnan().sum() == 2
    assert affinity.matrix()[seg, depth].isnan()
    with pytest.raises(UsageError, match="have never been measured in one batch"):
        affinity.groups(2)


def test_a_loss_of_zero_or_nan_is_not_counted(tmp_path: Path) -> None:
    class Odd(Module):
        def task_losses(self, data):
            values = super().task_losses(data)
            bad = {0: 0.0, 1: float("nan")}.get(self.global_step, 1.0)
            return {**values, "depth": bad * values["depth"]}

    affinity = TaskAffinity(every_n_steps=1)
    with pytest.warns(RuntimeWarning, match="'depth' is not finite"):
        fit(tmp_path, Odd(), MultiTaskBalancer("ew"), affinity, max_epochs=1)
    assert affinity.matrix().isfinite().all()


def test_an_error_in_the_module_leaves_everything_in_place(tmp_path: Path) -> None:
    class Broken(Module):
        calls = 0

        def training_step(self, data, batch_idx):
            self.calls += 1
            if self.calls == 3:  # at the second displaced point
                raise RuntimeError("from the user's code")
            return super().training_step(data, batch_idx)

    module = Broken()
    before = state(module)
    with pytest.raises(RuntimeError, match="from the user's code"):
        fit(tmp_path, module, MultiTaskBalancer("pcgrad"), TaskAffinity())
    assert_equal(state(module), before)
    assert not {"training_step", "log", "log_dict"} & vars(module).keys()


def with_matrix(matrix: torch.Tensor) -> TaskAffinity:
    affinity = TaskAffinity()
    tasks = [f"task{i}" for i in range(len(matrix))]
    affinity.load_state_dict({"tasks": tasks, "sums": matrix, "counts": torch.ones_like(matrix)})
    return affinity


def gain(matrix: torch.Tensor, group: tuple[int, ...]) -> float:
    """Each member gains the mean affinity on it of the others."""
    if len(group) == 1:
        return 0.0
    return sum(sum(float(matrix[i, j]) for i in group if i != j) / (len(group) - 1) for j in group)


def splits(tasks: list[int]):
    """Every way to split the tasks."""
    if not tasks:
        yield []
        return
    first, *rest = tasks
    for size in range(len(rest) + 1):
        for others in itertools.combinations(rest, size):
            left = [task for task in rest if task not in others]
            for split in splits(left):
                yield [(first, *others), *split]


@pytest.mark.parametrize("networks", [1, 2, 3, 6])
@pytest.mark.parametrize("seed", range(5))
def test_groups_are_the_best_of_all_splits(seed: int, networks: int) -> None:
    matrix = torch.randn(6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    best = max(
        sum(gain(matrix, group) for group in split) for split in splits(list(range(6))) if len(split) <= networks
    )
    groups = with_matrix(matrix).groups(networks)
    assert len(groups) <= networks
    assert sorted(task for group in groups for task in group) == [f"task{i}" for i in range(6)]
    found = sum(gain(matrix, tuple(int(task[4:]) for task in group)) for group in groups)
    assert found == pytest.approx(best, rel=1e-12)


def test_two_camps_are_told_apart() -> None:
    camp = torch.tensor([0, 1, 0, 1])
    matrix = torch.where(camp[:, None] == camp, 0.1, -0.1).double()
    assert with_matrix(matrix).groups(2) == [["task0", "task2"], ["task1", "task3"]]


def test_the_limit_of_the_search() -> None:
    assert len(with_matrix(torch.rand(12, 12).double()).groups(3)) <= 3
    with pytest.raises(UsageError, match="takes up to 12 tasks, not 13"):
        with_matrix(torch.rand(13, 13).double()).groups(2)


def test_wrong_use_is_refused(tmp_path: Path) -> None:
    class Manual(Module):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

    with pytest.raises(UsageError, match="works with automatic optimization"):
        fit(tmp_path, Manual(), TaskAffinity())
    with pytest.raises(UsageError, match="nothing has been measured yet"):
        TaskAffinity().groups(2)
    with pytest.raises(UsageError, match="at least one network, not 0"):
        with_matrix(torch.eye(2)).groups(0)


def test_it_is_logged(tmp_path: Path) -> None:
    affinity = TaskAffinity(every_n_steps=1)
    done = fit(tmp_path, Module(), affinity)
    expected = affinity.matrix()
    assert done.callback_metrics["mtl/affinity/seg/depth"].item() == pytest.approx(expected[0, 1].item())
    assert len([name for name in done.callback_metrics if name.startswith("mtl/affinity/")]) == 6
