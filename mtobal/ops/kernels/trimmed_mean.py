"""The mean without the extremes, coordinate by coordinate."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code=assignment

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mtobal.ops.kernels.table import addresses_of, find_segment, pointer_to, tables
from mtobal.ops.layout import alike

_WIDTH = 1 << 12


def trimmed_mean(blocks: Sequence[Tensor], trim: int) -> list[Tensor]:
    """Average the columns of each block without their extremes; see `mtobal.ops.trimmed_mean`."""
    means = [torch.empty_like(block[0], memory_format=torch.contiguous_format) for block in blocks]
    columns = [[*alike(block.unbind()), mean] for block, mean in zip(blocks, means, strict=True)]
    for table in tables(columns, _WIDTH):
        with torch.cuda.device_of(table.lines):
            _trimmed_mean[(table.segments,)](
                tasks=len(blocks[0]),
                **table.arguments(),
                TRIM=trim,
                WIDTH=_WIDTH,
                BLOCK=1024 if trim <= 4 else 256,  # what is held back stays in registers
            )
    return means


@triton.jit
def _push(held, values, COUNT: tl.constexpr):
    """Put values among those that are held, which descend, and return what falls out, the smallest."""
    pushed = ()
    for number in tl.static_range(COUNT):
        pushed += (tl.maximum(held[number], values, propagate_nan=tl.PropagateNan.ALL),)
        values = tl.minimum(held[number], values, propagate_nan=tl.PropagateNan.ALL)
    return pushed, values


@triton.jit
def _median_out(held, values, TRIM: tl.constexpr):
    """Put values among those that are held and return the median: it is none of the extremes."""
    above = ()
    below = ()
    for number in tl.static_range(TRIM):
        above += (tl.maximum(held[number], values, propagate_nan=tl.PropagateNan.ALL),)
        values = tl.minimum(held[number], values, propagate_nan=tl.PropagateNan.ALL)
    for number in tl.static_range(TRIM, 2 * TRIM):
        below += (tl.minimum(held[number], values, propagate_nan=tl.PropagateNan.ALL),)
        values = tl.maximum(held[number], values, propagate_nan=tl.PropagateNan.ALL)
    return above + below, values


@triton.jit
def _load(table, parameters, parameter, task, columns, entries, ALIGNED: tl.constexpr, ELEMENT: tl.constexpr):
    address = addresses_of(table, parameters, parameter, task, True)
    pointers = pointer_to(address, ALIGNED, ELEMENT) + columns
    return tl.load(pointers, mask=columns < entries, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["parameters", "tasks"])
def _trimmed_mean(
    table,
    parameters,
    tasks,
    TRIM: tl.constexpr,
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
        held = ()
        for _ in tl.static_range(2 * TRIM):
            held += (tl.full((BLOCK,), float("-inf"), tl.float32),)
        for task in range(2 * TRIM):
            values = _load(table, parameters, parameter, task, columns, entries, ALIGNED, ELEMENT)
            held, _none = _push(held, values, 2 * TRIM)
        total = tl.zeros((BLOCK,), tl.float32)
        for task in tl.range(2 * TRIM, tasks, loop_unroll_factor=4):
            values = _load(table, parameters, parameter, task, columns, entries, ALIGNED, ELEMENT)
            held, values = _median_out(held, values, TRIM)
            total += values
        mean = (total / (tasks - 2 * TRIM)).to(ELEMENT)
        tl.store(pointer_to(result, ALIGNED, ELEMENT) + columns, mean, mask=columns < entries)
