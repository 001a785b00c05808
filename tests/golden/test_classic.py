"""Every golden record of a registered strategy, within the record's own tolerance.

Set MTOBAL_GOLDEN_DIR to run the records of another folder.
"""

from __future__ import annotations

import pytest

import mtobal
from golden.adapters import load_adapters
from golden.records import Record, load

ADAPTERS = load_adapters()
# Names in the records that differ from the registered ones.
RECORD_NAMES = {"ew": ("ew_sum", "ew_mean"), "igb_v1": ("igbv1",), "imtl": ("imtl_hybrid",)}
RECORDS = load("classic.json")


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(record, id=f"{number}-{record['strategy']}-{record['case']}")
        for number, record in enumerate(RECORDS)
        if record["strategy"] in ADAPTERS
    ],
)
def test_record(record: Record) -> None:
    ADAPTERS[record["strategy"]](record)


@pytest.mark.parametrize("name", mtobal.strategies.available())
def test_no_registered_strategy_leaves_its_records_out(name: str) -> None:
    recorded = {record["strategy"] for record in RECORDS}
    for record_name in RECORD_NAMES.get(name, (name,)):
        assert record_name not in recorded or record_name in ADAPTERS, f"no adapter for {record_name}"
