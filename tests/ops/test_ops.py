from __future__ import annotations

import pytest
import torch
from hypothesis import given
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
