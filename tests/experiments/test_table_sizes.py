"""The kept benchmark of tables holds what the project promises of time and memory."""

from __future__ import annotations

import json
from pathlib import Path

from experiments.benchmarks.table_sizes import CASES

RESULTS = Path(__file__).parents[2] / "experiments" / "results"


def test_the_latest_record_keeps_every_limit() -> None:
    latest = sorted(RESULTS.glob("table_sizes_*.json"))[-1]
    record = json.loads(latest.read_text())
    assert latest.stem == f"table_sizes_{record['date']}"
    found = {r["name"]: r for r in record["results"]}
    assert set(found) == {case.name for case in CASES}
    for case in CASES:
        row = found[case.name]
        assert (row["limit_s"], row["limit_mib"]) == (case.seconds, case.mebibytes)
        assert row["cpu_s"] <= case.seconds
        assert row["peak_mib"] <= case.mebibytes
