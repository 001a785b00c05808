"""The Lightning face of the balancer: one callback."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch

from mtobal.balancer import Balancer, Losses
from mtobal.errors import UsageError
from mtobal.gradients import rng_state
from mtobal.strategies import Composition, Spec, build


class MultiTaskBalancer(pl.Callback):
    """Balance the losses of a LightningModule.

    ``training_step`` returns ``{"loss": total, "losses": {task: scalar tensor}}``, and the output of the shared
    encoder under ``"representation"`` for a strategy that reads it. While fitting, the callback replaces ``loss``
    by the balanced one and leaves everything else to Lightning. The strategy's state is part of the Lightning
    checkpoint, under this callback; the module's own ``state_dict`` is untouched.

    Parameters
    ----------
    strategy : str, mapping or Strategy
        As in `mtobal.strategies.build`, for example ``"uw+pcgrad"``.
    shared : str or list of str, optional
        Dotted names of modules or parameters of the LightningModule that hold the shared parameters. By default
        those that at least two losses reach.
    gradients : str
        How per-task gradients are taken, as in `mtobal.Balancer`.
    log : bool
        Whether ``mtl/weight/<task>`` and ``mtl/loss/<task>`` go to the logger, every ``log_every_n_steps``.

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
        log: bool = True,
    ) -> None:
        self.strategy: Composition = build(strategy)
        self.shared = shared
        self.gradients = gradients
        self._logs = log  # Lightning gives callbacks a method named log
        self.balancer: Balancer | None = None
        self._saved: Mapping[str, Any] | None = None
        self._step: _BalancedStep | None = None
        self._global_step = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if not pl_module.automatic_optimization:
            raise UsageError(
                "MultiTaskBalancer works with automatic optimization. In manual optimization make a "
                "mtobal.Balancer yourself and call self.manual_backward(balancer(losses))."
            )
        if trainer.world_size > 1:
            raise UsageError(
                f"MultiTaskBalancer balances one process so far, and this trainer has {trainer.world_size}: "
                "use devices=1."
            )
        if self.balancer is None or self.balancer.model is not pl_module:
            self.balancer = Balancer(self.strategy, pl_module, shared=self.shared, gradients=self.gradients)
            if self._saved is not None:
                self.balancer.load_state_dict(self._saved)
                self._saved = None
        self._step = _BalancedStep(pl_module.training_step, self.balancer)
        pl_module.training_step = self._step  # type: ignore[method-assign]

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        _restore(pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        # Lightning skips teardown after an exception.
        _restore(pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._global_step = trainer.global_step  # not zero in a resumed run

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._look_again(trainer, pl_module)
        if not self._logs or self.balancer is None or not trainer._logger_connector.should_update_logs:
            return
        values = {f"mtl/weight/{task}": weight for task, weight in self.balancer.weights.items()}
        values |= {f"mtl/loss/{task}": loss for task, loss in self.balancer.losses.items()}
        pl_module.log_dict(values, batch_size=1)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.balancer is not None:
            self.balancer.end_epoch()

    def _look_again(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Repeat the training step after an optimizer step, for strategies that compare the losses."""
        stepped, self._global_step = trainer.global_step != self._global_step, trainer.global_step
        if not (stepped and self.balancer and self._step and self.balancer.strategy.looks_again):
            return
        with trainer.precision_plugin.train_step_context(), _muted(pl_module):
            self.balancer.look_again(self._step.repeat, self._step.rng)

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


class _BalancedStep:
    """A training step whose loss is the balanced one."""

    def __init__(self, training_step: Callable[..., Any], balancer: Balancer) -> None:
        self.original = training_step
        self.balancer = balancer
        # Lightning reads the signature to decide whether to pass batch_idx, and unwraps one level only.
        self.__wrapped__ = inspect.unwrap(training_step)
        self.rng = rng_state()
        self.repeat: Callable[[], Losses] = dict

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.balancer.strategy.looks_again:
            self.rng = rng_state()
            self.repeat = lambda: _losses(self.original(*args, **kwargs))["losses"]
        output = self.original(*args, **kwargs)
        if output is None:  # Lightning's way to skip a batch
            return None
        output = dict(_losses(output))
        losses = output["losses"]
        output["loss"] = self.balancer(losses, representation=output.pop("representation", None))
        # Lightning keeps the other entries until the batch ends, and with them their graphs.
        output["losses"] = {task: None if loss is None else loss.detach() for task, loss in losses.items()}
        return output


def _losses(output: Any) -> Mapping[str, Any]:
    """Check what a training step returned."""
    if not isinstance(output, Mapping) or "loss" not in output or "losses" not in output:
        raise UsageError(
            'training_step must return {"loss": total, "losses": {task: scalar tensor}} for '
            f"MultiTaskBalancer, not {_kind(output)}."
        )
    if not isinstance(output["losses"], Mapping):
        raise UsageError(
            f"training_step must return the losses as a mapping from task to scalar tensor, "
            f"not {_kind(output['losses'])}."
        )
    return output


def _restore(pl_module: pl.LightningModule) -> None:
    """Give the module its own training step back."""
    step = vars(pl_module).get("training_step")
    if not isinstance(step, _BalancedStep):
        return
    del pl_module.training_step
    if pl_module.training_step != step.original:  # the user's own instance attribute
        pl_module.training_step = step.original  # type: ignore[method-assign]


@contextmanager
def _muted(pl_module: pl.LightningModule) -> Iterator[None]:
    """Drop what the module logs, which it has logged before."""
    for method in ("log", "log_dict"):
        setattr(pl_module, method, lambda *args, **kwargs: None)
    try:
        yield
    finally:
        for method in ("log", "log_dict"):
            delattr(pl_module, method)


def _kind(value: object) -> str:
    if isinstance(value, Mapping):
        return f"a mapping with {', '.join(map(repr, value))}"
    if isinstance(value, torch.Tensor):
        return "a tensor"
    return f"a {type(value).__name__}"
