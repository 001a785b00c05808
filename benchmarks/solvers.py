"""How fast and how exact the strategies turn a Gramian into weights, and what they cost on a Jacobian.

    python benchmarks/solvers.py            # everything, some minutes
    python benchmarks/solvers.py --quick    # fewer sizes, problems and repeats

One process, one thread; the first part compares with TorchJD, and both libraries take turns on the same Gramians,
so that a busy machine slows both. It needs TorchJD with its optional solvers: pip install "torchjd[full]".
"""

# ruff: noqa: E402

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_variable] = "1"  # before numpy and torch are imported

import numpy as np
import torch
from torch import Tensor

import mtobal
from mtobal.solvers import dual_cone, min_norm
from mtobal.strategies import Step

Extended = np.longdouble


@dataclass(frozen=True)
class Problem:
    """A Gramian, and rows of length K that have it, for what reads rows."""

    kind: str
    gramian: Tensor
    factor: Tensor


def problems(num_tasks: int, count: int, dimensions: int | None = None) -> list[Problem]:
    """Rows in random directions, of which about half of all pairs conflict: of one length, and of wide norms.

    The gradients have twice as many dimensions as there are tasks, unless another number is given.
    """
    found = []
    for seed in range(count):
        for kind, spread in (("even", 0.0), ("wide", 1.5)):
            generator = np.random.default_rng([num_tasks, seed])
            rows = generator.normal(size=(num_tasks, dimensions or 2 * num_tasks))
            rows *= 10.0 ** generator.uniform(-spread, spread, size=(num_tasks, 1))
            factor = np.linalg.qr(rows.T, mode="r").T
            found.append(Problem(kind, torch.from_numpy(factor @ factor.T), torch.from_numpy(factor.copy())))
    return found


# ---------------------------------------------------------------------------- errors against the exact value


