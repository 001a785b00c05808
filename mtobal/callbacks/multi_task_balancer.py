"""The Lightning face of the balancer: one callback."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from mtobal.balancer import Balancer, Policy
from mtobal.callbacks.balanced_step import BalancedStep
from mtobal.errors import UsageError
from mtobal.strategies import Composition, Spec, build

MOST_TASKS_IN_PAIRS = 10
"""With more tasks, single pairs would flood a logger."""


class MultiTaskBalancer(pl.Callback):
    """Balance the losses of a LightningModule.

    ``training_step`` returns ``{"loss": total, "losses": {task: scalar tensor}}``, and the output of the shared
    encoder under ``"representation"`` for a strategy that reads it. While fitting, the callback replaces ``loss``
    by the balanced one and leaves everything else to Lightning. The strategy's state is part of the Lightning
    checkpoint, under this callback; the module's own ``state_dict`` is untouched.

    With ``accumulate_grad_batches``, an aggregation sees the gradients of all batches of an optimizer's step
    together; a loss weighting weighs each batch by its own losses, and learns from the mean losses of all. So does
    a strategy that takes gradients at other points, for which the training step of each batch is repeated. On
    several devices, losses and per-task gradients are averaged over the ranks before a strategy sees them.

    Parameters
    ----------
    strategy : str, mapping or Strategy
        As in `mtobal.strategies.build`, for example ``"uw+pcgrad"``.
    shared : str or list of str, optional
        Dotted names of modules or parameters of the LightningModule that hold the shared parameters. By default
        those that at least two losses reach.
    gradients : str
        How per-task gradients are taken, as in `mtobal.Balancer`.
    nonfinite : {"skip", "drop_task", "raise"}
        What happens when a loss or a task's gradient is not finite, as in `mtobal.Balancer`.
    patience : int
        After so many such steps in a row, training stops in any case.
    validation : iterable of batches, optional
        Such as a DataLoader, for strategies that look ahead: each step takes the next of its batches, through the
        same ``training_step``, and starts over at its end. Without it, the training batch serves as one. A
        resumed run begins it anew.
    validation_loss : str
        Under which names the module logs the validation loss of each task, for strategies that revise their
        weights by validations.
    validation_metric : str, optional
        The same for the main metric of each task, for strategies that read metrics.
    higher_is_better : bool or mapping from task to bool
        Of these metrics.
    log : bool
        Whether ``mtl/weight/<task>``, ``mtl/loss/<task>``, ``mtl/grad_norm/<task>``, ``mtl/cosine/<task>/<task>``
        and ``mtl/conflict_rate`` go to the logger, every ``log_every_n_steps``, as far as the strategy knows them.
        Cosines of single pairs are logged for up to ten tasks.
    prog_bar : bool
        Whether weights and losses go to the progress bar too.

    Attributes
    ----------
    balancer : mtobal.Balancer or None
        The balancer at work; None before the first fit.

    Examples
    --------
    >>> import lightning.pytorch as pl
    >>> from mtobal.callbacks import MultiTaskBalancer
    >>> trainer = pl.Trainer(callbacks=[MultiTaskBalancer("uw+pcgrad")], logger=False, barebones=True)
    """

    def __init__(
        self,
        strategy: Spec,
        *,
        shared: str | Sequence[str] | None = None,
        gradients: str = "auto",
        nonfinite: Policy = "skip",
        patience: int = 10,
        validation: Iterable[Any] | None = None,
        validation_loss: str = "val/loss/{task}",
        validation_metric: str | None = None,
        higher_is_better: bool | Mapping[str, bool] = True,
        log: bool = True,
        prog_bar: bool = False,
    ) -> None:
        self.strategy: Composition = build(strategy)
        self.shared = shared
        self.gradients = gradients
        self.nonfinite: Policy = nonfinite
        self.patience = patience
        self.validation = validation
        self.validation_loss = validation_loss
        self.validation_metric = validation_metric
        self.higher_is_better = higher_is_better
        self.prog_bar = prog_bar
        self._logs = log  # Lightning gives callbacks a method named log
        # Wrong options are refused here, and not when the training begins.
        Balancer(self.strategy, gradients=gradients, nonfinite=nonfinite, patience=patience)
        self.balancer: Balancer | None = None
        self._saved: Mapping[str, Any] | None = None
        self._step: BalancedStep | None = None
        self._global_step = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if not pl_module.automatic_optimization:
            raise UsageError(
                "MultiTaskBalancer works with automatic optimization. In manual optimization make a "
                "mtobal.Balancer yourself and call self.manual_backward(balancer(losses))."
            )
        self._check_strategy(trainer)
        if self.balancer is None or self.balancer.model is not pl_module:
            self.balancer = Balancer(
                self.strategy,
                pl_module,
                shared=self.shared,
                gradients=self.gradients,
                nonfinite=self.nonfinite,
                patience=self.patience,
            )
            if self._saved is not None:
                self.balancer.load_state_dict(self._saved)
                self._saved = None
        self._step = BalancedStep(trainer, pl_module, self.balancer, self.validation)
        pl_module.training_step = self._step  # type: ignore[method-assign]

    def _check_strategy(self, trainer: pl.Trainer) -> None:
        """Refuse what splits parameters over devices: per-task gradients of the whole are nowhere to be had."""
        needs = (self.strategy.aggregation, self.strategy.perturbation)
        weighs = needs == (None, None) and not self.strategy.looks_ahead
        if weighs or isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
            return
        raise UsageError(
            f"{self.strategy.spec!r} needs per-task gradients of whole parameters, which "
            f"a {type(trainer.strategy).__name__} does not keep: train with strategy='ddp', or choose a strategy "
            "that weighs losses, such as 'uw'."
        )

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._give_back()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        # Lightning skips teardown after an exception.
        self._give_back()

    def _give_back(self) -> None:
        if self._step is not None:
            self._step.give_back()
            self._step = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._global_step = trainer.global_step  # not zero in a resumed run

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.balancer is None or not self.balancer.skipped:
            return
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            return
        # A gradient scaler refuses an optimizer without any gradient. The hook below takes this one away again.
        for optimizer in trainer.optimizers:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            if all(parameter.grad is None for parameter in parameters):
                parameters[0].grad = torch.zeros_like(parameters[0])

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if self.balancer is None or not self.balancer.skipped:
            return
        # The reducer of several ranks has written zeros, by which momentum and decay would still move parameters.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        stepped, self._global_step = trainer.global_step != self._global_step, trainer.global_step
        if stepped and self._step is not None and self.strategy.looks_again:
            self._step.look_again()
        if self._logs and self.balancer is not None and trainer._logger_connector.should_update_logs:
            self._log(pl_module, self.balancer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        balancer = self.balancer
        if balancer is None or balancer.tasks is None or trainer.sanity_checking or not self.strategy.revision:
            return
        losses = self._logged(trainer, balancer.tasks, self.validation_loss)
        if self.validation_metric is None:
            balancer.revise(losses)
            return
        metrics = self._logged(trainer, balancer.tasks, self.validation_metric)
        upward = self.higher_is_better
        balancer.revise(losses, metrics, dict.fromkeys(metrics, upward) if isinstance(upward, bool) else upward)

    def _logged(self, trainer: pl.Trainer, tasks: Sequence[str], pattern: str) -> dict[str, float]:
        """Return what the module has logged of each task under a pattern of names."""
        names = {task: pattern.format(task=task) for task in tasks}
        found = {
            task: trainer.callback_metrics[name]
            for task, name in names.items()
            if name in trainer.callback_metrics
        }
        if not found:
            raise UsageError(
                f"{self.strategy.spec!r} revises its weights by validations, but validation_step has logged none "
                f"of {', '.join(names.values())}: log them, or say under which names with validation_loss= and "
                "validation_metric=."
            )
        return {task: float(value) for task, value in found.items()}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.balancer is not None:
            self.balancer.end_epoch()

    def _log(self, pl_module: pl.LightningModule, balancer: Balancer) -> None:
        values = {f"mtl/weight/{task}": weight for task, weight in balancer.weights.items()}
        values |= {f"mtl/loss/{task}": loss for task, loss in balancer.losses.items()}
        pl_module.log_dict(values, batch_size=1, prog_bar=self.prog_bar)
        known = {f"mtl/grad_norm/{task}": norm for task, norm in balancer.gradient_norms.items()}
        if len(balancer.gradient_norms) <= MOST_TASKS_IN_PAIRS:
            known |= {f"mtl/cosine/{a}/{b}": cosine for (a, b), cosine in balancer.cosines.items()}
        if balancer.conflict_rate is not None:
            known["mtl/conflict_rate"] = balancer.conflict_rate
        if balancer.failed_solves:
            known["mtl/failed_solves"] = balancer.failed_solves
        pl_module.log_dict(known, batch_size=1)

    def state_dict(self) -> dict[str, Any]:
        if self.balancer is not None:
            return self.balancer.state_dict()
        return {} if self._saved is None else dict(self._saved)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not state_dict:
            return
        if self.balancer is not None:
            self.balancer.load_state_dict(state_dict)
        else:
            self._saved = state_dict
