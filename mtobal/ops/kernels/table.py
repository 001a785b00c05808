"""Where gradients lie: with this, one launch works on all parameters, however small.

Parameters are cut into segments of a fixed width, numbered through. A program takes segments by their number and
looks up in the table which parameter that is and where the gradients of its tasks begin.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor

# The lines of a table: the first segment of each parameter, its number of entries, then addresses.
FIRST, ENTRIES, ADDRESSES = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)

_ELEMENTS = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@dataclass(frozen=True)
class Table:
    """Addresses of tensors that one launch works on, one column a parameter.

    Attributes
    ----------
    lines : Tensor of shape (2 + T, P), int64
        On the device of the gradients. Zero is the address of what is not there.
    segments : int
        How many there are in all.
    aligned : bool
        Whether all addresses and sizes allow loads of 16 bytes.
    dtype : torch.dtype
        Of the gradients.
    tensors : list of list of Tensor
        What lies at the addresses, kept alive until the launch.
    """

    lines: Tensor
    segments: int
    aligned: bool
    dtype: torch.dtype
    tensors: list[Sequence[Tensor | None]]

    def arguments(self) -> dict[str, object]:
        """Return what every kernel takes of the table."""
        parameters = self.lines.shape[1]
        return {
            "table": self.lines,
            "parameters": parameters,
            "PADDED": triton.next_power_of_2(parameters),
            "ALIGNED": self.aligned,
            "ELEMENT": _ELEMENTS[self.dtype],
        }


def tables(columns: Iterable[Sequence[Tensor | None]], width: int) -> list[Table]:
    """Write down where tensors lie, in one table for each device, type and alignment.

    Parameters
    ----------
    columns : iterable of P sequences of T tensors
        The tensors that belong to one parameter, as `alike` leaves them. The first decides on the type.
    width : int
        Entries of a segment.
    """
    groups: dict[tuple[torch.device, torch.dtype, bool], list[Sequence[Tensor | None]]] = {}
    for column in columns:
        present = [tensor for tensor in column if tensor is not None]
        like = present[0]
        if like.numel():
            aligned = like.numel() % 8 == 0 and all(tensor.data_ptr() % 16 == 0 for tensor in present)
            groups.setdefault((like.device, like.dtype, aligned), []).append(column)
    return [_table(found, width, device, dtype, aligned) for (device, dtype, aligned), found in groups.items()]


def _table(
    columns: list[Sequence[Tensor | None]], width: int, device: torch.device, dtype: torch.dtype, aligned: bool
) -> Table:
    sizes = [next(tensor.numel() for tensor in column if tensor is not None) for column in columns]
    ends = list(accumulate(-(-size // width) for size in sizes))
    addresses = [
        [0 if tensor is None else tensor.data_ptr() for tensor in line] for line in zip(*columns, strict=True)
    ]
    # From pinned memory the copy waits for nothing that is under way on the device.
    lines = torch.tensor([[0, *ends[:-1]], sizes, *addresses], pin_memory=device.type == "cuda")
    return Table(lines.to(device, non_blocking=True), ends[-1], aligned, dtype, columns)


@triton.jit
def find_segment(table, parameters, segment, WIDTH: tl.constexpr, PADDED: tl.constexpr, ALIGNED: tl.constexpr):
    """Return the parameter of a segment, where the segment starts and ends, and the entries of the parameter."""
    numbers = tl.arange(0, PADDED)
    first = tl.load(table + FIRST * parameters + numbers, mask=numbers < parameters, other=2**62)
    parameter = tl.sum((first <= segment).to(tl.int32)) - 1
    entries = tl.load(table + ENTRIES * parameters + parameter)
    if ALIGNED:
        entries = tl.multiple_of(entries, 8)  # so that masks, too, are the same for 16 bytes
    start = (segment - tl.load(table + FIRST * parameters + parameter)) * WIDTH
    return parameter, start, tl.minimum(start + WIDTH, entries), entries


@triton.jit
def addresses_of(table, parameters, parameter, number, mask):
    """Return the address of a tensor, or of several, by their number among those of the parameter."""
    return tl.load(table + (ADDRESSES + number) * parameters + parameter, mask=mask, other=0)


@triton.jit
def pointer_to(address, ALIGNED: tl.constexpr, ELEMENT: tl.constexpr):
    """Return a pointer to an address, or several; the compiler is told that it may load 16 bytes at once."""
    pointer = address.to(tl.pointer_type(ELEMENT))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer
