"""Run the pieces of first contact with a GPU in order, or go on where a run was cut short.

    python -m experiments.gpu [--out FOLDER] [--parts first,check] [--minutes 25]

Every piece's output is in OUT/NAME.log as it comes, the lines of JSON in it in OUT/results.jsonl,
and how it ended in OUT/steps.jsonl. A piece that ended well is not run again; one that failed is,
with --again. No piece is begun that would not end within --minutes.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from experiments.gpu.steps import PARTS, ROOT, SIZES, Step, from_source, steps


def ended(out: Path) -> dict[str, int]:
    """How each piece ended when it was last run: 0 is well, -1 cut short."""
    path = out / "steps.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {line["name"]: line["status"] for line in map(json.loads, lines)}


def note(path: Path, row: dict[str, Any]) -> None:
    """Add a line of JSON."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def run(step: Step, out: Path, seconds: float) -> int:
    """One piece; returns its exit status, -1 where the time ran out."""
    started = time.monotonic()
    environment = from_source(**step.environment)
    log = out / f"{step.name.replace(' ', '-')}.log"
    before = log.stat().st_size if log.exists() else 0
    with log.open("ab") as file:
        process = subprocess.Popen(
            step.command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            status = -1
    with log.open("rb") as file:
        file.seek(before)
        lines = file.read().decode(errors="replace").splitlines()
    for line in lines:
        if line.startswith("{"):
            try:
                note(out / "results.jsonl", {"step": step.name, **json.loads(line)})
            except ValueError:
                continue
    note(
        out / "steps.jsonl",
        {
            "name": step.name, "part": step.part, "status": status,
            "seconds": round(time.monotonic() - started, 1),
            "date": datetime.datetime.now().isoformat(timespec="seconds"),
            "last": lines[-1][:300] if lines else "",
        },
    )  # fmt: skip
    return status


def main(argv: list[str] | None = None) -> int:
    """Command line; 0 when all chosen pieces have ended well, 1 when one failed, 2 when some are
    left for the next run."""
    parser = argparse.ArgumentParser(prog="python -m experiments.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder (runs/gpu)")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--minutes", type=float, default=1e9, help="of this run, at most")
    parser.add_argument("--sizes", default=",".join(SIZES), help="of the models trained")
    parser.add_argument("--again", action="store_true", help="run what failed once more")
    options = parser.parse_args(argv)
    parts = options.parts.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"--parts {unknown[0]}: choose from {', '.join(PARTS)}.")
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * options.minutes
    chosen = [x for x in steps(out, tuple(options.sizes.split(","))) if x.part in parts]
    statuses = ended(out)
    for step in chosen:
        before = statuses.get(step.name)
        if before == 0 or (before is not None and not options.again and not step.resumable):
            continue
        left = end - time.monotonic()
        if left < 60 * step.minutes and not (step.resumable and left > 60):
            break
        print(f"{step.part}: {step.name} ...", flush=True)
        statuses[step.name] = run(step, out, min(60 * step.minutes, left))
        print(f"{step.part}: {step.name} ended with {statuses[step.name]}", flush=True)
    left_out = [x.name for x in chosen if statuses.get(x.name, -1) == -1]
    failed = [x.name for x in chosen if statuses.get(x.name, -1) > 0]
    print(f"{len(chosen)} pieces: {len(failed)} failed ({', '.join(failed) or 'none'}), "
          f"{len(left_out)} to be done. Written to {out}.")  # fmt: skip
    return 1 if failed else 2 if left_out else 0


if __name__ == "__main__":
    sys.exit(main())
