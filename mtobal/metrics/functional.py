"""Scores that sum up many metrics of a method in one number, as functions of plain numbers.

Metrics are mappings by metric name, or one-dimensional arrays in one common order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mtobal.errors import UsageError
from mtobal.solvers.hypervolume import hypervolume as _hypervolume

Values: TypeAlias = Mapping[str, float] | Sequence[float] | NDArray[Any]
Flags: TypeAlias = Mapping[str, bool] | Sequence[bool] | NDArray[np.bool_]
Labels: TypeAlias = Mapping[str, str] | Sequence[str]


def delta_m(metrics: Values, baseline: Values, higher_is_better: Flags) -> float:
    r"""Mean relative change of the metrics against the baseline, in percent; **lower is better**.

    .. math:: \Delta_m = \frac{100}{K} \sum_{k=1}^{K} (-1)^{\delta_k} \frac{M_k - B_k}{|B_k|}

    with :math:`\delta_k = 1` where higher is better and 0 elsewhere. Every metric counts the same, so a task with
    many metrics counts more. Below zero, the method is better than the baseline. The absolute value leaves the
    published formula as it is where baselines are positive, and keeps the sign right where one is not.

    Parameters
    ----------
    metrics, baseline
        The metrics of the method and those of single-task training.
    higher_is_better
        For each metric, whether more is better.

    Returns
    -------
    float
        Percent; NaN if a metric or its baseline is NaN, because leaving it out would flatter the method.

    Raises
    ------
    UsageError
        If a baseline is zero (a relative change is then undefined) or the arguments do not match.

    References
    ----------
    Maninis, Radosavovic and Kokkinos, "Attentive Single-Tasking of Multiple Tasks", CVPR 2019, with the sign
    turned; in this form by Navon et al., "Multi-Task Learning as a Bargaining Game", ICML 2022, and Liu et al.,
    "FAMO: Fast Adaptive Multitask Optimization", NeurIPS 2023.

    Examples
    --------
    >>> delta_m({"acc": 0.9, "error": 3.0}, {"acc": 1.0, "error": 2.0}, {"acc": True, "error": False})
    30.0
    """
    names = _names(metrics, baseline=baseline, higher_is_better=higher_is_better)
    return -100.0 * float(np.mean(_relative_gains(metrics, baseline, higher_is_better, names)))


def delta_p(metrics: Values, baseline: Values, higher_is_better: Flags, tasks: Labels) -> float:
    r"""Mean over tasks of the relative gain over the baseline, in percent; **higher is better**.

    .. math:: \Delta_p = \frac{100}{T} \sum_{t=1}^{T} \frac{1}{K_t} \sum_{k \in t} \sigma_k \frac{M_k - B_k}{|B_k|}

    with :math:`\sigma_k = 1` where higher is better and -1 elsewhere. Every task counts the same, whatever its
    number of metrics. Above zero, the method is better than the baseline. Only when all tasks have the same number
    of metrics is this ``-delta_m``; about equal weighting on NYUv2 the two give opposite verdicts.

    Parameters
    ----------
    metrics, baseline, higher_is_better
        As in `delta_m`.
    tasks
        For each metric, the task it belongs to.

    Returns
    -------
    float
        Percent; NaN if a metric or its baseline is NaN.

    Raises
    ------
    UsageError
        If a baseline is zero or the arguments do not match.

    References
    ----------
    Lin and Zhang, "LibMTL: A Python Library for Multi-Task Learning", JMLR 2023; Lin et al., "Dual-Balancing for
    Multi-Task Learning", 2023.

    Examples
    --------
    >>> delta_p([0.9, 3.0, 2.0], [1.0, 2.0, 2.0], [True, False, False], ["seg", "depth", "depth"])
    -17.5
    """
    names = _names(metrics, baseline=baseline, higher_is_better=higher_is_better, tasks=tasks)
    gains = _relative_gains(metrics, baseline, higher_is_better, names)
    labels = _ordered(tasks, names, "tasks")
    by_task = [float(np.mean(gains[labels == task])) for task in dict.fromkeys(labels.tolist())]
    return 100.0 * float(np.mean(by_task))


def mean_rank(methods: Mapping[str, Values], higher_is_better: Flags) -> dict[str, float]:
    """Rank of each method among those given, averaged over the metrics; 1 is best, **lower is better**.

    Methods that are equal on a metric share the mean of the ranks they take up. NaN ranks behind every number: a
    method that diverged is not first by default. The rank depends on who else is compared, so ranks from different
    tables do not compare; leave the single-task baseline out.

    Parameters
    ----------
    methods
        The metrics of each method, by its name.
    higher_is_better
        For each metric, whether more is better.

    Raises
    ------
    UsageError
        With fewer than two methods, or if the arguments do not match.

    References
    ----------
    Navon et al., "Multi-Task Learning as a Bargaining Game", ICML 2022 (column MR).

    Examples
    --------
    >>> mean_rank({"ew": [0.8, 0.7], "uw": [0.9, 0.7]}, [True, True])
    {'ew': 1.75, 'uw': 1.25}
    """
    if len(methods) < 2:
        raise UsageError(f"mean_rank: expected at least two methods, got {list(methods)}; a rank needs company.")
    first = next(iter(methods.values()))
    others = {f"metrics of {name!r}": values for name, values in methods.items()}
    names = _names(first, higher_is_better=higher_is_better, **others)
    upward = np.where(_ordered(higher_is_better, names, "higher_is_better").astype(bool), 1.0, -1.0)
    scores = upward * np.stack([_numbers(values, names, "metrics") for values in methods.values()])
    scores = np.where(np.isnan(scores), -np.inf, scores)
    better = (scores[None] > scores[:, None]).sum(axis=1)
    equal = (scores[None] == scores[:, None]).sum(axis=1)  # with the method itself
    ranks = (better + (equal + 1) / 2).mean(axis=1)
    return dict(zip(methods, ranks.tolist(), strict=True))


def hypervolume(points: Sequence[Values], reference: Values, higher_is_better: Flags) -> float:
    """Volume of the boxes from a reference to the points that improve on it, together; **higher is better**.

    A metric that is worse than the reference counts as equal to it, so that such a point adds nothing. The volume
    depends on the scales of the metrics and on the reference; compare fronts under the same ones.

    Parameters
    ----------
    points
        The metrics of each point.
    reference
        The metrics from which volumes are measured.
    higher_is_better
        For each metric, whether more is better.

    Returns
    -------
    float
        Zero without points.

    Raises
    ------
    UsageError
        If a metric is NaN or infinite, or the arguments do not match.

    References
    ----------
    Zitzler and Thiele, "Multiobjective Evolutionary Algorithms: A Comparative Case Study and the Strength Pareto
    Approach", IEEE Transactions on Evolutionary Computation, 1999.

    Examples
    --------
    >>> hypervolume([[3.0, 1.0], [2.0, 0.0]], [1.0, 2.0], [True, False])
    3.0
    """
    others = {f"point {index}": point for index, point in enumerate(points)}
    names = _names(reference, higher_is_better=higher_is_better, **others)
    upward = np.where(_ordered(higher_is_better, names, "higher_is_better").astype(bool), 1.0, -1.0)
    table = np.array([_numbers(each, names, "metrics") for each in (reference, *points)])
    if not np.isfinite(table).all():
        raise UsageError("hypervolume: expected finite metrics, got NaN or infinity; leave diverged runs out.")
    if not points:
        return 0.0
    return _hypervolume(upward * table[1:], upward * table[0])


def _relative_gains(
    metrics: Values, baseline: Values, higher_is_better: Flags, names: list[str] | None
) -> NDArray[np.float64]:
    """Relative gain of each metric over its baseline; above zero is better."""
    values, base = _numbers(metrics, names, "metrics"), _numbers(baseline, names, "baseline")
    upward = np.where(_ordered(higher_is_better, names, "higher_is_better").astype(bool), 1.0, -1.0)
    if (base == 0.0).any():
        index = int(np.flatnonzero(base == 0.0)[0])
        which = repr(names[index]) if names is not None else f"number {index}"
        raise UsageError(
            f"the baseline of metric {which} is 0, and a change relative to 0 is undefined; leave that metric out."
        )
    return upward * (values - base) / np.abs(base)


def _names(metrics: Any, **others: Any) -> list[str] | None:
    """Check that all arguments speak of the same metrics; their names if they are mappings, None if arrays."""
    if not len(metrics):
        raise UsageError("metrics: expected at least one metric, got none.")
    for argument, other in others.items():
        if isinstance(other, Mapping) != isinstance(metrics, Mapping):
            raise UsageError(
                f"{argument}: expected the form of the metrics (all mappings, or all arrays), got another."
            )
        if isinstance(metrics, Mapping):
            if missing := sorted(metrics.keys() ^ other.keys()):
                raise UsageError(f"{argument}: expected the same names as the metrics; they differ in {missing}.")
        elif len(other) != len(metrics):
            raise UsageError(f"{argument}: expected {len(metrics)} entries as in the metrics, got {len(other)}.")
    return list(metrics) if isinstance(metrics, Mapping) else None


def _ordered(values: Any, names: list[str] | None, argument: str) -> NDArray[Any]:
    array = np.asarray(values if names is None else [values[name] for name in names])
    if array.ndim != 1:
        raise UsageError(f"{argument}: expected one value a metric, got an array of shape {array.shape}.")
    return array


def _numbers(values: Values, names: list[str] | None, argument: str) -> NDArray[np.float64]:
    return _ordered(values, names, argument).astype(np.float64)
