from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtobal.ops import trimmed_mean


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), tasks=st.integers(1, 9), trim=st.integers(0, 4))
def test_it_is_the_mean_of_the_middle_of_the_sorted_column(seed: int, tasks: int, trim: int) -> None:
    trim = min(trim, (tasks - 1) // 2)
    block = torch.randint(-3, 4, (tasks, 30), generator=torch.Generator().manual_seed(seed)).double()  # many ties
    before = block.clone()
    expected = block.sort(dim=0).values[trim : tasks - trim].mean(0)
    torch.testing.assert_close(trimmed_mean(block, trim), expected)
    assert torch.equal(block, before)


def test_many_columns_are_the_same_as_few() -> None:
    block = torch.randn(4, 150_000, generator=torch.Generator().manual_seed(0))
    parts = [trimmed_mean(part, 1) for part in block.split(10_000, dim=1)]
    assert torch.equal(trimmed_mean(block, 1), torch.cat(parts))


def test_broken_rows_are_outvoted() -> None:
    block = torch.tensor([[1.0], [2.0], [3.0], [float("inf")], [-1e30]])
    assert trimmed_mean(block, 1).item() == 2.0
