"""Whether the directory of a run holds what was written: its record and its checkpoints.

What milestones.jsonl says is held against the rest of the record by `analysis.io.milestones`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from linscale.errors import LinscaleError
from linscale.json_reader import BadRecord, find_object, parse_lines, read_object
from linscale.sealed import LINE_SEAL, is_whole
from models.errors import ConfigError
from scaling.record.checkpoint_files import (
    MANIFEST,
    CheckpointError,
    Manifest,
    read_manifest,
    verify_file,
)
from scaling.record.head import State, read_head
from scaling.record.record import RunRecord

LINES = ("metrics.jsonl", "milestones.jsonl", "evals.jsonl", "rewinds.jsonl")


def run_problems(run_dir: Path) -> list[str]:
    """What is wrong with a run's directory, one line each; its checkpoints are read as a whole.

    A torn last line, which a kill leaves, and files that the manifest does not name yet are no
    damage while the run is not done.
    """
    done = read_head(run_dir).state == "done"
    manifest, problems = _manifest(run_dir)
    problems += _configuration(run_dir)
    for name in ("status.json", "environment.json"):
        try:
            find_object(run_dir / name)
        except BadRecord as error:
            problems.append(str(error))
    state = read_head(run_dir).status.get("state", "planned")
    if state not in get_args(State):
        problems.append(f"status.json: state is {str(state)[:40]!r}")
    for name in LINES:
        problems += _lines(run_dir / name, done)
    for name, entry in manifest.files.items():
        try:
            verify_file(run_dir / "checkpoints" / name, entry)
        except CheckpointError as error:
            problems.append(str(error))
    return problems + _weights(run_dir, manifest)


def _manifest(run_dir: Path) -> tuple[Manifest, list[str]]:
    try:
        return read_manifest(run_dir / "checkpoints" / MANIFEST), []
    except CheckpointError as error:
        return Manifest(files={}, resume=[]), [str(error)]


def _configuration(run_dir: Path) -> list[str]:
    """config.json must give the run's name, and accounting.json be what it costs."""
    try:
        config = read_head(run_dir).run_config()
        if config.run_id != run_dir.name:
            return [f"config.json: is the configuration of {config.run_id}"]
        expected = RunRecord(config, run_dir.parent).accounting["flops_per_token"]
        accounting = read_object(run_dir / "accounting.json").part("flops_per_token")
        return [
            f"accounting.json: {convention} FLOPs a token are not those of this configuration"
            for convention in ("exact", "paper")
            if accounting.part(convention).number("total") != expected[convention]["total"]
        ]
    except (ConfigError, LinscaleError) as error:
        return [str(error)]


def _lines(path: Path, done: bool) -> list[str]:
    if not path.is_file():
        return []
    try:
        data = path.read_bytes()
    except OSError as error:
        return [f"{path.name}: cannot be read ({error.strerror})"]
    bad = parse_lines(data)[1]
    torn = not done and not data.endswith(b"\n")
    return [f"{path.name}: {bad} lines cannot be read"] if bad > torn else []


def _weights(run_dir: Path, manifest: Manifest) -> list[str]:
    """Every milestone has its weights, with the hash that it names."""
    path = run_dir / "milestones.jsonl"
    records: list[dict[str, Any]] = parse_lines(path.read_bytes())[0] if path.is_file() else []
    problems: list[str] = []
    for record in records:
        tokens, name = record.get("tokens"), str(record.get("checkpoint"))
        entry = manifest.files.get(name.removeprefix("checkpoints/"))
        if not is_whole(record, LINE_SEAL):
            problems.append(f"milestones.jsonl: the line of {tokens} tokens was changed")
        elif manifest.run_id is None:
            continue  # a record without checkpoints, as one that is kept
        elif entry is None:
            problems.append(f"milestones.jsonl: the manifest has no {name}")
        elif entry["sha256"] != record.get("sha256"):
            problems.append(f"milestones.jsonl: {name} is named with another hash")
    return problems
