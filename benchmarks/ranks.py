"""Bytes that each of two ranks sends in a training step, beside those of plain data parallelism.

    python benchmarks/ranks.py                 # the table of the README here and of docs/lightning.md

Every collective of `torch.distributed` is wrapped and counts the tensors that it is given; what the reducer of
`DistributedDataParallel` sends passes through a communication hook that counts as well. Payload is counted, not
what a ring makes of it: every line goes over the same wires, and so ratios hold for each backend.
"""

from __future__ import annotations

import argparse
import itertools
import pickle
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mtobal import Balancer

STEPS = 4  # the first finds the parameters; the others are counted
WIDTHS = (256, 1024, 1024, 512)

WAYS: dict[str, tuple[str | None, int]] = {
    "plain DDP, sum of the losses": (None, 1),
    "loss weighting (`uw`)": ("uw", 1),
    "representation (`mgda_ub`)": ("mgda_ub", 1),
    "aggregation of the Gramian (`mgda`)": ("mgda", 1),
    "aggregation of the Jacobian (`graddrop`)": ("graddrop", 1),
    "both (`uw+nash_mtl`)": ("uw+nash_mtl", 1),
    "the same over 4 accumulated batches (`mgda`)": ("mgda", 4),
}


class Net(nn.Module):
    def __init__(self, tasks: int) -> None:
        super().__init__()
        pairs = itertools.pairwise(WIDTHS)
        self.encoder = nn.Sequential(*(layer for a, b in pairs for layer in (nn.Linear(a, b), nn.Tanh())))
        self.heads = nn.ModuleList(nn.Linear(WIDTHS[-1], 8) for _ in range(tasks))

    def forward(self, inputs: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        features = self.encoder(inputs)
        return {str(k): head(features).square().mean() for k, head in enumerate(self.heads)}, features


class Counter:
    """Counts the bytes and the calls of this process."""

    def __init__(self) -> None:
        self.bytes = 0
        self.calls = 0

    def add(self, tensor: Tensor) -> None:
        self.bytes += tensor.numel() * tensor.element_size()
        self.calls += 1

    def reduce(self, process_group, bucket):  # DDP insists on annotations that are no strings, or none
        """Do what the reducer does without a hook."""
        self.add(bucket.buffer())
        buffer = bucket.buffer().div_(dist.get_world_size())
        done = _all_reduce(buffer, async_op=True).get_future()
        return done.then(lambda future: future.value()[0])

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what Python code sends."""
        kept: dict[str, Callable[..., Any]] = {name: getattr(dist, name) for name in _COLLECTIVES}

        def counted(name: str) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                tensor = args[0]
                if isinstance(tensor, Tensor):
                    self.add(tensor)
                else:  # objects: what is pickled
                    self.bytes += len(pickle.dumps(args[1]))
                    self.calls += 1
                return kept[name](*args, **kwargs)

            return call

        for name in kept:
            setattr(dist, name, counted(name))
        try:
            yield
        finally:
            for name, function in kept.items():
                setattr(dist, name, function)


_all_reduce = dist.all_reduce
_COLLECTIVES = ("all_reduce", "broadcast", "all_gather_object")


def measure(rank: int, tasks: int, spec: str | None, accumulate: int) -> dict[str, float]:
    torch.manual_seed(0)
    net = Net(tasks)
    model = DistributedDataParallel(net)
    counter = Counter()
    model.register_comm_hook(None, counter.reduce)
    balancer = None if spec is None else Balancer(spec, net)
    for step in range(STEPS):
        if step == 1:
            counter.bytes = counter.calls = 0
        for number in range(accumulate):
            last = number == accumulate - 1
            with counter.counting(), nullcontext() if last else model.no_sync():
                losses, features = model(torch.randn(8, WIDTHS[0]))
                if balancer is None:
                    loss = torch.stack(list(losses.values())).sum()
                else:
                    with nullcontext() if last else balancer.accumulating():
                        reads = features if spec == "mgda_ub" else None
                        loss = balancer(losses, representation=reads)
                (loss / accumulate).backward()
        model.zero_grad()
    shared = sum(parameter.numel() for parameter in net.encoder.parameters())
    everything = sum(parameter.numel() for parameter in net.parameters())
    return {
        "bytes": counter.bytes / (STEPS - 1),
        "calls": counter.calls / (STEPS - 1),
        "shared": shared,
        "everything": everything,
    }


def work(rank: int, folder: str, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", 2), rank=rank, world_size=2)
    try:
        found = measure(rank, *args)
        if rank == 0:
            Path(folder, "found").write_bytes(pickle.dumps(found))
    finally:
        dist.destroy_process_group()


def on_two_ranks(*args: Any) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(work, (folder, args), nprocs=2, start_method="fork")
        found: dict[str, float] = pickle.loads(Path(folder, "found").read_bytes())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, nargs="+", default=[3, 10])
    counts = parser.parse_args().tasks
    floors = {tasks: on_two_ranks(tasks, None, 1) for tasks in counts}
    for tasks, floor in floors.items():
        print(f"K={tasks}: {floor['shared']:,.0f} shared of {floor['everything']:,.0f} parameters")
    print("\n| step | " + " | ".join(f"MB, K={k} | of DDP | calls" for k in counts) + " |")
    print("|---|" + "---|" * (3 * len(counts)))
    for way, (spec, accumulate) in WAYS.items():
        cells = []
        for tasks, floor in floors.items():
            found = floor if spec is None else on_two_ranks(tasks, spec, accumulate)
            cells += [
                f"{found['bytes'] / 1e6:.3f}",
                f"{found['bytes'] / floor['bytes']:.4g}",
                f"{found['calls']:.1f}",
            ]
        print(f"| {way} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
