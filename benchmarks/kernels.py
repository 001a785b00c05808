"""How close the kernels on per-task gradients come to the memory bandwidth of a GPU.

    python benchmarks/kernels.py            # K = 3, 10, 40 and 1e6 to 1e9 parameters, as far as memory goes
    python benchmarks/kernels.py --quick    # up to 1e7 parameters

Prints a table in Markdown. It needs a CUDA device and Triton, which CUDA builds of torch bring along.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mtobal.ops import combine, gramian, kernels, random_sign_drop_of_blocks, trimmed_mean_of_blocks

REPEATS = 15
# Larger than any cache: written to before each measurement, so that nothing is read from there.
FLUSHED = 512 * 2**20
AHEAD = 20_000_000  # clock cycles that the device waits while the host prepares what is measured


def parameter_sizes(total: int) -> list[int]:
    """A network with 60 weight matrices and, for each of them, two vectors."""
    vectors = [256] * 120
    matrix = (total - sum(vectors)) // 60 // 8 * 8
    return [*[matrix] * 60, *vectors]


def device_seconds(call: Callable[[], object], scratch: Tensor) -> float:
    """The median time on the device alone: it waits until the host has launched everything."""
    call()  # compiles
    measured = []
    for _ in range(REPEATS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        scratch.zero_()
        torch.cuda._sleep(AHEAD)
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        measured.append(start.elapsed_time(end) / 1e3)
    return statistics.median(measured)


def call_seconds(call: Callable[[], object], scratch: Tensor) -> float:
    """The median time from the call to the end of its last kernel."""
    call()
    measured = []
    for _ in range(REPEATS):
        scratch.zero_()
        torch.cuda.synchronize()
        started = time.perf_counter()
        call()
        torch.cuda.synchronize()
        measured.append(time.perf_counter() - started)
    return statistics.median(measured)


def copy_bandwidth(scratch: Tensor) -> float:
    """Bytes per second, read and written."""
    source = torch.ones(2**28, device=scratch.device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / device_seconds(lambda: target.copy_(source), scratch)


@contextmanager
def plain_torch() -> Iterator[None]:
    types, kernels.TYPES = kernels.TYPES, ()
    try:
        yield
    finally:
        kernels.TYPES = types


def lines(num_tasks: int, total: int, dtype: torch.dtype, bandwidth: float, scratch: Tensor) -> Iterator[str]:
    """One line of the table for each operation."""
    from mtobal.ops.kernels import gramian as gramian_kernel

    device = scratch.device
    blocks = [torch.randn(num_tasks, size, dtype=dtype, device=device) for size in parameter_sizes(total)]
    rows = [list(row) for row in zip(*(block.unbind() for block in blocks), strict=True)]
    columns = [block.unbind() for block in blocks]
    entries = sum(block.shape[1] for block in blocks)
    weights = [1.0 / num_tasks] * num_tasks
    generator = torch.Generator(device).manual_seed(0)
    # The Gramian ends with a transfer, for which the host waits: on the device alone it is measured without.
    operations: list[tuple[str, int, Callable[[], object], Callable[[], object]]] = [
        ("Gramian", num_tasks, lambda: gramian_kernel.gramian(columns, num_tasks), lambda: gramian(rows)),
        *(
            (name, num_tasks + 1, call, call)
            for name, call in (
                ("combination", lambda: combine(rows, weights)),
                ("sign dropout", lambda: random_sign_drop_of_blocks(blocks, generator)),
                ("trimmed mean", lambda: trimmed_mean_of_blocks(blocks, 1)),
            )
        ),
    ]
    for name, moved, kernel, call in operations:
        achieved = moved * entries * dtype.itemsize / device_seconds(kernel, scratch)
        whole = call_seconds(call, scratch)
        try:
            with plain_torch():
                reference = f"{1e3 * call_seconds(call, scratch):.3f}"
        except torch.OutOfMemoryError:
            reference = "out of memory"
        kind = str(dtype).removeprefix("torch.")
        cells = [name, kind, str(num_tasks), f"{total:.0e}".replace("e+0", "e"), f"{achieved / 1e9:.0f}"]
        cells += [f"{achieved / bandwidth:.2f}", f"{1e3 * whole:.3f}", reference]
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="up to 1e7 parameters")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("the kernels run on a CUDA device, and torch finds none here")
    device = torch.device("cuda", torch.cuda.current_device())
    scratch = torch.empty(FLUSHED, dtype=torch.int8, device=device)
    if not kernels.use_kernels([torch.empty(1, device=device)]):
        sys.exit("the kernels need Triton and a device of compute capability 8.0 or more")
    bandwidth = copy_bandwidth(scratch)
    print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}; copy: {bandwidth / 1e9:.0f} GB/s\n")
    print("| operation | type | K | P | GB/s | share of copy | call [ms] | plain torch [ms] |")
    print("|---|---|---|---|---|---|---|---|")
    for dtype in (torch.float32, torch.bfloat16):
        for num_tasks in (3, 10, 40):
            for total in (10**6, 10**7) if arguments.quick else (10**6, 10**7, 10**8, 10**9):
                torch.cuda.empty_cache()
                if (num_tasks + 2) * total * dtype.itemsize > torch.cuda.mem_get_info(device)[0]:
                    continue
                for line in lines(num_tasks, total, dtype, bandwidth, scratch):
                    print(line, flush=True)


if __name__ == "__main__":
    main()
