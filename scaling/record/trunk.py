"""A run with a larger budget goes on from the trunk of a finished one.

Until its decay begins a trunk at a constant rate does not know where it ends. So a run that has
made no step yet looks into its sweep for a finished run of the same trunk (`RunConfig.trunk_id`:
all that changes what is learnt, but budget and horizons) and of the same name before the hash. What
the two have in common is taken over, so that the directory of the new run is complete by itself:

    checkpoints/   the trunk's checkpoint, and the milestones of common horizons, as links where the
                   disk can, else as copies
    metrics.jsonl, milestones.jsonl     the lines of both runs' common path
    origin.json    which run, at which step, and which milestones are its

The step is the latest kept checkpoint from which every horizon that the other run lacks can still
be reached. From there on everything is trained, so that the run ends with the milestones of one
that was trained from the first step (`tests/scaling/training/test_trunk.py`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linscale.errors import LinscaleError
from linscale.json_reader import as_object, parse_lines
from linscale.sealed import LINE_SEAL, is_whole
from scaling.config.schedule import Segment
from scaling.record.checkpoint_files import MANIFEST, Manifest, ResumePoint, read_manifest, remove
from scaling.record.checkpoints import Checkpoints
from scaling.record.data_identity import changes
from scaling.record.head import read_head
from scaling.record.record import ORIGIN, RunRecord
from scaling.system.files import disk_errors, read_json, replacing, write_json

Lines = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """What a finished run can give."""

    run_dir: Path
    manifest: Manifest
    milestones: dict[int, dict[str, Any]]
    """Step -> line of milestones.jsonl."""
    step: int
    """Of the checkpoint, on the trunk."""
    file: str
    """The checkpoint; empty where the new run lacks nothing."""
    segment: int
    """The new run's segment that is trained first."""


def adopt(record: RunRecord, checkpoints: Checkpoints, data: dict[str, Any]) -> str:
    """Take over what a finished run of the same trunk has in common with this one.

    Killed on the way, nothing is taken over: the manifest comes last.

    Args:
        record: of a run that has no checkpoint.
        checkpoints: of that run.
        data: fingerprint of the data that it is going to be trained on.

    Returns:
        A sentence that says what was taken over, or why not; empty where there is no such run.

    Raises:
        DiskError: it cannot be written.
    """
    remove(record.path / ORIGIN)
    found, refusal = _find(record, data)
    if found is None:
        return refusal
    parts = record.segments[: found.segment]
    taken = [found.milestones[part.last] for part in parts if part.milestone]
    names = [str(line["checkpoint"]).removeprefix("checkpoints/") for line in taken]
    wanted = [*names, *([found.file] if found.file else [])]
    for name in wanted:
        _link(found.run_dir / "checkpoints" / name, record.checkpoints / name)
    metrics = _common_lines(record, found)
    _write_lines(record.path / "metrics.jsonl", metrics)
    _write_lines(record.path / "milestones.jsonl", taken)
    write_json(
        record.path / ORIGIN,
        {
            "run_id": found.run_dir.name,
            "step": found.step,
            "last": list(record.position(metrics[-1])) if metrics else None,
            "milestones": [line["tokens"] for line in taken],
        },
    )
    wall = float(metrics[-1].get("wall") or 0.0) if metrics else 0.0
    point = ResumePoint(
        segment=found.segment,
        step=found.step,
        file=found.file,
        wall=wall,
        trunk_file=found.file,
    )
    entries = {n: e for n, e in found.manifest.files.items() if n.partition("/")[0] in wanted}
    checkpoints.take_over(entries, point)
    horizons = f" with {len(taken)} of its milestones" if taken else ""
    return f"goes on from the trunk of {found.run_dir.name} at step {found.step}{horizons}"


