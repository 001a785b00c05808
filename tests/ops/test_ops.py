from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtobal.ops import combine, gramian


def make_rows(seed: int, tasks: int, shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float64) -> list:
    generator = torch.Generator().manual_seed(seed)
    missing = torch.rand(tasks, len(shapes), generator=generator) < 0.3
    return [
        [
            None if missing[task, index] else torch.randn(shape, generator=generator, dtype=dtype)
            for index, shape in enumerate(shapes)
        ]
        for task in range(tasks)
    ]


def dense(rows: list, shapes: list[tuple[int, ...]]) -> torch.Tensor:
    return torch.stack(
        [
            torch.cat(
                [
                    torch.zeros(shape, dtype=torch.float64).flatten() if part is None else part.double().flatten()
                    for part, shape in zip(row, shapes, strict=True)
                ]
            )
            for row in rows
        ]
    )


shape_lists = st.lists(st.sampled_from([(), (1,), (3,), (2, 3), (4, 1, 2)]), min_size=1, max_size=6)


@settings(deadline=None)
@given(seed=st.integers(0, 1000), tasks=st.integers(1, 6), shapes=shape_lists)
def test_gramian_and_combination_equal_the_dense_ones(
    seed: int, tasks: int, shapes: list[tuple[int, ...]]
) -> None:
    rows = make_rows(seed, tasks, shapes)
    jacobian = dense(rows, shapes)
    torch.testing.assert_close(gramian(rows), jacobian @ jacobian.T)
    weights = [0.0 if task == 1 else task - 1.5 for task in range(tasks)]
    combined = combine(rows, weights)
    torch.testing.assert_close(dense([combined], shapes)[0], torch.tensor(weights, dtype=torch.float64) @ jacobian)
    for index in range(len(shapes)):
        assert (combined[index] is None) == all(row[index] is None for row in rows)


@pytest.mark.parametrize("tasks", [2, 12, 13, 30, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_parameters_are_worked_on_in_parts(tasks: int, dtype: torch.dtype) -> None:
    shapes = [(9,), (5, 1000), (140_001,)]
    rows = make_rows(0, tasks, shapes, dtype)
    jacobian = dense(rows, shapes)
    norms = jacobian.norm(dim=1)
    error = (gramian(rows) - jacobian @ jacobian.T).abs() / (norms[:, None] * norms).clamp(min=1e-300)
    assert error.max() < (1e-5 if dtype == torch.bfloat16 else 2e-6)  # sums of products of few digits round alike
    weights = torch.linspace(-1, 1, tasks, dtype=torch.float64)
    found = dense([combine(rows, weights.tolist())], shapes)[0]
    rounding = max(torch.finfo(dtype).eps, 1e-6) * (weights.abs() @ jacobian.abs())  # once, not at every sum
    assert ((found - weights @ jacobian).abs() <= rounding + 1e-7).all()


def test_layouts_may_differ_from_row_to_row() -> None:
    generator = torch.Generator().manual_seed(0)
    plain = [torch.randn(6, 70, 4, 4, generator=generator, dtype=torch.float64) for _ in range(4)]
    last = [gradient.to(memory_format=torch.channels_last) for gradient in plain]
    mixed = [plain[0], last[1], plain[2].transpose(0, 1).contiguous().transpose(0, 1), last[3]]
    wide = torch.randn(1, 4, generator=generator, dtype=torch.float64).expand(5000, 4)
    expected = [[gradient, wide.contiguous()] for gradient in plain]
    for gradients in (last, mixed):
        rows = [[gradient, wide] for gradient in gradients]
        torch.testing.assert_close(gramian(rows), gramian(expected))
        for found, right in zip(
            combine(rows, [1.0, -2.0, 3.0, 0.0]), combine(expected, [1.0, -2.0, 3.0, 0.0]), strict=True
        ):
            torch.testing.assert_close(found, right)
    assert combine([[gradient] for gradient in last], [1.0] * 4)[0].is_contiguous(
        memory_format=torch.channels_last
    )


def test_rows_are_left_as_they_are() -> None:
    rows = make_rows(0, 3, [(3,), (2, 2)])
    before = [[None if part is None else part.clone() for part in row] for row in rows]
    gramian(rows)
    combine(rows, [1.0, 2.0, 3.0])
    for row, old in zip(rows, before, strict=True):
        for part, copy in zip(row, old, strict=True):
            assert part is copy if copy is None else torch.equal(part, copy)


def test_a_weight_of_zero_shuts_out_an_infinite_gradient() -> None:
    rows = [[torch.tensor([float("inf")])], [torch.tensor([2.0])]]
    assert combine(rows, [0.0, 3.0])[0] == torch.tensor([6.0])
    assert combine(rows[::-1], [3.0, 0.0])[0] == torch.tensor([6.0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_is_accumulated_in_float32(dtype: torch.dtype) -> None:
    rows = [[torch.full((4096,), 0.1, dtype=dtype)], [torch.ones(4096, dtype=dtype)]]
    exact = dense(rows, [(4096,)])
    torch.testing.assert_close(gramian(rows), exact @ exact.T, rtol=1e-5, atol=0)


def test_mixed_types_of_parameters() -> None:
    rows = [
        [torch.ones(2, dtype=torch.float64), torch.ones(3)],
        [torch.ones(2, dtype=torch.float64), torch.ones(3)],
    ]
    torch.testing.assert_close(gramian(rows), torch.full((2, 2), 5.0, dtype=torch.float64))
