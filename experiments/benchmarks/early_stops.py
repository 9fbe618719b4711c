"""Would `--stop-early` have stopped runs that mattered? Replayed on finished rates of one size.

    python -m experiments.benchmarks.early_stops [SWEEP]

Every run of a sweep of learning rates (experiments/results/medium_rates.zip: 48 runs, six rates) is
taken as live, with so much of its tokens; the runs that the rule would stop there are shown with
their final loss above that of the best rate of their architecture and size.
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from analysis.forecast.early import SAME_QUESTION, hopeless
from analysis.io.frames import numbers, rows, words
from analysis.io.records import load_sweep
from analysis.io.sweep import Sweep

SHARES = (0.3, 0.5, 0.75, 0.9)
KEPT = Path(__file__).parents[1] / "results" / "medium_rates.zip"


def replay(sweep: Sweep, share: float) -> dict[str, float]:
    """Runs that would be stopped when all have gone so much of their tokens, and by how much their
    final loss is above the best of their question (ln L)."""
    told = {str(run["run_id"]): run for run in sweep.runs.to_dict("records")}
    last: dict[str, float] = {}
    for point in sweep.points.sort_values("tokens").to_dict("records"):
        last[str(point["run_id"])] = float(point["loss"])
    best: dict[tuple[Any, ...], float] = {}
    for run, loss in last.items():
        best[_question(told[run])] = min(loss, best.get(_question(told[run]), np.inf))
    cut = {run: share * float(told[run]["tokens_total"]) for run in told}
    ids = words(sweep.curves, "run_id")
    keep = [t <= cut[run] for run, t in zip(ids, numbers(sweep.curves, "tokens"), strict=True)]
    then = replace(
        sweep,
        runs=sweep.runs.assign(state="running", tokens=[cut[run] for run in told]),
        live=rows(sweep.curves, keep).reset_index(drop=True),
        curves=sweep.curves.head(0),
    )
    return {run: float(np.log(last[run] / best[_question(told[run])])) for run in hopeless(then)}


def _question(run: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(run[name] for name in SAME_QUESTION)


def main() -> None:
    """A line per share."""
    sweep = load_sweep(sys.argv[1] if len(sys.argv) > 1 else KEPT)
    for share in SHARES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = sorted(replay(sweep, share).values())
        ends = ", ".join(f"{100 * gap:.1f}" for gap in found) or "none"
        print(f"at {share:.0%} of the tokens {len(found)} of {len(sweep.runs)} runs are stopped; "
              f"in the end they were above the best rate by (%): {ends}")  # fmt: skip


if __name__ == "__main__":
    main()
