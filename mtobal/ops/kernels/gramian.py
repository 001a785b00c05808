"""The Gramian of gradients that lie apart.

Products are summed up in float32 within a segment and in float64 from segment to segment. A program takes the same
segments in the same order each time: results are the same from run to run, bit by bit.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mtobal.ops.kernels.table import Table, addresses_of, find_segment, pointer_to, tables
from mtobal.ops.layout import alike

# Up to so many rows, plain arithmetic keeps pace with the memory; beyond that it takes the tensor cores.
_FEW = 8
_WIDTH_OF_FEW, _WIDTH = 1 << 13, 1 << 11  # entries of a segment


def gramian(columns: Iterable[Sequence[Tensor | None]], num_tasks: int) -> list[Tensor]:
    """Return matrices of shape (K, K), float64 on the devices of the gradients, whose sum is the Gramian.

    Parameters
    ----------
    columns : iterable of P sequences of K tensors
        The gradients with respect to one parameter, at least one of them not None.
    num_tasks : int
        The number K.
    """
    launch, width = (_launch_few, _WIDTH_OF_FEW) if num_tasks <= _FEW else (_launch_many, _WIDTH)
    found = []
    for table in tables(map(alike, columns), width):
        with torch.cuda.device_of(table.lines):
            found.append(launch(table, num_tasks)[:num_tasks, :num_tasks])
    return found


def _launch_few(table: Table, num_tasks: int) -> Tensor:
    rows = max(2, triton.next_power_of_2(num_tasks))
    totals = _totals(table, rows, 4)
    _few[(len(totals),)](
        totals=totals,
        segments=table.segments,
        tasks=num_tasks,
        **table.arguments(),
        ROWS=rows,
        WIDTH=_WIDTH_OF_FEW,
        BLOCK=1024 // rows,
        num_warps=4,
    )
    return totals.sum(0)


def _launch_many(table: Table, num_tasks: int) -> Tensor:
    # Two powers of two that hold the first rows and the others: one for all would multiply more with nothing.
    low = max(16, triton.next_power_of_2(num_tasks + 1) // 2)
    high = 0 if num_tasks <= low else max(16, triton.next_power_of_2(num_tasks - low))
    warps = low // 16 * (2 if high else 1)
    totals = _totals(table, low + high, 8 // warps)
    _many[(len(totals),)](
        totals=totals,
        segments=table.segments,
        tasks=num_tasks,
        **table.arguments(),
        LOW=low,
        HIGH=high,
        WIDTH=_WIDTH,
        BLOCK=64 if low + high == 16 else 32,
        num_warps=warps,
    )
    total = totals.sum(0)
    return (total + total.T) / 2


def _totals(table: Table, rows: int, programs: int) -> Tensor:
    """Make room for what each program finds; `programs` is how many a processor has registers for."""
    device = table.lines.device
    if device.type == "cuda":
        programs *= torch.cuda.get_device_properties(device).multi_processor_count
    return torch.empty(min(programs, table.segments), rows, rows, dtype=torch.float64, device=device)


@triton.jit
def _load(addresses, columns, entries, ALIGNED: tl.constexpr, ELEMENT: tl.constexpr):
    """Load the columns of all rows, with zeros where there is nothing."""
    pointers = pointer_to(addresses, ALIGNED, ELEMENT)[:, None] + columns[None, :]
    mask = (addresses != 0)[:, None] & (columns < entries)[None, :]
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["parameters", "segments", "tasks"])
def _few(
    totals,
    table,
    parameters,
    segments,
    tasks,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PADDED: tl.constexpr,
    ALIGNED: tl.constexpr,
    ELEMENT: tl.constexpr,
):
    rows = tl.arange(0, ROWS)
    total = tl.zeros((ROWS, ROWS), tl.float64)
    for segment in range(tl.program_id(0), segments, tl.num_programs(0)):
        parameter, start, end, entries = find_segment(table, parameters, segment, WIDTH, PADDED, ALIGNED)
        addresses = addresses_of(table, parameters, parameter, rows, rows < tasks)
        products = tl.zeros((ROWS, ROWS, BLOCK), tl.float32)
        for first in tl.range(start, end, BLOCK, num_stages=4):
            values = _load(addresses, first + tl.arange(0, BLOCK), entries, ALIGNED, ELEMENT)
            products += values[:, None, :] * values[None, :, :]
        total += tl.sum(products, 2).to(tl.float64)
    place = totals + tl.program_id(0).to(tl.int64) * ROWS * ROWS
    tl.store(place + rows[:, None] * ROWS + rows[None, :], total)


@triton.jit
def _coarse(values):
    """Return the values as tf32 has them, without the last 13 bits: the rest is exact in float32."""
    return (values.to(tl.int32, bitcast=True) & -0x2000).to(tl.float32, bitcast=True)


@triton.jit
def _add_products(total, left, right, SAME: tl.constexpr, ELEMENT: tl.constexpr):
    """Add ``left right^T``, as exact as in float32; where both are the same, only the symmetric part is right."""
    if ELEMENT.primitive_bitwidth < 32:  # tf32 holds every value
        return tl.dot(left, tl.trans(right), total, input_precision="tf32")
    coarse, other = _coarse(left), _coarse(right)
    # The tensor cores round towards zero: a block by itself, added with proper rounding, keeps their errors small.
    if SAME:
        block = tl.dot(coarse, tl.trans(2.0 * (right - other)), input_precision="tf32")
    else:
        block = tl.dot(coarse, tl.trans(right - other), input_precision="tf32")
        block = tl.dot(left - coarse, tl.trans(other), block, input_precision="tf32")
    return total + tl.dot(coarse, tl.trans(other), block, input_precision="tf32")


@triton.jit(do_not_specialize=["parameters", "segments", "tasks"])
def _many(
    totals,
    table,
    parameters,
    segments,
    tasks,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PADDED: tl.constexpr,
    ALIGNED: tl.constexpr,
    ELEMENT: tl.constexpr,
):
    low = tl.arange(0, LOW)
    low_low = tl.zeros((LOW, LOW), tl.float64)
    if HIGH:
        high = LOW + tl.arange(0, HIGH)
        low_high = tl.zeros((LOW, HIGH), tl.float64)
        high_high = tl.zeros((HIGH, HIGH), tl.float64)
    for segment in range(tl.program_id(0), segments, tl.num_programs(0)):
        parameter, start, end, entries = find_segment(table, parameters, segment, WIDTH, PADDED, ALIGNED)
        low_addresses = addresses_of(table, parameters, parameter, low, low < tasks)
        sum_low_low = tl.zeros((LOW, LOW), tl.float32)
        if HIGH:
            high_addresses = addresses_of(table, parameters, parameter, high, high < tasks)
            sum_low_high = tl.zeros((LOW, HIGH), tl.float32)
            sum_high_high = tl.zeros((HIGH, HIGH), tl.float32)
        for first in tl.range(start, end, BLOCK, num_stages=4):
            columns = first + tl.arange(0, BLOCK)
            lows = _load(low_addresses, columns, entries, ALIGNED, ELEMENT)
            sum_low_low = _add_products(sum_low_low, lows, lows, True, ELEMENT)
            if HIGH:
                highs = _load(high_addresses, columns, entries, ALIGNED, ELEMENT)
                sum_low_high = _add_products(sum_low_high, lows, highs, False, ELEMENT)
                sum_high_high = _add_products(sum_high_high, highs, highs, True, ELEMENT)
        low_low += sum_low_low.to(tl.float64)
        if HIGH:
            low_high += sum_low_high.to(tl.float64)
            high_high += sum_high_high.to(tl.float64)
    rows: tl.constexpr = LOW + HIGH
    place = totals + tl.program_id(0).to(tl.int64) * rows * rows
    tl.store(place + low[:, None] * rows + low[None, :], low_low)
    if HIGH:
        tl.store(place + low[:, None] * rows + high[None, :], low_high)
        tl.store(place + low[None, :] + high[:, None] * rows, tl.trans(low_high))
        tl.store(place + high[:, None] * rows + high[None, :], high_high)
