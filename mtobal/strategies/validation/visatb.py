"""Adaptive task balancing by inter-task contributions and intra-task difficulty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtobal.errors import UsageError
from mtobal.strategies.base import LossWeighting, Step
from mtobal.strategies.card import Card
from mtobal.strategies.per_task import per_task
from mtobal.strategies.registry import register


def contributions(scores: Tensor, mini: Tensor) -> Tensor:
    r"""Return how much the data of each task helps each other task, beside what its own data does for it.

    ``C_ij = (V_j(i) - V_j(mini)) / (V_j(j) - V_j(mini))``.

    Parameters
    ----------
    scores : Tensor of shape (N, N)
        ``V_j(i)`` in row i: the validation score of task j for a model that was trained on a large subset of the
        data of task i and mini subsets of all others. Lower may be better: the ratio is the same.
    mini : Tensor of shape (N,)
        The scores of a model that was trained on mini subsets of all tasks.

    Returns
    -------
    Tensor of shape (N, N)
        One on the diagonal; zero elsewhere in the column of a task whose own data changed nothing, because nothing
        can be told there.

    Examples
    --------
    >>> import torch
    >>> contributions(torch.tensor([[60.0, 0.25], [44.0, 0.4]]), torch.tensor([40.0, 0.2]))
    tensor([[1.0000, 0.2500],
            [0.2000, 1.0000]])
    """
    gains = scores - mini
    own = gains.diagonal()
    shares = torch.where(own != 0, gains / own.where(own != 0, 1.0), 0.0)
    return shares.fill_diagonal_(1.0)


def mean_contributions(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return what each task gives the others on average, and what it gets from them.

    Parameters
    ----------
    matrix : Tensor of shape (N, N)
        From `contributions`.

    Returns
    -------
    outward, inward : Tensor of shape (N,)
        Zero for a single task.
    """
    others = max(len(matrix) - 1, 1)
    diagonal = matrix.diagonal()
    return (matrix.sum(1) - diagonal) / others, (matrix.sum(0) - diagonal) / others


def difficulties(own: Tensor, mini: Tensor, higher_is_better: Tensor | bool = True) -> Tensor:
    """Return how much of its score a task lacks without its own data: ``1 - V_i(mini) / V_i(i)``.

    Parameters
    ----------
    own, mini : Tensor of shape (N,)
        Scores with a large and with a mini subset of the task's data; positive for a ratio with meaning.
    higher_is_better : Tensor of shape (N,) of bool, or bool
        Where it is not, the ratio is turned over.

    Returns
    -------
    Tensor of shape (N,)
        Zero where the better score is zero.
    """
    upward = torch.as_tensor(higher_is_better)
    worse, better = torch.where(upward, mini, own), torch.where(upward, own, mini)
    return torch.where(better != 0, 1 - worse / better.where(better != 0, 1.0), 0.0)


@dataclass(frozen=True)
class TaskWeights:
    """The three weightings of `visatb_weights` and their mean, each of shape (N,) with sum N.

    Attributes
    ----------
    outward : Tensor
        More for a task that helps others.
    inward : Tensor
        Less for a task that others help.
    difficulty : Tensor
        More for a task that needs its own data.
    final : Tensor
        The weighted mean of the three.
    """

    outward: Tensor
    inward: Tensor
    difficulty: Tensor
    final: Tensor


def visatb_weights(
    outward: Tensor,
    inward: Tensor,
    difficulty: Tensor,
    temperature: float = 0.5,
    mix: Sequence[float] = (0.25, 0.25, 0.5),
) -> TaskWeights:
    r"""Weigh tasks by what they contribute, what they receive and how difficult they are.

    ``N softmax(C_out / T)``, ``N softmax(-C_in / T)`` and ``N softmax(D / T)``, and their mean with the weights
    `mix`.

    Parameters
    ----------
    outward, inward, difficulty : Tensor of shape (N,)
        From `mean_contributions` and `difficulties`.
    temperature : float
        The larger, the more equal the weights. The authors advise the lowest with all weights in 0.5 to 2.
    mix : sequence of three floats
        With sum one.

    Returns
    -------
    TaskWeights

    References
    ----------
    VisATB (first as CoTBal), arXiv:2403.04343, equations 3 to 8.

    Examples
    --------
    >>> import torch
    >>> visatb_weights(torch.tensor([0.1, 0.3]), torch.tensor([0.3, 0.1]), torch.tensor([0.5, 0.2])).final
    tensor([1.0470, 0.9530])
    """
    size = len(outward)
    by_outward, by_inward, by_difficulty = (
        size * (scores / temperature).softmax(0) for scores in (outward, -inward, difficulty)
    )
    final = mix[0] * by_outward + mix[1] * by_inward + mix[2] * by_difficulty
    return TaskWeights(by_outward, by_inward, by_difficulty, final)


