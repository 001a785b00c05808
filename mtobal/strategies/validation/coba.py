"""Convergence balancing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mtobal.errors import UsageError
from mtobal.strategies.base import Revision, Validation
from mtobal.strategies.card import Card
from mtobal.strategies.loss.positive import FLOOR
from mtobal.strategies.registry import register


def slopes(series: Tensor) -> Tensor:
    """Fit a straight line to each column, and return its slope per row.

    Parameters
    ----------
    series : Tensor of shape (N, K)
        NaN where a value is missing.

    Returns
    -------
    Tensor of shape (K,)
        Zero for a column with fewer than two values.

    Examples
    --------
    >>> import torch
    >>> slopes(torch.tensor([[1.0, 5.0], [0.5, torch.nan], [0.0, 3.0]]))
    tensor([-0.5000, -1.0000])
    """
    known = ~series.isnan()
    places = torch.arange(len(series), dtype=series.dtype)[:, None].expand_as(series)
    places = (places - (places * known).sum(0) / known.sum(0).clamp(min=1)) * known
    spread = places.square().sum(0)
    return (places * series.nan_to_num()).sum(0) / spread.where(spread > 0, 1.0)


@dataclass(frozen=True)
class Convergence:
    """How the tasks converge, as `coba_weights` sees it.

    Attributes
    ----------
    relative : Tensor of shape (K,)
        Share of each task by its slope beside those of the others: the slower, the more.
    absolute : Tensor of shape (K,)
        Share of each task by its slope beside its own earlier ones: the closer to diverging, the less.
    divergence : float
        Weight of the former; near one while all tasks converge, near zero when one diverges.
    weights : Tensor of shape (K,)
        The weights that follow, with sum one.
    """

    relative: Tensor
    absolute: Tensor
    divergence: float
    weights: Tensor


def coba_weights(
    recent: Tensor, steepest: Tensor, temperature: float = 5.0, *, clamp: bool = False
) -> Convergence:
    r"""Weigh tasks by the slopes of their validation losses.

    With the slopes a of K tasks in the last n validations, and the slopes m of the largest loss ratio in all T:

    - relative ``softmax_k( K a_k / sum_j |a_j| )``;
    - absolute ``softmax_k( -n a_k / sum_s |a_k(s)| )``;
    - divergence ``T softmax_s( -tau T m(s) / sum_r |m(r)| )`` at the last s;
    - weights ``softmax_k( K (d relative + (1 - d) absolute) )``, and where one would fall below ``1 / 10K``, nine
      tenths of them plus ``1 / 10K``.

    A sum of zero leaves equal shares.

    Parameters
    ----------
    recent : Tensor of shape (n, K)
        Slopes of the tasks, the last row those of now.
    steepest : Tensor of shape (T,)
        Slopes of the largest ratio.
    temperature : float
        tau: how fast divergence is noticed.
    clamp : bool
        Whether the divergence factor stays at or below one. It exceeds one when the largest ratio falls ever
        faster, and then the absolute share counts negatively.

    Returns
    -------
    Convergence

    References
    ----------
    CoBa: Convergence Balancer for Multitask Finetuning of Large Language Models, EMNLP 2024, arXiv:2410.06741.

    Examples
    --------
    >>> import torch
    >>> found = coba_weights(torch.tensor([[-0.2, -0.1]]), torch.tensor([-0.1]))
    >>> found.weights
    tensor([0.3446, 0.6554])
    """
    now = recent[-1]
    tasks, rows, steps = len(now), len(recent), len(steepest)
    relative = (tasks * _over(now, now.abs().sum())).softmax(0)
    absolute = (-rows * _over(now, recent.abs().sum(0))).softmax(0)
    falls = -temperature * steps * _over(steepest, steepest.abs().sum())
    divergence = steps * float(falls.softmax(0)[-1])
    if clamp:
        divergence = min(divergence, 1.0)
    weights = (tasks * (divergence * relative + (1 - divergence) * absolute)).softmax(0)
    least = 1 / (10 * tasks)
    if (weights < least).any():
        weights = 0.9 * weights + least
    return Convergence(relative, absolute, divergence, weights)


@register("coba")
class CoBa(Revision):
    """Give more weight to tasks whose validation loss falls slowly, and less to those whose loss begins to rise.

    Parameters
    ----------
    warm_up : int
        Validations with equal weights at first; the one before training counts.
    window : int
        Validations over which a slope is taken; at least two, and best two to five times `warm_up`.
    temperature : float
        How fast the divergence of a task is noticed.
    clamp : bool
        Whether the divergence factor stays at or below one, as in `coba_weights`.
    """

    card = Card(
        summary="Gives more weight to tasks whose validation loss falls slowly, and less to those whose loss "
        "begins to rise.",
        when="Fine-tuning on many tasks that would overfit at different times. One validation batch after every "
        "step is what it was made for; `join_losses` joins the losses of a batch of mixed tasks. The paper claims "
        "up to 13 % relative improvement over the second best method, and all tasks converging alike.",
        paper="CoBa: Convergence Balancer for Multitask Finetuning of Large Language Models, EMNLP 2024, "
        "arXiv:2410.06741; in MFTCoder, KDD 2024, arXiv:2311.02303.",
        defaults_source="The official code, with its factor beyond one; slopes are per validation.",
        state="first losses, the loss ratios of the window, the slopes of the window and of the largest ratio "
        "since the start, and the weights",
        scale="mean",
        heads="weighted",
    )

    first: Tensor | None
    ratios: Tensor | None
    history: Tensor | None
    steepest: Tensor | None
    validations: Tensor

    def __init__(
        self, warm_up: int = 100, window: int = 200, temperature: float = 5.0, clamp: bool = False
    ) -> None:
        super().__init__()
        if warm_up < 1 or window < 2 or temperature <= 0:
            raise UsageError(
                "coba needs warm_up of at least one, a window of at least two and a positive temperature, not "
                f"{warm_up}, {window} and {temperature}."
            )
        self.warm_up = warm_up
        self.window = window
        self.temperature = temperature
        self.clamp = clamp
        for name in ("first", "ratios", "history", "steepest"):
            self.register_buffer(name, None)
        self.register_buffer("validations", torch.zeros((), dtype=torch.int64))

    def initial(self, tasks: tuple[str, ...]) -> Tensor:
        return torch.full((len(tasks),), 1 / len(tasks), dtype=torch.float64)

    def learn(self, validation: Validation) -> Tensor:
        losses = validation.losses
        if (losses < 0).any():
            raise UsageError(f"coba needs validation losses that are not negative, but got {losses.tolist()}.")
        self.first = losses if self.first is None else self.first.where(~self.first.isnan(), losses)
        ratios = (losses / self.first.clamp(min=FLOOR))[None]
        self.ratios = ratios if self.ratios is None else torch.cat([self.ratios, ratios])[-self.window :]
        self.validations += 1
        if self.validations < self.warm_up:
            return self.initial(validation.tasks)
        now = slopes(self.ratios)[None]
        largest = self.ratios.nan_to_num(nan=-torch.inf).amax(1, keepdim=True)
        steepest = slopes(largest.where(largest > -torch.inf, torch.nan))
        # The slopes of the window, once the first ones after the warm-up have left it.
        kept = max(self.window - self.warm_up + 1, 1)
        self.history = now if self.history is None else torch.cat([self.history, now])[-kept:]
        self.steepest = steepest if self.steepest is None else torch.cat([self.steepest, steepest])
        return coba_weights(self.history, self.steepest, self.temperature, clamp=self.clamp).weights


def _over(values: Tensor, total: Tensor) -> Tensor:
    """Divide, with zero for nothing in nothing."""
    return values / total.where(total > 0, 1.0)
