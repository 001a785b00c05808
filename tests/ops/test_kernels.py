"""Kernels against float64: on a CUDA device, and in Triton's interpreter when `test_interpreter` asks."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtobal.ops import (
    Jacobian,
    combine,
    gramian,
    random_sign_drop_of_blocks,
    row_norms,
    sign_drop,
    trimmed_mean,
    trimmed_mean_of_blocks,
)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
if INTERPRETED:  # NumPy computes there, and warns of infinities
    pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
else:
    pytestmark = [
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    ]

TYPES = [torch.float32, torch.bfloat16, torch.float16]
# What a result of each type is rounded to.
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}

numbers_of_tasks = st.sampled_from([1, 2, 3, 5, 8, 9, 16, 17, 31, 40, 100])
# Sizes below and above those of a block and of a segment; some allow loads of 16 bytes and some do not.
shape_lists = st.lists(
    st.sampled_from([(), (1,), (7,), (16,), (33, 3), (8, 2, 3, 3), (2, 1025)]),
    min_size=1,
    max_size=4,
)
examples = settings(deadline=None, max_examples=12)


@pytest.fixture(autouse=True, scope="module")
def kernels_for_all_tensors() -> Iterator[None]:
    """The interpreter takes tensors on the CPU, which otherwise go to plain torch."""
    with pytest.MonkeyPatch.context() as patch:
        if INTERPRETED:
            for operation in ("gramian", "combine", "norms", "sign_drop", "trimmed_mean"):
                patch.setattr(
                    sys.modules[f"mtobal.ops.{operation}"], "use_kernels", lambda tensors: bool(list(tensors))
                )
        yield


def laid_out(tensor: Tensor, number: int) -> Tensor:
    """Give a tensor one of the memory layouts in which autograd hands out gradients."""
    if number == 1 and tensor.dim() == 4:
        return tensor.to(memory_format=torch.channels_last)
    if number == 2 and tensor.dim() == 2:
        return tensor.T.contiguous().T
    if number == 3:  # a view that starts off the 16 bytes
        return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)
    if number == 4 and tensor.dim():
        return tensor[:1].expand(tensor.shape)
    return tensor


def make_rows(
    seed: int, tasks: int, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype
) -> list[list[Tensor | None]]:
    """Gradients of which some are missing and some lie otherwise than the rest."""
    generator = torch.Generator().manual_seed(seed)

    def draw(limit: int) -> int:
        return int(torch.randint(limit, (), generator=generator))

    columns: list[list[Tensor | None]] = []
    for shape in shapes:
        common = draw(5)
        columns.append([])
        for _ in range(tasks):
            gradient = torch.randn(shape, generator=generator).to(DEVICE, dtype)
            layout = common if draw(10) else draw(5)
            columns[-1].append(laid_out(gradient, layout) if draw(4) else None)
    return [list(row) for row in zip(*columns, strict=True)]


def dense(rows: list[list[Tensor | None]], shapes: Sequence[tuple[int, ...]]) -> Tensor:
    return torch.stack(
        [
            torch.cat(
                [
                    (torch.zeros(shape) if part is None else part.cpu()).double().flatten()
                    for part, shape in zip(row, shapes, strict=True)
                ]
            )
            for row in rows
        ]
    )


def assert_gramian(found: Tensor, jacobian: Tensor) -> None:
    norms = jacobian.norm(dim=1)
    error = (found - jacobian @ jacobian.T).abs() / (norms[:, None] * norms).clamp(min=1e-300)
    assert error.max() < 2e-6


@examples
@given(seed=st.integers(0, 10**6), tasks=numbers_of_tasks, shapes=shape_lists, dtype=st.sampled_from(TYPES))
def test_gramian_and_combination(seed: int, tasks: int, shapes: list[tuple[int, ...]], dtype: torch.dtype) -> None:
    rows = make_rows(seed, tasks, shapes, dtype)
    jacobian = dense(rows, shapes)
    found = gramian(rows)
    assert found.dtype == torch.float64
    assert found.device.type == "cpu"
    assert torch.equal(found, found.T)
    assert_gramian(found, jacobian)
    weights = torch.randn(tasks, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weights[tasks // 2] = 0.0
    combined = combine(rows, weights.tolist())
    for index, result in enumerate(combined):
        gradients = [row[index] for row in rows if row[index] is not None]
        assert (result is None) == (not gradients)
        if result is not None:
            assert result.dtype == dtype
            assert result.shape == gradients[0].shape
    error = (dense([combined], shapes)[0] - weights @ jacobian).abs()
    assert (error <= ROUNDING[dtype] * (weights.abs() @ jacobian.abs()) + 1e-7).all()


def test_results_do_not_change_from_run_to_run() -> None:
    shapes = [(9000,) if INTERPRETED else (3_000_000,), (17,)]
    for tasks in (3, 12):
        rows = make_rows(0, tasks, shapes, torch.float32)
        found = gramian(rows)
        assert_gramian(found, dense(rows, shapes))
        assert torch.equal(found, gramian(rows))


@pytest.mark.parametrize("tasks", [3, 12])
def test_rows_of_very_different_size(tasks: int) -> None:
    """No row disturbs the inner products of others."""
    rows = torch.randn(tasks, 5000, generator=torch.Generator().manual_seed(0))
    rows *= 10.0 ** torch.linspace(-15, 15, tasks)[:, None]
    assert_gramian(gramian([[row.to(DEVICE)] for row in rows]), rows.double())
    rows[-1, 7] = torch.inf
    found = gramian([[row.to(DEVICE)] for row in rows])
    assert_gramian(found[:-1, :-1], rows[:-1].double())
    assert not found[-1].isfinite().any()


def test_a_weight_of_zero_shuts_out_infinite_gradients() -> None:
    rows = [[torch.full((5,), value, device=DEVICE)] for value in (torch.inf, 2.0, torch.nan)]
    assert torch.equal(combine(rows, [0.0, 3.0, 0.0])[0].cpu(), torch.full((5,), 6.0))
    assert torch.equal(combine(rows, [0.0, 0.0, 0.0])[0].cpu(), torch.zeros(5))


def test_a_gradient_keeps_its_layout() -> None:
    weight = torch.randn(6, 4, 3, 3).to(DEVICE, memory_format=torch.channels_last)
    [combined] = combine([[weight], [weight]], [0.25, 0.5])
    assert combined.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(combined, 0.75 * weight)


def test_many_small_parameters_take_one_launch() -> None:
    from mtobal.ops.kernels.table import tables

    columns = [[torch.ones(16, device=DEVICE), None, torch.ones(16, device=DEVICE)] for _ in range(100)]
    [table] = tables(columns, 1024)
    assert table.segments == 100
    odd = [[torch.ones(15, device=DEVICE), None, torch.ones(15, device=DEVICE)] for _ in range(100)]
    assert len(tables(columns + odd, 1024)) == 2


def test_blocks_of_a_jacobian() -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = tuple(torch.randn(4, n, generator=generator).to(DEVICE) for n in (5, 3000, 64))
    jacobian, rows = Jacobian(blocks, ("a", "b", "c")), torch.cat(blocks, dim=1).cpu().double()
    assert_gramian(jacobian.gramian(), rows)
    torch.testing.assert_close(row_norms(blocks), rows.norm(dim=1), rtol=1e-6, atol=0)
    weights = torch.tensor([0.5, 0.0, -2.0, 1.0], dtype=torch.float64)
    combined = torch.cat(jacobian.combine(weights)).cpu()
    torch.testing.assert_close(combined.double(), weights @ rows, rtol=1e-5, atol=1e-6)


def test_no_parameter_at_all() -> None:
    assert torch.equal(gramian([[None], [None]]), torch.zeros(2, 2, dtype=torch.float64))
    assert combine([[None], [None]], [1.0, 2.0]) == [None]
    empty = torch.zeros(0, 3, device=DEVICE)
    assert torch.equal(gramian([[empty], [empty]]), torch.zeros(2, 2, dtype=torch.float64))
    assert combine([[empty], [empty]], [1.0, 2.0])[0].shape == (0, 3)


# ------------------------------------------------------------------------------------------------ sign dropout


@examples
@given(
    seed=st.integers(0, 10**6),
    tasks=numbers_of_tasks,
    columns=st.sampled_from([1, 8, 37, 4100]),
    leaks=st.booleans(),
    dtype=st.sampled_from(TYPES),
)
def test_sign_drop_is_the_masked_sum(seed: int, tasks: int, columns: int, leaks: bool, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    block = torch.randn(tasks, columns, generator=generator).to(dtype)
    block[:, torch.rand(columns, generator=generator) < 0.1] = 0.0
    uniform = torch.rand(columns, generator=generator)
    leak = torch.rand(tasks, generator=generator) if leaks else torch.zeros(tasks)
    found = sign_drop(block.to(DEVICE), (2 * uniform - 1).to(DEVICE), leak.to(DEVICE) if leaks else None)
    assert found.dtype == dtype

    exact, held = block.double(), (1 - leak.double())[:, None]
    size = exact.abs().sum(0)
    share = torch.where(size > 0, 0.5 * (1 + exact.sum(0) / size.where(size > 0, 1.0)), 0.5)
    keep = torch.where(share > uniform, exact > 0, exact < 0)
    expected = ((leak.double()[:, None] + held * keep) * exact).sum(0)
    clear = (share - uniform).abs() > 1e-5  # rounding decides on the others
    error = (found.cpu().double() - expected).abs()
    assert (error <= ROUNDING[dtype] * size + 1e-7)[clear].all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_random_sign_drop_draws_each_sign_by_its_share(dtype: torch.dtype) -> None:
    values = torch.randn(4, 50, generator=torch.Generator().manual_seed(1)).to(dtype)
    copies = 200
    block = values.repeat(1, copies).to(DEVICE)
    generator = torch.Generator(DEVICE).manual_seed(3)
    [first, other], [second] = (
        random_sign_drop_of_blocks(blocks, generator) for blocks in ([block, block[:, :49]], [block])
    )
    exact = values.double()
    positive, negative = exact.clamp(min=0).sum(0), exact.clamp(max=0).sum(0)
    share = positive / (positive - negative)
    draws = torch.cat([first, second]).cpu().double().view(2 * copies, 50)
    kept = (draws - negative).abs() > (draws - positive).abs()
    assert (draws - torch.where(kept, positive, negative)).abs().max() <= 4 * ROUNDING[dtype]
    error = (share * (1 - share) / len(draws)).sqrt()
    deviation = (kept.double().mean(0) - share).abs()
    assert (deviation <= 4.5 * error + 1e-3).all()
    assert deviation.mean() > 0.1 * error.mean()  # and they are random
    assert not torch.equal(first, second)
    assert not torch.equal(first[:49], other)
    again = torch.Generator(DEVICE).manual_seed(3)
    assert torch.equal(first, random_sign_drop_of_blocks([block, block[:, :49]], again)[0])


@pytest.mark.parametrize("sign", [1, -1])
def test_where_all_rows_agree_nothing_is_dropped(sign: int) -> None:
    block = sign * torch.randn(5, 20_000, generator=torch.Generator().manual_seed(0)).exp() ** 3
    [found] = random_sign_drop_of_blocks([block.to(DEVICE)], torch.Generator(DEVICE).manual_seed(0))
    torch.testing.assert_close(found.cpu(), block.sum(0))


def test_coordinates_are_drawn_independently() -> None:
    block = torch.tensor([[1.0], [-1.0]], device=DEVICE).repeat(1, 20_001)
    [draws] = random_sign_drop_of_blocks([block], torch.Generator(DEVICE).manual_seed(0))
    for lag in (1, 2, 3, 4, 256, 1024, 4096):
        assert abs((draws[lag:] * draws[:-lag]).mean()) < 5 / len(draws) ** 0.5
    assert abs(draws.mean()) < 5 / len(draws) ** 0.5


# ------------------------------------------------------------------------------------------------ trimmed mean


@examples
@given(
    seed=st.integers(0, 10**6),
    tasks=numbers_of_tasks,
    trim=st.sampled_from([0, 1, 2, 6]),
    columns=st.sampled_from([1, 8, 37, 1030]),
    dtype=st.sampled_from(TYPES),
)
def test_trimmed_mean_is_that_of_the_middle(
    seed: int, tasks: int, trim: int, columns: int, dtype: torch.dtype
) -> None:
    trim = min(trim, (tasks - 1) // 2)
    generator = torch.Generator().manual_seed(seed)
    block = torch.randint(-3, 4, (tasks, columns), generator=generator).to(dtype)  # many ties
    block += torch.rand(tasks, 1, generator=generator).to(dtype)
    expected = block.double().sort(dim=0).values[trim : tasks - trim].mean(0)
    found = trimmed_mean(block.to(DEVICE), trim)
    assert found.dtype == dtype
    torch.testing.assert_close(found.cpu().double(), expected, rtol=0, atol=4 * ROUNDING[dtype])


def test_broken_rows_are_outvoted_and_nan_is_not_hidden() -> None:
    column = torch.tensor(
        [[1.0], [torch.inf], [2.0], [-torch.inf], [-torch.inf], [torch.inf], [3.0]], device=DEVICE
    )
    assert trimmed_mean(column, 2).item() == 2.0
    assert trimmed_mean(column, 1).isnan().all()  # of infinities of both signs
    column[0] = torch.nan
    assert trimmed_mean(column, 2).isnan().all()


def test_trimmed_means_of_several_blocks() -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = [torch.randn(n, 6, generator=generator).T.to(DEVICE) for n in (3, 5000)]
    for block, mean in zip(blocks, trimmed_mean_of_blocks(blocks, 1), strict=True):
        torch.testing.assert_close(mean, block.sort(dim=0).values[1:-1].mean(0))


# --------------------------------------------------------------------------------------------- on a device only


@pytest.mark.skipif(INTERPRETED, reason="the interpreter has no device to wait for")
def test_nothing_waits_for_the_device() -> None:
    from mtobal.ops.kernels import gramian as kernel

    blocks = [torch.randn(3, n, device="cuda") for n in (1000, 17)]
    columns = [block.unbind() for block in blocks]
    rows = [list(row) for row in zip(*columns, strict=True)]
    generator = torch.Generator("cuda").manual_seed(0)

    def run() -> None:
        kernel.gramian(columns, 3)
        combine(rows, [1.0, 2.0, 3.0])
        random_sign_drop_of_blocks(blocks, generator)
        trimmed_mean_of_blocks(blocks, 1)

    run()  # compiles
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode(mode)