def refined_solution(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solve with residuals in extended precision."""
    exact, solution = matrix.astype(Extended), np.zeros(right.shape, dtype=Extended)
    for _ in range(8):
        residual = right.astype(Extended) - exact @ solution
        solution = solution + np.linalg.solve(matrix, residual.astype(np.float64))
    return solution


def power_of_two_scales(gramian: np.ndarray) -> np.ndarray:
    """Factors that bring the rows close to unit length without any rounding."""
    return 2.0 ** -np.round(np.log2(np.sqrt(gramian.diagonal())))


def exact_projection(gramian: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The projection on the dual cone, solved again in extended precision on a support that is checked."""
    scales = power_of_two_scales(gramian)
    scaled, start = gramian * scales * scales[:, None], start / scales
    support = np.flatnonzero(dual_cone(scaled, start) > start)
    added = np.zeros(len(start), dtype=Extended)
    added[support] = refined_solution(
        scaled[np.ix_(support, support)], -(scaled @ start.astype(Extended))[support]
    )
    weights = start + added
    assert added.min() >= 0
    assert (scaled @ weights).min() >= -1e-16 * np.abs(weights).max()
    return weights * scales


def exact_min_norm(gramian: np.ndarray) -> np.ndarray:
    """The min-norm point, solved again in extended precision on a support that is checked."""
    scales = power_of_two_scales(gramian)
    scaled = gramian * scales * scales[:, None]
    support = np.flatnonzero(min_norm(gramian) > 0)
    weights = np.zeros(len(gramian), dtype=Extended)
    weights[support] = refined_solution(scaled[np.ix_(support, support)], scales[support]) * scales[support]
    weights /= weights.sum()
    products = gramian @ weights
    assert weights.min() >= 0
    assert (products * scales).min() >= (weights @ products) * scales.max() * -1e-12
    assert ((products / (weights @ products))[weights == 0] >= 1 - 1e-12).all()
    return weights


def distance(gramian: np.ndarray, weights: np.ndarray, exact: np.ndarray) -> float:
    """The distance of two directions, relative to the exact one."""
    difference = weights.astype(Extended) - exact
    return float(np.sqrt(np.maximum(difference @ gramian @ difference, 0) / (exact @ gramian @ exact)))


def mgda_error(gramian: np.ndarray, weights: np.ndarray) -> float:
    return distance(gramian, weights, exact_min_norm(gramian))


def dualproj_error(gramian: np.ndarray, weights: np.ndarray) -> float:
    return distance(gramian, weights, exact_projection(gramian, np.full(len(gramian), 1.0 / len(gramian))))


def upgrad_error(gramian: np.ndarray, weights: np.ndarray) -> float:
    starts = np.eye(len(gramian)) / len(gramian)
    return distance(gramian, weights, sum(exact_projection(gramian, start) for start in starts))


def equilibrium_error(gramian: np.ndarray, weights: np.ndarray) -> float:
    """``w_k (G w)_k = 1``, for nash_mtl and for fairgrad with alpha = 1."""
    return float(np.abs(weights * (gramian @ weights) - 1).max())


def equal_projections_error(gramian: np.ndarray, weights: np.ndarray) -> float:
    """``u_k . d`` is the same for every task."""
    projections = gramian @ weights / np.sqrt(gramian.diagonal())
    return float(np.ptp(projections) / np.abs(projections).mean())


def aligned_mtl_error(gramian: np.ndarray, weights: np.ndarray) -> float:
    """``d . d`` is the smallest eigenvalue times ``p . p``, the preference being all ones or 1/K."""
    vector = np.linalg.eigh(gramian)[1][:, 0]
    for _ in range(8):
        vector = refined_solution(gramian, vector / np.abs(vector).max())
    size, length = len(gramian), weights @ gramian.astype(Extended) @ weights
    expected = (vector @ gramian @ vector) / (vector @ vector) * size
    return float(min(abs(length / expected - 1), abs(length * size**2 / expected - 1)))


def cagrad_regret(gramian: np.ndarray, weights: np.ndarray, c: float = 0.4) -> float:
    """What ``min_k g_k . d`` on the allowed sphere falls short of by the dual bound, relative to the bound."""
    size = len(gramian)
    mean = np.full(size, 1.0 / size)
    length = np.sqrt(mean @ gramian @ mean)
    moved = weights - mean
    radius = np.sqrt(max(moved @ gramian @ moved, 0.0))
    if radius > c * length:  # back on the sphere
        weights = mean + moved * (c * length / radius)
    value = (gramian @ weights).min()
    simplex = np.maximum(moved, 0.0)
    if not simplex.any():
        return float("inf")
    simplex /= simplex.sum()
    bound = simplex @ gramian @ mean + c * length * np.sqrt(simplex @ gramian @ simplex)
    return float((bound - value) / abs(bound))


# ---------------------------------------------------------------------------- the two libraries


@dataclass(frozen=True)
class Method:
    """A strategy here, what it is called there, and how far weights are from the exact value."""

    name: str
    spec: str
    weighting: Callable[[int], Callable[[Problem], Tensor]]
    error: Callable[[np.ndarray, np.ndarray], float] | None


def methods() -> list[Method]:
    """Every method that both have under the names of this project, if it is registered."""
    try:
        from torchjd import aggregation
        from torchjd.aggregation import _nash_mtl
    except ImportError:
        sys.exit('the comparison needs TorchJD with its solvers: pip install "torchjd[full]"')

    def of_gramian(
        build: Callable[[], Callable[[Tensor], Tensor]],
    ) -> Callable[[int], Callable[[Problem], Tensor]]:
        def prepare(num_tasks: int) -> Callable[[Problem], Tensor]:
            weighting = build()
            return lambda problem: weighting(problem.gramian)

        return prepare

    def nash(num_tasks: int) -> Callable[[Problem], Tensor]:
        weighting = _nash_mtl._NashMTLWeighting(num_tasks, max_norm=0.0, update_weights_every=1, optim_niter=20)
        return lambda problem: weighting(problem.factor)

    def config(num_tasks: int) -> Callable[[Problem], Tensor]:
        aggregator = aggregation.ConFIG()
        return lambda problem: aggregator(problem.factor)  # a direction: it has no weights

    every = [
        Method("pcgrad", "pcgrad", of_gramian(aggregation.PCGradWeighting), None),
        Method("gradvac", "gradvac", of_gramian(aggregation.GradVacWeighting), None),
        Method("mgda", "mgda", of_gramian(aggregation.MGDAWeighting), mgda_error),
        Method("dualproj", "dualproj", of_gramian(aggregation.DualProjWeighting), dualproj_error),
        Method("upgrad", "upgrad", of_gramian(aggregation.UPGradWeighting), upgrad_error),
        Method(
            "cagrad",
            "cagrad(c=0.4, rescale=0)",
            of_gramian(lambda: aggregation.CAGradWeighting(c=0.4)),
            cagrad_regret,
        ),
        Method("nash_mtl", "nash_mtl(max_norm=0)", nash, equilibrium_error),
        Method(
            "fairgrad",
            "fairgrad(max_norm=0)",
            of_gramian(lambda: aggregation.FairGradWeighting(alpha=1.0)),
            equilibrium_error,
        ),
        Method("imtl_g", "imtl_g", of_gramian(aggregation.IMTLGWeighting), equal_projections_error),
        Method("config", "config", config, equal_projections_error),
        Method("aligned_mtl", "aligned_mtl", of_gramian(aggregation.AlignedMTLWeighting), aligned_mtl_error),
        Method(
            "krum",
            "krum(distance=plain)",
            of_gramian(lambda: aggregation.KrumWeighting(n_byzantine=0)),
            None,
        ),
    ]
    known = mtobal.strategies.available()
    return [method for method in every if method.name in known]


# ---------------------------------------------------------------------------- measuring


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Processor time, which other processes disturb less than the time on the wall."""
    started = time.process_time()
    for _ in range(repeats):
        call()
    return (time.process_time() - started) / repeats


def interleaved(calls: list[Callable[[], object]], budget: float, rounds: int) -> list[float]:
    """Let the calls take turns, and return the median seconds of each.

    At most `rounds`, until the budget in seconds is used up, and two at least; what takes longer than the budget
    is called once.
    """
    for call in calls:
        call()  # the first call may import and allocate
    first = [seconds(call, 1) for call in calls]
    repeats = [0 if duration > budget else max(1, math.ceil(2e-3 / duration)) for duration in first]
    measured = [[] if count else [duration] for duration, count in zip(first, repeats, strict=True)]
    started, done = time.perf_counter(), 0
    while any(repeats) and (done < 2 or (done < rounds and time.perf_counter() - started < budget)):
        for durations, call, count in zip(measured, calls, repeats, strict=True):
            if count:
                durations.append(seconds(call, count))
        done += 1
    return [statistics.median(durations) for durations in measured]


def contenders(method: Method, num_tasks: int) -> tuple[Callable[[Problem], Tensor], Callable[[Problem], Tensor]]:
    aggregation = mtobal.strategies.build(method.spec).aggregation
    assert aggregation is not None
    step = Step.of(num_tasks, torch.ones(num_tasks, dtype=torch.float64))
    return lambda problem: aggregation.weights(problem.gramian, step), method.weighting(num_tasks)


def race(calls: tuple[Callable[[Problem], Tensor], ...], given: list[Problem], quick: bool) -> list[float]:
    """Return the seconds that each takes for one of the problems.

    Each call goes through all of them, as the gradients of two steps are not the same: some solvers start from the
    last solution.
    """

    def on_all(call: Callable[[Problem], Tensor]) -> None:
        for problem in given:
            call(problem)

    times = interleaved([partial(on_all, call) for call in calls], 0.2 if quick else 1.0, 5 if quick else 25)
    return [duration / len(given) for duration in times]


def compare(method: Method, num_tasks: int, given: list[Problem], quick: bool) -> tuple[float, str]:
    """Measure one method at one size; return the ratio and the line of the table."""
    ours, theirs = contenders(method, num_tasks)
    our_time, their_time = race((ours, theirs), given, quick)
    ratio = their_time / our_time
    errors = []
    for kind in ("even", "wide"):
        worst = [0.0, 0.0]
        for problem in given:
            if problem.kind == kind and method.error is not None:
                gramian = problem.gramian.numpy()
                answers = [ours(problem), theirs(problem)]
                if method.name == "config":
                    answers[1] = torch.linalg.solve(problem.factor.T, answers[1])
                found = [method.error(gramian, answer.double().numpy()) for answer in answers]
                worst = [max(pair) for pair in zip(worst, found, strict=True)]
        errors.append("-" if method.error is None else f"{worst[0]:.0e} / {worst[1]:.0e}")
    cells = [
        method.name,
        f"{num_tasks}",
        f"{1e3 * our_time:.3f}",
        f"{1e3 * their_time:.3f}",
        f"{ratio:.1f}",
        *errors,
    ]
    return ratio, "| " + " | ".join(cells) + " |"


def solver_table(quick: bool) -> None:
    print("## Gramian in, weights out: milliseconds a call, and the error of the direction\n")
    print("even, wide: rows of similar length, and with norms over three orders of magnitude; the larger error.\n")
    print("| method | K | mtobal | TorchJD | ratio | even: mtobal / TorchJD | wide: mtobal / TorchJD |")
    print("|---|---|---|---|---|---|---|")
    ratios: dict[str, list[float]] = {}
    for method in methods():
        for num_tasks in (3, 10, 40) if quick else (3, 10, 40, 100):
            ratio, line = compare(method, num_tasks, problems(num_tasks, 1 if quick else 2), quick)
            ratios.setdefault(method.name, []).append(ratio)
            print(line, flush=True)
    every = [ratio for of_method in ratios.values() for ratio in of_method]
    print(f"\nTorchJD / mtobal: geometric mean {statistics.geometric_mean(every):.1f}, smallest {min(every):.2f}.")
    for name, of_method in ratios.items():
        print(
            f"- {name}: geometric mean {statistics.geometric_mean(of_method):.1f}, smallest {min(of_method):.2f}"
        )


def dependent_table(quick: bool) -> None:
    print("\n## Gradients of fewer dimensions than tasks: TorchJD / mtobal in time\n")
    shares = {"1": 0.0, "K/4": 0.25, "K/2": 0.5, "K-1": 1.0}
    print("| method | K | " + " | ".join(shares) + " |")
    print("|---|---|" + "---|" * len(shares))
    for method in methods():
        if method.name in ("dualproj", "upgrad"):
            for num_tasks in (3, 10, 40) if quick else (3, 10, 40, 100):
                ratios = []
                for share in shares.values():
                    dimensions = min(max(1, int(share * num_tasks)), num_tasks - 1)
                    given = problems(num_tasks, 1 if quick else 3, dimensions)
                    our_time, their_time = race(contenders(method, num_tasks), given, quick)
                    ratios.append(f"{their_time / our_time:.1f}")
                print(f"| {method.name} | {num_tasks} | " + " | ".join(ratios) + " |", flush=True)


def jacobian_table(quick: bool) -> None:
    print("\n## On a Jacobian of K x 1e6 float32: the cost over the floor, J J^T and w J\n")
    sizes = (3, 10) if quick else (3, 10, 40)
    cards = [card for card in mtobal.strategies.available().values() if card.reads in ("gramian", "jacobian")]
    print("| strategy | reads | " + " | ".join(f"K={num_tasks}" for num_tasks in sizes) + " |")
    print("|---|---|" + "---|" * len(sizes))
    rows: dict[str, list[str]] = {card.name: [card.name, card.reads] for card in cards}
    floors = []
    for num_tasks in sizes:
        generator = torch.Generator().manual_seed(num_tasks)
        jacobian = torch.randn(num_tasks, 1_000_000, generator=generator)
        weights, losses = torch.rand(num_tasks, generator=generator), torch.ones(num_tasks)

        def floor(rows: Tensor = jacobian, weights: Tensor = weights) -> Tensor:
            return (rows @ rows.T).sum() + weights @ rows

        floors.append([])
        for card in cards:
            strategy = mtobal.strategies.build(card.example)
            calls = [floor, lambda s=strategy, j=jacobian, v=losses: mtobal.aggregate(j, s, v)]
            least, cost = interleaved(calls, 0.5 if quick else 2.0, 5 if quick else 15)
            floors[-1].append(least)
            rows[card.name].append(f"{cost / least:.2f}")
    for cells in rows.values():
        print("| " + " | ".join(cells) + " |")
    print("\nThe floor: " + ", ".join(f"{1e3 * statistics.median(each):.1f} ms" for each in floors) + ".")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer sizes, problems and repeats")
    parser.add_argument("--part", choices=["solvers", "jacobian"], help="only one of the two parts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for library in ("cvxpy", "torchjd"):
        warnings.filterwarnings("ignore", module=library)
    if arguments.part != "jacobian":
        solver_table(arguments.quick)
        dependent_table(arguments.quick)
    if arguments.part != "solvers":
        jacobian_table(arguments.quick)


if __name__ == "__main__":
    main()
