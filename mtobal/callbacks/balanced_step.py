"""The training step of a LightningModule, with the balanced loss in the place of its own."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from mtobal.balancer import Balancer, Losses
from mtobal.errors import UsageError
from mtobal.gradients import RNGState, replayed, rng_state


class BalancedStep:
    """Stands in for `training_step` while a module is fitted, and repeats it for strategies that ask for that.

    Parameters
    ----------
    trainer, pl_module : Trainer and LightningModule
    balancer : Balancer
    validation : iterable of batches or None
        For strategies that look ahead.

    Attributes
    ----------
    original : callable
        The module's own training step.
    looks : list of (callable, RNGState)
        How to repeat the batches of the optimizer step at hand, if the strategy looks again.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        balancer: Balancer,
        validation: Iterable[Any] | None,
    ) -> None:
        self.original: Callable[..., Any] = pl_module.training_step
        self.looks: list[tuple[Callable[[], Losses], RNGState]] = []
        self._trainer = trainer
        self._module = pl_module
        self._balancer = balancer
        self._batches = None if validation is None else _cycled(validation, trainer, pl_module)
        self._begins = True
        self._compared = False
        # Lightning reads the signature to decide whether to pass batch_idx, and unwraps one level only.
        self.__wrapped__ = inspect.unwrap(self.original)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        balancer, strategy = self._balancer, self._balancer.strategy
        if self._begins:
            self.looks = []
        accumulates = self._trainer.fit_loop._should_accumulate()
        self._begins = not accumulates
        if strategy.looks_ahead:
            self._look_ahead(*args, **kwargs)
        rng = rng_state() if strategy.repeats else None
        output = self.original(*args, **kwargs)
        if output is None:  # Lightning's way to skip a batch
            rest = None if accumulates else balancer.flush()
            return rest if rest is None else {"loss": rest}
        output = dict(check_output(output))
        losses = output["losses"]
        if not self._compared:
            _compare(output["loss"], losses)
            self._compared = True
        again = None if rng is None else (partial(self._again, *args, **kwargs), rng)
        part = partial(self._part, args, kwargs) if balancer.gradients.fraction < 1 else None
        representation = output.pop("representation", None)
        with balancer.accumulating() if accumulates else nullcontext():
            output["loss"] = balancer(losses, representation=representation, again=again, part=part)
        # Lightning keeps the other entries until the batch ends, and with them their graphs.
        output["losses"] = {task: None if loss is None else loss.detach() for task, loss in losses.items()}
        if rng is not None and strategy.looks_again and not balancer.skipped:
            self.looks.append((lambda: check_output(self.original(*args, **kwargs))["losses"], rng))
        return output

    def look_again(self) -> None:
        """Repeat the training steps of an optimizer step, for strategies that compare the losses."""
        looks, self.looks = self.looks, []
        if not self._balancer.skipped:
            with self._repeating():
                self._balancer.look_again(looks)

    def give_back(self) -> None:
        """Give the module its own training step back."""
        if vars(self._module).get("training_step") is not self:
            return
        del self._module.training_step
        if self._module.training_step != self.original:  # the user's own instance attribute
            self._module.training_step = self.original

    def _again(self, *args: Any, **kwargs: Any) -> Losses:
        """Repeat a training step, for a strategy that takes gradients at other points."""
        with self._repeating():
            losses: Losses = check_output(self.original(*args, **kwargs))["losses"]
        return losses

    def _part(self, args: Sequence[Any], kwargs: Mapping[str, Any], share: float) -> Losses:
        """Run a training step on a share of its batch."""
        cut = _cut(args[0], share)
        with self._repeating():
            output = self.original(cut, *args[1:], **kwargs)
        losses: Losses = {} if output is None else check_output(output)["losses"]
        return losses

    def _look_ahead(self, batch: Any, *args: Any, **kwargs: Any) -> None:
        """Let the strategies that look ahead try out the step that is to come."""

        def losses(data: Any) -> Losses:
            with muted(self._module):
                output = self.original(data, *args, **kwargs)
            if output is None and data is batch:
                raise _LeftOut
            found: Losses = check_output(output)["losses"]
            return found

        validation = None
        if self._batches is not None:
            with replayed(None, rng_state()):  # a loader draws when it begins anew
                validation = partial(losses, next(self._batches))
        with suppress(_LeftOut):  # the training step will say so again
            self._balancer.look_ahead(partial(losses, batch), self._trainer.optimizers[0], validation=validation)

    @contextmanager
    def _repeating(self) -> Iterator[None]:
        """Run a training step in its precision, and without a trace in the log."""
        with self._trainer.precision_plugin.train_step_context(), muted(self._module):
            yield


class _LeftOut(Exception):
    """The training step wants its batch to be skipped."""


def check_output(output: Any) -> Mapping[str, Any]:
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


@contextmanager
def muted(pl_module: pl.LightningModule) -> Iterator[None]:
    """Drop what the module logs, which it has logged before."""
    for method in ("log", "log_dict"):
        setattr(pl_module, method, lambda *args, **kwargs: None)
    try:
        yield
    finally:
        for method in ("log", "log_dict"):
            delattr(pl_module, method)


def _compare(total: Any, losses: Mapping[str, Any]) -> None:
    """Warn of a total that holds more than the sum of the losses: all else in it is not trained on."""
    values = [loss.detach() for loss in losses.values() if isinstance(loss, Tensor) and loss.numel() == 1]
    summed, whole = sum(map(float, values)), float(total.detach() if isinstance(total, Tensor) else total)
    if abs(whole - summed) > 1e-3 * sum(abs(float(value)) for value in values):
        rank_zero_warn(
            f"training_step returned a loss of {whole:.4g}, but its losses add up to {summed:.4g}. Only the "
            "losses are trained on, with the weights of the strategy: factors in the total have no effect, and a "
            "term that is in none of the losses belongs among them, as a task of its own."
        )


def _cut(batch: Any, share: float) -> Any:
    """Return the first samples of a batch, which may be any collection of tensors of one length."""
    lengths: set[int] = set()
    apply_to_collection(batch, Tensor, lambda tensor: lengths.update(tensor.shape[:1]))
    if len(lengths) != 1:
        raise UsageError(
            "gradients='fraction' takes the first samples of each tensor of a batch, and does not know what a "
            f"sample is where tensors have lengths of {', '.join(map(str, sorted(lengths))) or 'none'}."
        )
    count = math.ceil(share * lengths.pop())
    return apply_to_collection(batch, Tensor, lambda tensor: tensor[:count] if tensor.dim() else tensor)


def _cycled(batches: Iterable[Any], trainer: pl.Trainer, pl_module: pl.LightningModule) -> Iterator[Any]:
    """Go through the batches again and again, each brought to the device in the way of a training batch."""
    while True:
        empty = True
        for batch in batches:
            empty = False
            converted = trainer.precision_plugin.convert_input(batch)
            ready = pl_module._on_before_batch_transfer(converted, dataloader_idx=0)
            yield trainer.strategy.batch_to_device(ready, dataloader_idx=0)
        if empty:
            raise UsageError(
                "validation= has no batches, or no more: give something that can be gone through again, such as a "
                "DataLoader."
            )


def _kind(value: object) -> str:
    if isinstance(value, Mapping):
        return f"a mapping with {', '.join(map(repr, value))}"
    if isinstance(value, Tensor):
        return "a tensor"
    return f"a {type(value).__name__}"