def _find(record: RunRecord, data: dict[str, Any]) -> tuple[Trunk | None, str]:
    """The finished run of the same trunk that saves most, or why one cannot be used."""
    refusal, best = "", None
    if record.config.trunk_id is None:
        return None, ""
    pattern = re.compile(rf"{re.escape(record.config.name)}-[0-9a-f]{{8}}")
    for path in sorted(record.path.parent.glob(f"{record.config.name}-*/config.json")):
        run_dir, head = path.parent, read_head(path.parent)
        if run_dir == record.path or head.state != "done" or not pattern.fullmatch(run_dir.name):
            continue
        try:
            config = head.run_config()
            if config.trunk_id != record.config.trunk_id or config.run_id != run_dir.name:
                continue
            manifest = read_manifest(run_dir / "checkpoints" / MANIFEST)
        except LinscaleError:
            continue  # `linscale verify` names what is wrong with it
        environment = read_json(run_dir / "environment.json")
        if changes(as_object(environment.get("data")), data) or environment.get("data_changes"):
            refusal = f"does not go on from the trunk of {run_dir.name}: its data were others"
            continue
        found = _usable(record.segments, run_dir, manifest)
        if found is not None and (best is None or found.segment > best.segment):
            best = found
    return best, refusal


def _usable(segments: tuple[Segment, ...], run_dir: Path, manifest: Manifest) -> Trunk | None:
    """What a run can give to one of these segments; None where that is nothing."""
    path = run_dir / "milestones.jsonl"
    lines = parse_lines(path.read_bytes())[0] if path.is_file() else []
    milestones = {
        line["step"]: line
        for line in lines
        if is_whole(line, LINE_SEAL)
        and isinstance(line.get("step"), int)
        and str(line.get("checkpoint")).removeprefix("checkpoints/") in manifest.files
    }
    kept = {
        int(match[1]): match[0]
        for name in manifest.files
        if (match := re.match(r"resume-trunk-(\d+)\.(?:pt|dcp)", name))
    }
    for step, file in sorted(kept.items(), reverse=True):
        first = _first_missing(segments, step, milestones)
        everything = first == len(segments)
        part = segments[min(first, len(segments) - 1)]
        reaches = everything or (
            step == part.first if part.is_branch else part.first <= step < part.last
        )
        if reaches and (step or milestones):
            return Trunk(
                run_dir=run_dir,
                manifest=manifest,
                milestones=milestones,
                step=part.last if everything else step,
                file="" if everything else file,
                segment=first,
            )
    return None


def _first_missing(
    segments: tuple[Segment, ...], step: int, milestones: dict[int, dict[str, Any]]
) -> int:
    """Number of the first segment that is not given by a trunk of so many steps and milestones."""
    for number, part in enumerate(segments):
        beyond = not part.is_branch and part.last > step
        if beyond or (part.milestone and part.last not in milestones):
            return number
    return len(segments)


def _common_lines(record: RunRecord, found: Trunk) -> Lines:
    """The other run's lines of metrics.jsonl that lie on the path of this one, in its order."""
    path = found.run_dir / "metrics.jsonl"
    lines = parse_lines(path.read_bytes())[0] if path.is_file() else []
    placed: list[tuple[tuple[int, int], dict[str, Any]]] = []
    for line in lines:
        with suppress(StopIteration, KeyError, TypeError):
            place = record.position(line)
            if place[0] < found.segment or place <= (found.segment, found.step):
                placed.append((place, line))
    return [line for _, line in sorted(placed, key=lambda item: item[0])]


def _write_lines(path: Path, lines: Lines) -> None:
    with replacing(path) as file:
        file.write("".join(json.dumps(line, allow_nan=False) + "\n" for line in lines).encode())


def _link(source: Path, target: Path) -> None:
    """Give a file, or a folder of files, another name; a copy where the disk knows no links."""
    remove(target)
    with disk_errors(target):
        if source.is_dir():
            target.mkdir()
            for each in source.iterdir():
                _link(each, target / each.name)
            return
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
