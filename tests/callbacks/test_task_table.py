from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
import rich.console

from fits import Module, fit
from mtobal import UsageError
from mtobal.callbacks import MultiTaskBalancer, TaskTable
from networks import TASKS

pytestmark = pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")


def printed(tmp_path: Path, module: Module, spec: str, every_n_steps: int | None = None, **options) -> list[str]:
    """Return the tables, each as a text."""
    table = TaskTable(every_n_steps)
    table.console = rich.console.Console(file=io.StringIO(), width=120)
    fit(tmp_path, module, MultiTaskBalancer(spec, **options), table)
    return ["epoch" + text for text in table.console.file.getvalue().split("epoch")[1:]]


def cells(table: str, task: str) -> list[str]:
    [line] = [line for line in table.splitlines() if line.startswith(f"│ {task} ")]
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_one_table_an_epoch_with_the_means(tmp_path: Path) -> None:
    class Watched(Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[float] = []

        def task_losses(self, data):
            values = super().task_losses(data)
            self.seen.append(values["depth"].item())
            return values

    module = Watched()
    first, second = printed(tmp_path, module, "pcgrad")
    assert "epoch 0, step 6: pcgrad" in first
    assert "epoch 1, step 12" in second
    for table, values in ((first, module.seen[:6]), (second, module.seen[6:])):
        name, loss, weight, norm, cosine, absent, bad = cells(table, "depth")
        assert name == "depth"
        assert float(loss) == pytest.approx(sum(values) / 6, rel=1e-3)
        assert float(weight) > 0
        assert float(norm) > 0
        assert -1 <= float(cosine.split()[0]) <= 1
        assert cosine.endswith(("(seg)", "(normal)"))
        assert (absent, bad) == ("0", "0")


def test_a_loss_weighting_has_no_gradients_to_show(tmp_path: Path) -> None:
    tables = printed(tmp_path, Module(), "uw", every_n_steps=5)
    assert len(tables) == 2
    for task in TASKS:
        assert cells(tables[0], task)[3:5] == ["", ""]


def test_what_was_missing_or_broken_is_counted(tmp_path: Path) -> None:
    class Faulty(Module):
        def task_losses(self, data):
            values = super().task_losses(data)
            if self.global_step in (1, 2, 3):
                values["seg"] = None
            if self.global_step == 4:
                values["depth"] = values["depth"] * float("nan")
            return values

    with pytest.warns(RuntimeWarning, match="not finite"):
        first, second = printed(tmp_path, Faulty(), "mgda")
    assert cells(first, "seg")[-2:] == ["3", "0"]
    assert cells(first, "depth")[-2:] == ["0", "1"]
    assert "1 of 6 steps skipped" in first
    assert cells(second, "depth")[-2:] == ["0", "0"]
    assert "skipped" not in second


def test_without_rich_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(UsageError, match=r"pip install 'mtobal\[bench\]'"):
        TaskTable()


def test_it_needs_the_balancer(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="TaskTable works beside MultiTaskBalancer"):
        fit(tmp_path, Module(), TaskTable())
