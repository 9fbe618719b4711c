"""What the queue of SLURM says: jobs of a sweep, and the limits of a partition.

    record_jobs(sweep, arrays)     after sbatch: job ids and their runs, into slurm/jobs.jsonl
    queued(sweep)                  run id -> its job and what squeue says of it
    longest(partition)             minutes that a job may last there

`squeue` and `sinfo` are asked where they exist; a sweep that is read on another machine shows the
job's id without its state.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linscale.json_reader import parse_lines
from models.config import ConfigError

SECONDS = 20.0
"""How long the controller may take to answer before the answer is done without."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """The last job that was submitted for a run."""

    job_id: str
    """As squeue and scancel take it: `123`, or `123_4` of an array."""
    state: str
    """SLURM's word, such as `PENDING`; empty where the queue does not know the job, or is not
    here."""


def minutes(text: str) -> int:
    """A time limit as SLURM writes it, in whole minutes.

    Raises:
        ConfigError: not a time.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        raise ConfigError(
            f"time={text!r}: write minutes (90), HH:MM:SS (12:00:00) or D-HH:MM:SS (2-00:00:00)."
        )
    days, first, second, third = (int(part or 0) for part in match.groups())
    if match.group(1) is None and match.group(4) is None:  # minutes and seconds
        days, first, second, third = 0, 0, first, second
    return max(1, math.ceil((days * 24 + first) * 60 + second + third / 60))


def longest(partition: str | None) -> int | None:
    """Minutes that a job may last in a partition, or in the default one; None where there is no
    limit, or `sinfo` does not say."""
    where = ["--partition", partition] if partition else []
    for line in _ask("sinfo", "--noheader", "--format=%P %l", *where).splitlines():
        name, _, limit = line.strip().partition(" ")
        if partition is None and not name.endswith("*"):
            continue
        if limit.strip() not in ("", "infinite", "n/a"):
            return minutes(limit.strip())
    return None


def record_jobs(sweep_dir: Path, job_id: str, run_ids: Iterable[str]) -> None:
    """Add an array, or one job, to the sweep's list."""
    runs = list(run_ids)
    ids = [job_id] if len(runs) == 1 else [f"{job_id}_{task}" for task in range(len(runs))]
    with (sweep_dir / "slurm" / "jobs.jsonl").open("a", encoding="utf-8") as file:
        for each, run_id in zip(ids, runs, strict=True):
            file.write(json.dumps({"job_id": each, "run_id": run_id}) + "\n")


def queued(sweep_dir: Path) -> dict[str, Job]:
    """run id -> the last job submitted for it."""
    try:
        lines: list[dict[str, Any]] = parse_lines(
            (sweep_dir / "slurm" / "jobs.jsonl").read_bytes()
        )[0]
    except OSError:
        return {}
    last = {str(line.get("run_id")): str(line.get("job_id")) for line in lines}
    arrays = sorted({job.partition("_")[0] for job in last.values()})
    answer = _ask("squeue", "--noheader", "--array", "--format=%i %T", f"--jobs={','.join(arrays)}")
    states = dict(line.split()[:2] for line in answer.splitlines() if len(line.split()) >= 2)
    return {run: Job(job_id=job, state=states.get(job, "")) for run, job in last.items()}


def _ask(program: str, *arguments: str) -> str:
    """What a command prints; empty where it is not here, fails or is silent for too long."""
    if shutil.which(program) is None:
        return ""
    try:
        done = subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
