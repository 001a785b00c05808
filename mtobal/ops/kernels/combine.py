"""The weighted sum of gradients that lie apart."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mtobal.ops.kernels.table import addresses_of, find_segment, pointer_to, tables
from mtobal.ops.layout import alike

_WIDTH, _BLOCK = 1 << 12, 1 << 10


def combine(columns: Iterable[Sequence[Tensor | None]], weights: Sequence[float]) -> list[Tensor]:
    """Return ``sum_k w_k g_k`` for each parameter, summed up in float32; what has weight zero is not even read.

    Parameters
    ----------
    columns : iterable of P sequences of K tensors
        The gradients with respect to one parameter, at least one of them not None.
    weights : sequence of K floats
    """
    gradients = [alike(column) for column in columns]
    combined = [torch.empty_like(next(g for g in column if g is not None)) for column in gradients]
    with_results = [[*column, result] for column, result in zip(gradients, combined, strict=True)]
    for table in tables(with_results, _WIDTH):
        device = table.lines.device
        on_device = torch.tensor(weights, dtype=torch.float32, pin_memory=device.type == "cuda")
        with torch.cuda.device_of(table.lines):
            _combine[(table.segments,)](
                weights=on_device.to(device, non_blocking=True),
                tasks=len(weights),
                **table.arguments(),
                WIDTH=_WIDTH,
                BLOCK=_BLOCK,
            )
    return combined


@triton.jit(do_not_specialize=["parameters", "tasks"])
def _combine(
    weights,
    table,
    parameters,
    tasks,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PADDED: tl.constexpr,
    ALIGNED: tl.constexpr,
    ELEMENT: tl.constexpr,
):
    parameter, start, end, entries = find_segment(table, parameters, tl.program_id(0), WIDTH, PADDED, ALIGNED)
    result = addresses_of(table, parameters, parameter, tasks, True)
    for first in range(start, end, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        total = tl.zeros((BLOCK,), tl.float32)
        for task in tl.range(0, tasks, loop_unroll_factor=4):
            weight = tl.load(weights + task)
            address = addresses_of(table, parameters, parameter, task, True)
            wanted = (address != 0) & (weight != 0)
            pointers = pointer_to(address, ALIGNED, ELEMENT) + columns
            total += weight * tl.load(pointers, mask=wanted & (columns < entries), other=0.0).to(tl.float32)
        tl.store(pointer_to(result, ALIGNED, ELEMENT) + columns, total.to(ELEMENT), mask=columns < entries)
