from __future__ import annotations

import torch

from mtobal.ops import pairwise_cosines


def test_cosines_are_those_of_the_rows() -> None:
    rows = torch.randn(4, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unit = rows / rows.norm(dim=1, keepdim=True)
    torch.testing.assert_close(pairwise_cosines(rows @ rows.T), unit @ unit.T)


def test_rounding_leads_to_no_cosine_beyond_one() -> None:
    rounded = torch.tensor([[1.0, 1.0 + 1e-12], [1.0 + 1e-12, 1.0]], dtype=torch.float64)
    assert pairwise_cosines(rounded)[0, 1] == 1.0
    assert pairwise_cosines(rounded * torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))[0, 1] == -1.0


def test_a_zero_row_has_no_direction() -> None:
    found = pairwise_cosines(torch.tensor([[4.0, 0.0], [0.0, 0.0]]))
    assert found[0, 0] == 1.0
    assert found.isnan().tolist() == [[False, True], [True, True]]
