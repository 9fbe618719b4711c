"""Status: what a directory of runs says of itself, dead processes included."""

from __future__ import annotations

import io
import json
import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from linscale.errors import LinscaleError
from scaling.cli.main import app
from scaling.sweep import status as status_module
from scaling.sweep.status import STYLES, status_rows, status_table, summary, watch
from scaling.sweep.status_page import COLOURS, status_page
from scaling.system.claims import claim
from tests.support.contrast import contrast


def write_run(sweep: Path, name: str, *, age: float = 0.0, **status: Any) -> Path:
    folder = sweep / name
    folder.mkdir(parents=True)
    config = {"size": "d64", "model": {"arch": "tnl"}}
    (folder / "config.json").write_text(json.dumps(config))
    defaults = {
        "state": "running",
        "reason": "",
        "tokens": 500,
        "tokens_total": 2000,
        "loss": 2.5,
        "tokens_per_second": 1000.0,
        "eta_seconds": 1.5,
        "updated": (datetime.now(UTC) - timedelta(seconds=age)).isoformat(),
        "hostname": "here",
    }
    (folder / "status.json").write_text(json.dumps(defaults | status))
    return folder


def shown(sweep: Path) -> str:
    console = Console(width=120, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        console.print(status_table(sweep, status_rows(sweep)))
    return " ".join(console.export_text().split())


def test_rows_in_the_order_of_the_sweep_with_what_is_not_begun(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps({"runs": ["b", "a", "later"]}))
    write_run(tmp_path, "a", state="done", tokens=2000)
    write_run(tmp_path, "b", state="failed", reason="no disk")
    write_run(tmp_path, "unlisted", state="diverged", reason="nan")
    rows = status_rows(tmp_path)
    assert [row["run_id"] for row in rows] == ["b", "a", "later", "unlisted"]
    assert [row["state"] for row in rows] == ["failed", "done", "planned", "diverged"]
    assert rows[0]["reason"] == "no disk"
    assert rows[1]["arch"] == "tnl"
    assert rows[2]["tokens"] == 0
    assert rows[2]["tokens_total"] is None
    assert summary(rows) == "1 done, 1 diverged, 1 failed, 1 planned"
    text = shown(tmp_path)
    assert "b: no disk" in text
    assert "unlisted: nan" in text


def test_a_static_page(tmp_path: Path) -> None:
    """Every run and reason, escaped; the page renews itself while runs are left, not later."""
    sweep = tmp_path / "sweep"
    write_run(sweep, "a", state="done", tokens=2000)
    write_run(sweep, "b", state="failed", reason="loss < 0 & <b>rising</b>")
    page = tmp_path / "page.html"
    result = CliRunner().invoke(app, ["status", str(sweep), "--html", str(page)])
    assert result.exit_code == 0
    text = page.read_text()
    assert "<h1>sweep: 1 done, 1 failed</h1>" in text
    assert "loss &lt; 0 &amp; &lt;b&gt;rising&lt;/b&gt;" in text
    assert 'max="2000" value="2000"' in text
    assert "refresh" not in text
    with claim(write_run(sweep, "c")):  # pyright: ignore[reportOptionalContextManager]
        CliRunner().invoke(app, ["status", str(sweep), "--html", str(page)])
    text = page.read_text()
    assert "1 running" in text
    assert '<meta http-equiv="refresh"' in text


def test_a_run_outside_its_band_is_marked(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path, name, state="done")
    rows = status_rows(tmp_path)
    assert [row["health"] for row in rows] == [None, None]
    rows[0]["health"] = {"deviation": -0.42, "band": 3.1, "outside": False}
    rows[1]["health"] = {"deviation": 7.25, "band": 3.1, "outside": True}
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(status_table(tmp_path, rows))
    text = console.export_text()
    assert "off law" in text
    assert "-0.4%" in text
    assert "-0.4%!" not in text
    assert "+7.2%!" in text
    assert "+7.2%!</b>" in status_page(tmp_path, rows)


def test_the_page_can_be_read_on_a_phone_and_in_the_dark(tmp_path: Path) -> None:
    """Words of every state on both papers; every cell says what it is; no width is fixed."""
    for light, dark in COLOURS.values():
        assert contrast(light, "#ffffff") >= 4.5
        assert contrast(dark, "#0d1117") >= 4.5
    write_run(tmp_path, "a", state="done", tokens=2000)
    text = status_page(tmp_path, status_rows(tmp_path))
    assert "prefers-color-scheme: dark" in text
    assert "@media (max-width" in text
    assert 'name="viewport"' in text
    assert '<th scope="row">a</th>' in text
    assert '<td data-of="state"><span class="done">done</span></td>' in text
    assert re.findall(r"<td(?! data-of=)", text) == []


def test_page_and_table_know_the_same_states() -> None:
    assert COLOURS.keys() == STYLES.keys()


def test_milestones_give_the_validation_loss(tmp_path: Path) -> None:
    run = write_run(tmp_path, "a")
    lines = [json.dumps({"tokens": t, "val_loss": loss}) for t, loss in ((500, 3.0), (900, 2.5))]
    (run / "milestones.jsonl").write_text("\n".join(lines) + '\n{"torn')
    (row,) = status_rows(tmp_path)
    assert (row["milestones"], row["val_loss"]) == (2, 2.5)


def test_a_running_run_without_a_process_is_interrupted(tmp_path: Path) -> None:
    write_run(tmp_path, "killed", age=3600)
    write_run(tmp_path, "alive", age=1)
    held = claim(write_run(tmp_path, "slow", age=3600))
    assert held is not None
    with held:
        rows = {row["run_id"]: row for row in status_rows(tmp_path)}
    assert {name: row["state"] for name, row in rows.items()} == {
        "killed": "interrupted",
        "alive": "running",
        "slow": "running",
    }
    assert rows["killed"]["eta_seconds"] is rows["killed"]["tokens_per_second"] is None
    assert rows["alive"]["eta_seconds"] == 1.5
    assert "run again to continue" in rows["killed"]["reason"]


def test_a_claimed_run_is_running_whatever_it_was(tmp_path: Path) -> None:
    held = claim(write_run(tmp_path, "again", state="failed", reason="no disk"))
    assert held is not None
    with held:
        (row,) = status_rows(tmp_path)
    assert (row["state"], row["reason"]) == ("running", "")
    (row,) = status_rows(tmp_path)
    assert (row["state"], row["reason"]) == ("failed", "no disk")


def test_mixed_revisions_are_said(tmp_path: Path) -> None:
    for name, revision in (("a", "aaaaaaaaaaaaaaaa"), ("b", "bbbbbbbbbbbbbbbb"), ("c", None)):
        run = write_run(tmp_path, name, state="done")
        (run / "environment.json").write_text(json.dumps({"git_revision": revision}))
    assert "different revisions of the code: aaaaaaaaaa (1 runs), bbbbbbbbbb (1 runs)" in shown(
        tmp_path
    )
    (tmp_path / "b" / "environment.json").unlink()
    assert "different revisions" not in shown(tmp_path)


def test_damaged_files_do_not_hide_the_others(tmp_path: Path) -> None:
    write_run(tmp_path, "a", state="done")
    run = write_run(tmp_path, "b")
    for name in ("status.json", "config.json", "milestones.jsonl", "environment.json"):
        (run / name).write_text('{"torn')
    (tmp_path / "sweep.json").write_text("[]")
    whole, bad = status_rows(tmp_path)
    assert (whole["state"], bad["state"]) == ("done", "unreadable")
    assert bad["reason"].startswith("config.json is not JSON")
    assert "b: config.json is not JSON" in shown(tmp_path)


def test_no_sweep_is_explained(tmp_path: Path) -> None:
    with pytest.raises(LinscaleError, match="no such directory"):
        status_rows(tmp_path / "none")
    with pytest.raises(LinscaleError, match=r"neither a sweep\.json nor runs"):
        status_rows(tmp_path)


def test_watch_ends_when_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path, "a")
    looks = 0

    def sleep(_: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            status = json.loads((run / "status.json").read_text()) | {"state": "done"}
            (run / "status.json").write_text(json.dumps(status))

    monkeypatch.setattr(status_module.time, "sleep", sleep)
    watch(tmp_path)
    assert looks == 3


def test_command_prints_rows_as_json(tmp_path: Path) -> None:
    write_run(tmp_path, "a", state="done")
    result = CliRunner().invoke(app, ["status", str(tmp_path), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.output) == status_rows(tmp_path)
