"""Packs the records of a sweep into one file in experiments/results, small enough to be committed.

Question: which files of a run does a reader need to fit the same laws?
Command: python -m experiments.keep runs/small_ladder
Expected: experiments/results/small_ladder.zip, a few kilobytes a run; `linscale fit` gives on it
what it gives on the sweep, and `unzip` shows what is in it.

Everything stays but checkpoints, locks and logs for people; of the training lines in metrics.jsonl
every `--every`-th stays, validation lines all do. Machine names, process numbers and command lines
(which hold the paths of a machine) go.
Refuses a sweep with runs that are not finished: a kept record should not change again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from analysis.io.sweep_files import pack

RESULTS = Path(__file__).parent / "results"
WHOLE = (
    "config.json", "accounting.json", "milestones.jsonl", "evals.jsonl", "linearization.json",
    "origin.json",
)  # fmt: skip
PRIVATE = ("hostname", "pid", "argv")


def keep(sweep: Path, out: Path, every: int) -> list[str]:
    """Pack the records of `sweep` into the zip file `out`, which is replaced; returns the run ids.

    Raises:
        SystemExit: no sweep there, or a run that is not finished.
    """
    if not (sweep / "sweep.json").is_file():
        raise SystemExit(f"{sweep}: no sweep.json there; give the directory of a sweep.")
    runs = sorted(path.parent for path in sweep.glob("*/config.json"))
    open_runs = [run.name for run in runs if _read(run / "status.json").get("state") != "done"]
    if open_runs or not runs:
        raise SystemExit(
            f"{sweep}: {len(open_runs)} of {len(runs)} runs are not done "
            f"({', '.join(open_runs[:3])}); finish them with `linscale run`, or remove them."
        )
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder)
        for run in runs:
            kept = whole / run.name
            kept.mkdir()
            for name in WHOLE:
                if (run / name).is_file():
                    shutil.copyfile(run / name, kept / name)
            for name in ("status.json", "environment.json"):
                _write_public(run / name, kept / name)
            lines = (run / "metrics.jsonl").read_text("utf-8").splitlines(keepends=True)
            (kept / "metrics.jsonl").write_text("".join(_thinned(lines, every)), encoding="utf-8")
        _write_public(sweep / "sweep.json", whole / "sweep.json")
        pack(whole, out)
    return [run.name for run in runs]


def _thinned(lines: list[str], every: int) -> list[str]:
    """Every `every`-th training line of each segment, its last one, and all validation lines."""
    records = [json.loads(line) for line in lines]
    kept, seen = [], {}
    for i, record in enumerate(records):
        if record["split"] != "train":
            kept.append(lines[i])
            continue
        segment = record["segment"]
        seen[segment] = seen.get(segment, 0) + 1
        following = next((r for r in records[i + 1 :] if r["split"] == "train"), None)
        last = following is None or following["segment"] != segment
        if last or seen[segment] % every == 0:
            kept.append(lines[i])
    return kept


def _write_public(source: Path, target: Path) -> None:
    values = {name: value for name, value in _read(source).items() if name not in PRIVATE}
    for each in values.get("experiments", []):
        each.pop("argv", None)
    target.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.keep", description=__doc__)
    parser.add_argument("sweep", type=Path, help="directory of a finished sweep")
    parser.add_argument("--every", type=int, default=4, help="keep every n-th training line (4)")
    options = parser.parse_args(argv)
    out = RESULTS / f"{options.sweep.resolve().name}.zip"
    runs = keep(options.sweep, out, options.every)
    print(f"{out}: {len(runs)} runs, {out.stat().st_size / 2**10:,.0f} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
