"""The golden values of the systems this project grew from, by the part of the file that each has.

Set MTOBAL_GOLDEN_DIR to run the records of another folder.
"""

from __future__ import annotations

import pytest

from golden.adapters.seeds import load_seeds
from golden.records import load

ADAPTERS = load_seeds()
RECORDS = {key: part for key, part in load("seeds.json").items() if not key.startswith("_")}


@pytest.mark.parametrize("key", RECORDS)
def test_record(key: str) -> None:
    assert key in ADAPTERS, f"no adapter for {key}"
    ADAPTERS[key](RECORDS[key])
