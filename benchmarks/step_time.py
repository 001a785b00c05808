"""Time or peak memory of one training step, as a ratio to the plain backward of the summed losses.

    python benchmarks/step_time.py                 # the times of docs/how-fast.md, some 20 minutes
    python benchmarks/step_time.py --memory        # the peaks, about as long
    python benchmarks/step_time.py --quick         # two models, two numbers of tasks, a minute or two
    python benchmarks/step_time.py --errors        # directions of the approximations against the exact ones

Every way to take a step runs in turn, again and again, and its time is divided by that of the plain step of
the same round; the table shows medians of these ratios. So whatever else the machine does slows all alike.
Peak memory is what the allocator of torch handed out at most, above the model and its input. TorchJD is
measured as well where it is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

import mtobal
from mtobal import Balancer

STRATEGY = "aligned_mtl"  # its K x K problem is one eigendecomposition, in both packages
CLASSES = 10
APPROXIMATIONS = ("every(n=10)", "every(n=100)", "fraction(f=0.5)", "fraction(f=0.25)", "representation")


def mlp() -> tuple[nn.Module, Tensor]:
    widths = [784, 1024, 1024, 1024, 1024]
    layers = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers), torch.randn(128, 784)


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([norm(outputs), norm(outputs)])
        self.around = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.around = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.relu(self.norms[0](self.first(inputs)))
        return torch.relu(self.norms[1](self.second(hidden)) + self.around(inputs))


def norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, track_running_stats=False)  # one of TorchJD's engines cannot track them


def resnet(size: int, batch: int) -> tuple[nn.Module, Tensor]:
    """ResNet-18 as published: it divides the size of an image by 32."""
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), norm(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *residuals(64)), torch.randn(batch, 3, size, size)


def fine_resnet() -> tuple[nn.Module, Tensor]:
    """Half as wide, and for small images: it divides their size by 8 only, so that layers have many positions."""
    stem = [nn.Conv2d(3, 32, 3, 1, 1, bias=False), norm(32), nn.ReLU()]
    return nn.Sequential(*stem, *residuals(32)), torch.randn(32, 3, 32, 32)


def residuals(width: int) -> Iterator[nn.Module]:
    inputs = width
    for stage in range(4):
        for stride in (1 if stage == 0 else 2, 1):
            yield Residual(inputs, width * 2**stage, stride)
            inputs = width * 2**stage
    yield nn.AdaptiveAvgPool2d(1)
    yield nn.Flatten()


class ViT(nn.Module):
    def __init__(self, patch: int = 4, width: int = 192, depth: int = 6) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        block = partial(nn.TransformerEncoderLayer, width, 3, 4 * width, 0.0, "gelu", batch_first=True)
        self.blocks = nn.Sequential(*(block(norm_first=True) for _ in range(depth)))

    def forward(self, images: Tensor) -> Tensor:
        return self.blocks(self.patches(images).flatten(2).mT).mean(1)


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "MLP 4x1024, batch 128": mlp,
    "ResNet-18, 32x32, batch 32": partial(resnet, 32, 32),
    "ResNet-18, 64x64, batch 16": partial(resnet, 64, 16),
    "ViT, 64 tokens, batch 32": lambda: (ViT(), torch.randn(32, 3, 32, 32)),
    "fine ResNet, 32x32, batch 32": fine_resnet,
}


class Problem:
    """An encoder with one linear decoder a task."""

    def __init__(self, model: str, tasks: int) -> None:
        torch.manual_seed(0)
        self.encoder, self.inputs = MODELS[model]()
        with torch.no_grad():
            width = self.encoder(self.inputs).shape[1]
        self.heads = nn.ModuleList([nn.Linear(width, CLASSES) for _ in range(tasks)])
        self.labels = torch.randint(CLASSES, (tasks, len(self.inputs)))
        self.model = nn.ModuleList([self.encoder, self.heads])

    def losses(self, share: float = 1.0) -> tuple[list[Tensor], Tensor]:
        count = math.ceil(share * len(self.inputs))
        features = self.encoder(self.inputs[:count])
        losses = [
            cross_entropy(head(features), labels[:count])
            for head, labels in zip(self.heads, self.labels, strict=True)
        ]
        return losses, features


def plain(problem: Problem) -> None:
    sum(problem.losses()[0]).backward()


def by_hand(problem: Problem) -> None:
    """What one writes without a library: rows, a matrix of them, its Gramian, weights, the sum."""
    losses, _ = problem.losses()
    shared = list(problem.encoder.parameters())
    rows = []
    for loss, head in zip(losses, problem.heads, strict=True):
        own = list(head.parameters())
        gradients = torch.autograd.grad(loss, shared + own, retain_graph=True)
        rows.append(torch.cat([gradient.flatten() for gradient in gradients[: len(shared)]]))
        for parameter, gradient in zip(own, gradients[len(shared) :], strict=True):
            parameter.grad = gradient
    jacobian = torch.stack(rows)
    weights = (jacobian @ jacobian.T).diag().rsqrt()
    direction = (weights @ jacobian).split([parameter.numel() for parameter in shared])
    for parameter, part in zip(shared, direction, strict=True):
        parameter.grad = part.view_as(parameter)


def balanced(problem: Problem, balancer: Balancer) -> None:
    losses, features = problem.losses()
    balancer(named(losses), representation=features, part=lambda f: named(problem.losses(f)[0])).backward()


def named(losses: list[Tensor]) -> dict[str, Tensor]:
    return {str(task): loss for task, loss in enumerate(losses)}


def torchjd_rows(problem: Problem, chunk: int | None) -> None:
    from torchjd.aggregation import AlignedMTL
    from torchjd.autojac import jac_to_grad, mtl_backward

    losses, features = problem.losses()
    mtl_backward(losses, features=features, parallel_chunk_size=chunk)
    jac_to_grad(problem.encoder.parameters(), AlignedMTL(), optimize_gramian_computation=True)


def torchjd_autogram(problem: Problem, engine: object, weighting: Callable[[Tensor], Tensor]) -> None:
    losses = torch.stack(problem.losses()[0])
    losses.backward(weighting(engine.compute_gramian(losses)))


class Way:
    """One way to take a step."""

    def __init__(self, problem: Problem, step: Callable[..., None], *options: object, steps: int = 1) -> None:
        self.problem, self.step, self.options, self.steps = problem, step, options, steps

    def run(self) -> None:
        for _ in range(self.steps):
            self.problem.model.zero_grad()
            self.step(self.problem, *self.options)

    def seconds(self) -> float:
        """Return the time of one step."""
        start = time.perf_counter()
        self.run()
        return (time.perf_counter() - start) / self.steps

    def peak(self) -> int:
        """Return the most bytes that were allocated at once, above what was before."""
        self.problem.model.zero_grad()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            self.run()
        assert recorded.profiler is not None
        events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
        events.sort(key=lambda event: event.start_ns())
        return max(itertools.accumulate(event.nbytes() for event in events))


def ways(model: str, tasks: int) -> dict[str, Way]:
    """Return what to measure, by name."""
    problem = Problem(model, tasks)

    def balancer(strategy: str, gradients: str = "auto") -> Balancer:
        return Balancer(strategy, problem.model, gradients=gradients)

    found = {
        "plain": Way(problem, plain),
        "by hand": Way(problem, by_hand),
        "loop": Way(problem, balanced, balancer(STRATEGY, "loop")),
        "batched": Way(problem, balanced, balancer(STRATEGY, "batched")),
        "auto": Way(problem, balanced, balancer(STRATEGY)),
        "every(n=10)": Way(problem, balanced, balancer(STRATEGY, "every(n=10)"), steps=10),
        "fraction(f=0.25)": Way(problem, balanced, balancer(STRATEGY, "fraction(f=0.25)")),
        "representation": Way(problem, balanced, balancer(STRATEGY, "representation")),
        "uw": Way(problem, balanced, balancer("uw")),
    }
    if importlib.util.find_spec("torchjd"):
        from torchjd.aggregation import AlignedMTLWeighting
        from torchjd.autogram import Engine

        hooked = Problem(model, tasks)  # a model of its own, because hooks slow down every forward pass
        engine = Engine(hooked.encoder, batch_dim=None)
        found["TorchJD, chunk 1"] = Way(problem, torchjd_rows, 1)
        found["TorchJD, vmap"] = Way(problem, torchjd_rows, None)
        found["TorchJD, autogram"] = Way(hooked, torchjd_autogram, engine, AlignedMTLWeighting())
    return found


def warmed_up(model: str, tasks: int) -> dict[str, Way]:
    """Return all ways after one step, which finds parameters, fills caches and compiles what is compiled."""
    found = ways(model, tasks)
    for way in found.values():
        way.run()
    return found


def memory(model: str, tasks: int) -> dict[str, float]:
    """Return the peak memory of every way, as a ratio to that of the plain step."""
    peaks = {name: way.peak() for name, way in warmed_up(model, tasks).items()}
    return {name: peak / peaks["plain"] for name, peak in peaks.items()}


def times(model: str, tasks: int, rounds: int) -> dict[str, float]:
    """Return the time of every way, as a ratio to that of the plain step."""
    found = warmed_up(model, tasks)
    ratios: dict[str, list[float]] = {name: [] for name in found}
    for number in range(rounds):
        names = [*found]
        turn = names[number % len(names) :] + names[: number % len(names)]  # nobody always runs after the same
        seconds = {name: found[name].seconds() for name in turn}
        for name in names:
            ratios[name].append(seconds[name] / seconds["plain"])
    return {name: statistics.median(ratios[name]) for name in found}


def cosine(gramian: Tensor, one: Tensor, other: Tensor) -> float:
    """Return the cosine of two weighted sums of rows that have this Gramian."""
    return float(one @ gramian @ other / ((one @ gramian @ one) * (other @ gramian @ other)).sqrt())


def errors(strategy: str, tasks: int, steps: int = 200) -> dict[str, float]:
    """Train on labels from other networks, and compare the directions of approximations with the exact one.

    Returns
    -------
    dict from str to float
        The median over the steps of the cosine between the two directions.
    """
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(32, 128), nn.Tanh(), nn.Linear(128, 64), nn.Tanh())
    heads = nn.ModuleList([nn.Linear(64, CLASSES) for _ in range(tasks)])
    teachers = [nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, CLASSES)) for _ in range(tasks)]
    model = nn.ModuleList([encoder, heads])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    found: dict[str, list[float]] = {name: [] for name in APPROXIMATIONS}
    kept: dict[str, Tensor] = {}
    parameters = [*encoder.parameters()]
    for step in range(steps):
        inputs = torch.randn(64, 32)
        labels = [teacher(inputs).argmax(1) for teacher in teachers]

        losses, features = first_losses(encoder, heads, inputs, labels, 64)
        gramian = inner_products(losses, parameters)
        pulled = inner_products(losses, [features])
        exact = mtobal.weights(gramian, strategy)
        for name, age in (("every(n=10)", step % 10), ("every(n=100)", step % 100)):
            kept[name] = exact if age == 0 else kept[name]
        for name, count in (("fraction(f=0.25)", 16), ("fraction(f=0.5)", 32)):
            part, _ = first_losses(encoder, heads, inputs, labels, count)
            kept[name] = mtobal.weights(inner_products(part, parameters), strategy)
        kept["representation"] = mtobal.weights(pulled, strategy)
        for name, weights in kept.items():
            found[name].append(cosine(gramian, weights, exact))
        optimizer.zero_grad()
        sum(weight * loss for weight, loss in zip(exact.tolist(), losses, strict=True)).backward()
        optimizer.step()
    return {name: statistics.median(cosines) for name, cosines in found.items()}


def first_losses(
    encoder: nn.Module, heads: nn.ModuleList, inputs: Tensor, labels: list[Tensor], count: int
) -> tuple[list[Tensor], Tensor]:
    """Return the losses over the first samples, and their representation."""
    features = encoder(inputs[:count])
    pairs = zip(heads, labels, strict=True)
    return [cross_entropy(head(features), target[:count]) for head, target in pairs], features


def inner_products(losses: list[Tensor], places: list[Tensor]) -> Tensor:
    rows = [torch.autograd.grad(loss, places, retain_graph=True) for loss in losses]
    jacobian = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows]).double()
    return jacobian @ jacobian.T


def print_errors() -> None:
    print("| strategy | K | " + " | ".join(APPROXIMATIONS) + " |")
    print("|---|---" + "|---" * len(APPROXIMATIONS) + "|")
    for strategy in ("mgda", "pcgrad", "cagrad", "aligned_mtl", "nash_mtl"):
        for tasks in (3, 10):
            found = errors(strategy, tasks)
            cells = [f"{found[name]:.4f}" for name in APPROXIMATIONS]
            print(f"| {strategy} | {tasks} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two models, K = 3 and 10, three rounds")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="MODEL")
    parser.add_argument("--tasks", nargs="+", type=int, default=[3, 10, 20], metavar="K")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time")
    parser.add_argument("--errors", action="store_true", help="instead, how far approximations lead astray")
    given = parser.parse_args()
    if given.errors:
        print_errors()
        return
    models, tasks, rounds = given.models, given.tasks, given.rounds
    if given.quick:
        models, tasks, rounds = list(MODELS)[:2], [3, 10], 3
    torch.set_num_threads(given.threads)
    what = "peak memory" if given.memory else f"time, medians of {rounds} rounds"
    print(f"torch {torch.__version__}, {given.threads} threads; {what}, plain = 1\n")
    header: list[str] = []
    for model in models:
        for count in tasks:
            figures = memory(model, count) if given.memory else times(model, count, rounds)
            if not header:
                header = ["encoder", "K", "floor of a loop", *list(figures)[1:]]
                print("| " + " | ".join(header) + " |")
                print("|" + "---|" * len(header), flush=True)
            cells = [f"{figure:.2f}" for figure in list(figures.values())[1:]]
            print(f"| {model} | {count} | {(1 + 2 * count) / 3:.2f} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
