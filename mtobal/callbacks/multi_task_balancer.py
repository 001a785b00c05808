"""The Lightning face of the balancer: one callback."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch

from mtobal.balancer import Balancer
from mtobal.errors import UsageError
from mtobal.strategies import Composition, Spec, build


class MultiTaskBalancer(pl.Callback):
    """Balance the losses of a LightningModule.

    ``training_step`` returns ``{"loss": total, "losses": {task: scalar tensor}}``. While fitting, the callback
    replaces ``loss`` by the balanced one and leaves everything else to Lightning. The strategy's state is part
    of the Lightning checkpoint, under this callback; the module's own ``state_dict`` is untouched.

    Parameters
    ----------
    strategy : str, mapping or Strategy
        As in `mtobal.strategies.build`, for example ``"uw+pcgrad"``.
    shared : str or list of str, optional
        Dotted names of modules or parameters of the LightningModule that hold the shared parameters. By default
        those that at least two losses reach.
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

    def __init__(self, strategy: Spec, *, shared: str | Sequence[str] | None = None, log: bool = True) -> None:
        self.strategy: Composition = build(strategy)
        self.shared = shared
        self._logs = log  # Lightning gives callbacks a method named log
        self.balancer: Balancer | None = None
        self._saved: Mapping[str, Any] | None = None

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
            self.balancer = Balancer(self.strategy, pl_module, shared=self.shared)
            if self._saved is not None:
                self.balancer.load_state_dict(self._saved)
                self._saved = None
        step = _balanced_step(pl_module.training_step, self.balancer)
        pl_module.training_step = step  # type: ignore[method-assign]

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        _restore(pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        # Lightning skips teardown after an exception.
        _restore(pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._logs or self.balancer is None or not trainer._logger_connector.should_update_logs:
            return
        values = {f"mtl/weight/{task}": weight for task, weight in self.balancer.weights.items()}
        values |= {f"mtl/loss/{task}": loss for task, loss in self.balancer.losses.items()}
        pl_module.log_dict(values, batch_size=1)

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


def _balanced_step(training_step: Callable[..., Any], balancer: Balancer) -> Callable[..., Any]:
    """Wrap a training step so that its loss is the balanced one."""

    def step(*args: Any, **kwargs: Any) -> Any:
        output = training_step(*args, **kwargs)
        if output is None:  # Lightning's way to skip a batch
            return None
        if not isinstance(output, Mapping) or "loss" not in output or "losses" not in output:
            raise UsageError(
                'training_step must return {"loss": total, "losses": {task: scalar tensor}} for '
                f"MultiTaskBalancer, not {_kind(output)}."
            )
        losses = output["losses"]
        balanced = balancer(losses)
        # Lightning keeps the other entries until the batch ends, and with them their graphs.
        detached = {task: None if loss is None else loss.detach() for task, loss in losses.items()}
        return {**output, "loss": balanced, "losses": detached}

    # Lightning reads the signature to decide whether to pass batch_idx, and unwraps one level only.
    step.__wrapped__ = inspect.unwrap(training_step)  # type: ignore[attr-defined]
    step.original = training_step  # type: ignore[attr-defined]
    return step


def _restore(pl_module: pl.LightningModule) -> None:
    """Give the module its own training step back."""
    step = vars(pl_module).get("training_step")
    original = getattr(step, "original", None)
    if original is None:
        return
    del pl_module.training_step
    if pl_module.training_step != original:  # the user's own instance attribute
        pl_module.training_step = original  # type: ignore[method-assign]


def _kind(value: object) -> str:
    if isinstance(value, Mapping):
        return f"a mapping with {', '.join(map(repr, value))}"
    if isinstance(value, torch.Tensor):
        return "a tensor"
    return f"a {type(value).__name__}"
