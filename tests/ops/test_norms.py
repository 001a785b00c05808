from __future__ import annotations

import torch

from mtobal.ops import row_norms


def test_norms_are_those_of_the_whole_rows() -> None:
    rows = torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
    found = row_norms([rows[:, :5], rows[:, 5:].double()])
    torch.testing.assert_close(found, rows.double().norm(dim=1), rtol=1e-6, atol=0)
