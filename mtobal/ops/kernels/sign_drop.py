"""Keeping one sign a coordinate, drawn by its share."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mtobal.ops.kernels.table import addresses_of, find_segment, pointer_to, tables
from mtobal.ops.layout import alike

_WIDTH, _BLOCK = 1 << 12, 1 << 10


def sign_drop(block: Tensor, thresholds: Tensor, leak: Tensor | None) -> Tensor:
    """Keep one sign a coordinate by given thresholds; see `mtobal.ops.sign_drop`."""
    return _launch([block], [thresholds.float().contiguous()], None, leak)[0]


def random_sign_drop(blocks: Sequence[Tensor], generator: torch.Generator, leak: Tensor | None) -> list[Tensor]:
    """Keep one sign a coordinate of blocks on the device of the generator, by thresholds drawn within the kernel.

    They have the distribution that `mtobal.ops.random_sign_drop` states.
    """
    return _launch(blocks, None, generator, leak)


def _launch(
    blocks: Sequence[Tensor],
    thresholds: Sequence[Tensor] | None,
    generator: torch.Generator | None,
    leak: Tensor | None,
) -> list[Tensor]:
    kept = [torch.empty_like(block[0], memory_format=torch.contiguous_format) for block in blocks]
    others = [kept] if thresholds is None else [kept, thresholds]
    columns = [[*alike(block.unbind()), *tensors] for block, *tensors in zip(blocks, *others, strict=True)]
    for table in tables(columns, _WIDTH):
        seed = torch.empty((), dtype=torch.int64, device=table.lines.device)
        if generator is not None:  # it stays on the device, and no two launches share it
            seed.random_(-(2**63), None, generator=generator)
        with torch.cuda.device_of(seed):
            _sign_drop[(table.segments,)](
                seed=seed,
                leaks=seed if leak is None else leak.to(seed.device, torch.float32),
                tasks=len(blocks[0]),
                **table.arguments(),
                RANDOM=generator is not None,
                LEAKS=leak is not None,
                WIDTH=_WIDTH,
                BLOCK=_BLOCK,
            )
    return kept


@triton.jit
def _draw(seed, first, BLOCK: tl.constexpr):
    """Draw the thresholds of a block, odd multiples of ``2^-15``, from its place in the whole."""
    a, b, c, d = tl.randint4x(seed, first // 4 + tl.arange(0, BLOCK // 4))
    words = tl.join(tl.join(a, b), tl.join(c, d)).reshape(BLOCK)
    return ((words.to(tl.int32, bitcast=True) >> 16) | 1).to(tl.float32) * 2.0**-15


@triton.jit(do_not_specialize=["parameters", "tasks"])
def _sign_drop(
    seed,
    leaks,
    table,
    parameters,
    tasks,
    RANDOM: tl.constexpr,
    LEAKS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PADDED: tl.constexpr,
    ALIGNED: tl.constexpr,
    ELEMENT: tl.constexpr,
):
    segment = tl.program_id(0)
    parameter, start, end, entries = find_segment(table, parameters, segment, WIDTH, PADDED, ALIGNED)
    result = addresses_of(table, parameters, parameter, tasks, True)
    for first in range(start, end, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        mask = columns < entries
        total = tl.zeros((BLOCK,), tl.float32)
        size = tl.zeros((BLOCK,), tl.float32)
        total_held = tl.zeros((BLOCK,), tl.float32)  # of what does not leak
        size_held = tl.zeros((BLOCK,), tl.float32)
        for task in tl.range(0, tasks, loop_unroll_factor=4):
            address = addresses_of(table, parameters, parameter, task, True)
            values = tl.load(pointer_to(address, ALIGNED, ELEMENT) + columns, mask=mask, other=0.0).to(tl.float32)
            total += values
            size += tl.abs(values)
            if LEAKS:
                held = (1 - tl.load(leaks + task)) * values
                total_held += held
                size_held += tl.abs(held)
        if RANDOM:
            thresholds = _draw(tl.load(seed), segment.to(tl.int64) * WIDTH + (first - start), BLOCK)
        else:
            given = addresses_of(table, parameters, parameter, tasks + 1, True)
            thresholds = tl.load(pointer_to(given, ALIGNED, tl.float32) + columns, mask=mask, other=0.0)
        positive = total >= thresholds * size
        if LEAKS:
            kept = (total - total_held) + 0.5 * (total_held + tl.where(positive, size_held, -size_held))
        else:
            kept = 0.5 * (total + tl.where(positive, size, -size))
        tl.store(pointer_to(result, ALIGNED, ELEMENT) + columns, kept.to(ELEMENT), mask=mask)
