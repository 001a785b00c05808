"""A table of the tasks in the terminal."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl

from mtobal.balancer import Balancer
from mtobal.callbacks.beside import check_interval, find_balancer
from mtobal.errors import UsageError


class TaskTable(pl.Callback):
    """Print how the tasks fare, at the end of each epoch or every so many steps.

    One line a task: mean loss, mean weight and mean gradient norm over the steps since the last table, the lowest
    cosine to another task, and how many of these steps the task sat out or was not finite in. What the strategy
    does not know, such as gradients in a loss weighting, stays empty. It works beside `MultiTaskBalancer`, prints
    on the first rank only, and needs rich.

    Parameters
    ----------
    every_n_steps : int, optional
        How many steps of the optimizer lie between two tables. By default there is one at the end of each epoch.

    Examples
    --------
    >>> import lightning.pytorch as pl
    >>> from mtobal.callbacks import MultiTaskBalancer, TaskTable
    >>> callbacks = [MultiTaskBalancer("pcgrad"), TaskTable()]
    >>> trainer = pl.Trainer(callbacks=callbacks, logger=False, barebones=True)
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        try:
            import rich.console
        except ImportError as error:
            raise UsageError(
                "TaskTable prints with rich, which is not installed: pip install 'mtobal[bench]'."
            ) from error
        self.every_n_steps = None if every_n_steps is None else check_interval(every_n_steps)
        self.console = rich.console.Console()
        self._lines: dict[str, _Line] = {}
        self._steps = 0
        self._skipped = 0
        self._counted: dict[str, int] = {}  # what was not finite, before these steps
        self._global_step = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            find_balancer(trainer, self)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._global_step = trainer.global_step  # not zero in a resumed run
        self._begin(self._balancer(trainer))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._global_step:  # a batch that is accumulated
            return
        self._global_step = trainer.global_step
        self._count(self._balancer(trainer))
        if self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0:
            self._print(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.every_n_steps is None:
            self._print(trainer)

    def _balancer(self, trainer: pl.Trainer) -> Balancer:
        balancer = find_balancer(trainer, self).balancer
        assert balancer is not None
        return balancer

    def _begin(self, balancer: Balancer) -> None:
        self._lines, self._steps, self._skipped = {}, 0, 0
        self._counted = dict(balancer.guard.counts)

    def _count(self, balancer: Balancer) -> None:
        """Add the last step to the sums."""
        self._steps += 1
        if balancer.skipped:
            self._skipped += 1
            return
        values = {"loss": balancer.losses, "weight": balancer.weights, "norm": balancer.gradient_norms}
        for name, by_task in values.items():
            for task, value in by_task.items():
                self._line(task).values.setdefault(name, []).append(value)
        for (one, other), cosine in balancer.cosines.items():
            for task, against in ((one, other), (other, one)):
                line = self._line(task)
                if cosine < line.cosine:
                    line.cosine, line.against = cosine, against

    def _line(self, task: str) -> _Line:
        return self._lines.setdefault(task, _Line())

    def _print(self, trainer: pl.Trainer) -> None:
        from rich.table import Table

        balancer = self._balancer(trainer)
        if trainer.is_global_zero and self._steps:
            title = f"epoch {trainer.current_epoch}, step {trainer.global_step}: {balancer.strategy.spec}"
            caption = f"{self._skipped} of {self._steps} steps skipped" if self._skipped else None
            table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
            table.add_column("task")
            for heading in ("loss", "weight", "gradient", "lowest cosine", "sat out", "not finite"):
                table.add_column(heading, justify="right")
            for task in balancer.tasks or ():
                line = self._line(task)
                absent = self._steps - self._skipped - len(line.values.get("loss", []))
                bad = balancer.guard.counts.get(task, 0) - self._counted.get(task, 0)
                lowest = f"{line.cosine:+.2f} ({line.against})" if line.against else ""
                means = [line.mean(name) for name in ("loss", "weight", "norm")]
                table.add_row(task, *means, lowest, str(absent), str(bad))
            self.console.print(table)
        self._begin(balancer)


@dataclass
class _Line:
    """What is known of a task since the last table."""

    values: dict[str, list[float]] = field(default_factory=dict)
    cosine: float = math.inf
    against: str = ""

    def mean(self, name: str) -> str:
        values = self.values.get(name)
        return f"{math.fsum(values) / len(values):.4g}" if values else ""