@register("visatb")
class VisATB(LossWeighting):
    """Weigh the tasks by a table of validation scores of small models.

    The N + 1 models are trained before: one on mini subsets of all tasks, and for each task one on a large subset
    of it and mini subsets of the others. `join_losses` is the form for single tokens or samples, which weighs each
    by the weight of its task.

    Parameters
    ----------
    scores : mapping from task to mapping from task to float
        For each task with a large subset, the scores of all tasks.
    mini : mapping from task to float
        The scores of the model trained on mini subsets.
    temperature : float
        As in `visatb_weights`; 1.0 for groups of many data sets.
    mix : sequence of three floats
        Shares of outward contribution, inward contribution and difficulty.
    lower_is_better : sequence of str
        Tasks whose score is an error.
    """

    card = Card(
        summary="Weighs tasks by what their data does for the other tasks, what theirs does for it, and how much "
        "it needs its own.",
        when="A long training that repays the N + 1 short ones before it, about 0.4 of its time in the paper; "
        "mini subsets of at least 1000 samples and 100 steps. The paper claims, for LLaVA-v1.5-7B in percent over "
        "single-task models, 11.29 rather than 8.75 (Academic), 4.52 rather than 3.51 (M3IT) and 15.31 rather "
        "than 8.91 (Chat) of equal weights.",
        paper="VisATB (first as CoTBal): visual instruction tuning with adaptive task balancing, WWW 2026, "
        "arXiv:2403.04343.",
        defaults_source="T = 0.5 and mix 0.25, 0.25, 0.5 as in the paper's Academic and Chat settings; scores "
        "must be given.",
        scale="sum",
        heads="weighted",
        example="visatb(scores={seg: {seg: 60, depth: 0.22, normal: 57}, depth: {seg: 44, depth: 0.4, normal: "
        "54}, normal: {seg: 48, depth: 0.25, normal: 70}}, mini={seg: 40, depth: 0.2, normal: 55})",
    )

    def __init__(
        self,
        scores: Mapping[str, Mapping[str, float]],
        mini: Mapping[str, float],
        temperature: float = 0.5,
        mix: Sequence[float] = (0.25, 0.25, 0.5),
        lower_is_better: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise UsageError(f"visatb: the temperature must be positive, not {temperature}.")
        if len(mix) != 3 or min(mix) < 0 or abs(sum(mix) - 1) > 1e-9:
            raise UsageError(f"visatb: mix must be three shares with sum one, not {list(mix)}.")
        tasks = list(mini)
        for name, row in {"scores": scores, **{f"scores of {task}": row for task, row in scores.items()}}.items():
            if row.keys() != mini.keys():
                raise UsageError(f"visatb: {name} must be of the tasks {tasks}, as mini is, not {list(row)}.")
        if unknown := set(lower_is_better) - set(tasks):
            raise UsageError(f"visatb: lower_is_better names {sorted(unknown)}, which are not among {tasks}.")
        table = torch.tensor([[scores[i][j] for j in tasks] for i in tasks], dtype=torch.float64)
        start = torch.tensor([mini[j] for j in tasks], dtype=torch.float64)
        if not (table.isfinite().all() and start.isfinite().all()):
            raise UsageError("visatb: every score must be finite.")
        upward = torch.tensor([task not in lower_is_better for task in tasks])
        self.measured = visatb_weights(
            *mean_contributions(contributions(table, start)),
            difficulties(table.diagonal(), start, upward),
            temperature,
            mix,
        )
        self.by_task: dict[str, float] = dict(zip(tasks, self.measured.final.tolist(), strict=True))

    def weigh(self, step: Step) -> Tensor:
        like = torch.ones(len(step.active), dtype=torch.float64) if step.losses is None else step.losses
        return per_task(self.by_task, 1.0, step, like, "visatb: scores")
