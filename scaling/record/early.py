"""Asking a run to stop early: a file in its folder, seen within seconds wherever the run trains.

    ask_to_stop(run_dir, reason)     the run saves, ends as `stopped`, and keeps the reason
    asked_to_stop(run_dir)           the reason; "" where nobody asked
    go_on(run_dir)                   it may be trained again, and is not asked a second time

A stopped run has not failed: its checkpoint stays, and `linscale run --resume-stopped` goes on from
it with the numbers of a run that was never stopped. Fits leave it out, and say so.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from linscale.json_reader import BadRecord, find_object
from scaling.config.run import RunConfig
from scaling.record.head import read_head
from scaling.record.record import RunRecord
from scaling.system.files import read_json, write_json

FILE = "stop.json"


def ask_to_stop(run_dir: Path, reason: str) -> bool:
    """Ask a run to stop; False where it was asked before, and went on or is to go on."""
    if read_json(run_dir / FILE):
        return False
    write_json(run_dir / FILE, {"reason": reason, "asked": _now(), "withdrawn": None})
    return True


def asked_to_stop(run_dir: Path) -> str:
    """Why a run is to stop; empty where it is not. A file that cannot be read asks for nothing."""
    try:
        found = find_object(run_dir / FILE)
        return "" if found.has("withdrawn") else found.word("reason", "")
    except BadRecord:
        return ""


def go_on(config: RunConfig, sweep_dir: Path) -> bool:
    """Let a run that was stopped early be trained again; False where it was not stopped."""
    run_dir = sweep_dir / config.run_id
    if read_head(run_dir).state != "stopped":
        return False
    write_json(run_dir / FILE, read_json(run_dir / FILE) | {"withdrawn": _now()})
    record = RunRecord(config, sweep_dir)
    record.write_status("preempted", reason="was stopped early, and is to go on")
    record.log("goes on after it was stopped early")
    return True


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
