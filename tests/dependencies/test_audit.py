"""The audit finds what is in its list, says what is not, and asks nobody."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from dependencies import audit

RECORD = """
id: PYSEC-1
aliases: [CVE-1]
modified: 2026-10-02T00:00:00Z
affected:
- package: {ecosystem: PyPI, name: NumPy}
  ranges:
  - type: GIT
    events: [{introduced: "0"}, {fixed: abc}]
  - type: ECOSYSTEM
    events: [{introduced: "1.0"}, {fixed: "1.2.1"}, {introduced: "2.0"}, {last_affected: "2.1"}]
  versions: ["1.0", "1.2"]
- package: {ecosystem: npm, name: numpy}
  ranges: [{type: ECOSYSTEM, events: [{introduced: "0"}]}]
"""


def known(**record: Any) -> audit.Advisory:
    base = {"id": "A", "affected": [{"package": {"ecosystem": "PyPI", "name": "numpy"}} | record]}
    (found,) = audit.advisories(base, {"numpy"})
    return found


@pytest.mark.parametrize(
    ("events", "affected", "well"),
    [
        ([{"introduced": "0"}], ["0.1", "2.4.6", "3.0rc1"], []),
        ([{"introduced": "0"}, {"fixed": "2.0"}], ["1.9", "2.0rc1"], ["2.0", "2.0.post1", "10.0"]),
        ([{"introduced": "2.0"}, {"last_affected": "2.1"}], ["2.0", "2.1", "2.1+cpu"],
         ["1.9", "2.1.1"]),
        ([{"introduced": "1.9"}, {"fixed": "1.10"}], ["1.9", "1.9.9"], ["1.10", "1.8"]),
    ],
)  # fmt: skip
def test_ranges(events: list[dict[str, str]], affected: list[str], well: list[str]) -> None:
    found = known(ranges=[{"type": "ECOSYSTEM", "events": events}])
    assert [v for v in affected + well if found.affects(v)] == affected


def test_single_versions() -> None:
    found = known(versions=["2.6.2", "2.6.3", "not a version"])
    assert [v for v in ("2.6.1", "2.6.2", "2.6.3", "2.6.4") if found.affects(v)] == [
        "2.6.2",
        "2.6.3",
    ]


def test_a_database_is_stored_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "vulns" / "numpy").mkdir(parents=True)
    (tmp_path / "vulns" / "numpy" / "PYSEC-1.yaml").write_text(RECORD)
    (tmp_path / "old.json").write_text(
        json.dumps({"id": "W", "withdrawn": "2020", "affected": [{"package": {"name": "numpy"}}]})
    )
    monkeypatch.setattr(audit, "STORED", tmp_path / "stored.json")
    monkeypatch.setattr(audit, "locked", lambda: {"numpy": {"2.1"}, "scipy": {"1.0"}})
    monkeypatch.setattr("sys.argv", ["audit", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        audit.main()
    assert end.value.code == 1
    assert capsys.readouterr().out.startswith(
        "numpy 2.1: PYSEC-1, CVE-1\n1 known against what is locked. 1 stored advisories, "
        "2 packages, list of 2026-10-02"
    )


def test_what_was_not_audited_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document = {"state": "2026-01-01", "covers": ["numpy"], "advisories": []}
    (line,) = audit.audit(document, {"numpy": {"2.1"}, "scipy": {"1.0"}}, date(2026, 3, 1))
    assert line.endswith(
        "1 packages, list of 2026-01-01 (59 days old: store a newer one); NOT audited: the other 1 "
        "packages."
    )
    monkeypatch.setattr(audit, "STORED", tmp_path / "none.json")
    for arguments in ([], [str(tmp_path)]):
        monkeypatch.setattr("sys.argv", ["audit", *arguments])
        with pytest.raises(SystemExit) as end:
            audit.main()
        assert end.value.code == 2
        assert capsys.readouterr().out.startswith("Not audited: ")


def test_nothing_is_known_against_what_is_locked() -> None:
    document = json.loads(audit.STORED.read_text())
    assert len(audit.audit(document, audit.locked(), date.fromisoformat(document["state"]))) == 1
    assert set(document["covers"]) <= set(audit.locked())
