from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtobal.ops import random_sign_drop, sign_drop


def masked(block: Tensor, uniform: Tensor, leak: Tensor) -> Tensor:
    """The definition, mask by mask."""
    size = block.abs().sum(0)
    share = torch.where(size > 0, 0.5 * (1 + block.sum(0) / size.where(size > 0, 1.0)), 0.5)
    keep = ((share > uniform) & (block > 0)) | ((share < uniform) & (block < 0))
    return ((leak[:, None] + (1 - leak[:, None]) * keep) * block).sum(0)


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), tasks=st.integers(1, 6), columns=st.integers(0, 40), leaks=st.booleans())
def test_it_is_the_masked_sum(seed: int, tasks: int, columns: int, leaks: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    block = torch.randn(tasks, columns, generator=generator, dtype=torch.float64)
    block[:, torch.rand(columns, generator=generator) < 0.1] = 0.0
    uniform = torch.rand(columns, generator=generator, dtype=torch.float64)
    leak = torch.rand(tasks, generator=generator, dtype=torch.float64) if leaks else None
    before = block.clone()
    found = sign_drop(block, 2 * uniform - 1, leak)
    expected = masked(block, uniform, torch.zeros(tasks, dtype=torch.float64) if leak is None else leak)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert torch.equal(block, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_mean_of_the_draws_is_the_plain_sum(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    block = torch.randn(4, 50, generator=generator, dtype=dtype)
    draws = torch.stack([random_sign_drop(block, generator) for _ in range(4000)])
    positive, negative = block.clamp(min=0).sum(0), block.clamp(max=0).sum(0)
    off = torch.minimum((draws - positive).abs(), (draws - negative).abs())
    assert off.max() <= 1e-5  # every draw is one of the two
    share = positive / (positive - negative)
    error = (share * (1 - share) / len(draws)).sqrt() * (positive - negative)
    deviation = (draws.mean(0) - block.sum(0)).abs()
    assert (deviation <= 5 * error + 1e-5).all()
    assert deviation[error > 0].mean() > 0.1 * error[error > 0].mean()  # and they are random


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1, -1])
def test_where_all_rows_agree_nothing_is_dropped(dtype: torch.dtype, sign: int) -> None:
    """Over several chunks of columns, with entries of very different size."""
    generator = torch.Generator().manual_seed(0)
    block = sign * torch.randn(5, 200_000, generator=generator, dtype=dtype).exp() ** 3
    for _ in range(5):
        torch.testing.assert_close(random_sign_drop(block, generator), block.sum(0))


def test_coordinates_and_calls_are_drawn_independently() -> None:
    generator = torch.Generator().manual_seed(0)
    block = torch.tensor([[1.0], [-1.0]]).repeat(1, 100_001)
    first, second = random_sign_drop(block, generator), random_sign_drop(block, generator)
    for left, right in [(first, second), *((first[lag:], first[:-lag]) for lag in (1, 2, 3, 4, 8, 65536))]:
        assert abs((left * right).mean()) < 5 / len(left) ** 0.5
    assert abs(first.mean()) < 5 / len(first) ** 0.5
    again = torch.Generator().manual_seed(0)
    assert torch.equal(first, random_sign_drop(block, again))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(4, 100_000, generator=generator)
    thresholds = 2 * torch.rand(100_000, generator=generator) - 1
    found = sign_drop(block.cuda(), thresholds.cuda()).cpu()
    different = (found - sign_drop(block, thresholds)).abs() > 1e-4
    assert different.double().mean() < 1e-4  # a rounded sum may turn a sign that hangs by a thread
    drawn = random_sign_drop(block.cuda().abs(), torch.Generator("cuda").manual_seed(0))
    torch.testing.assert_close(drawn.cpu(), block.abs().sum(0))
