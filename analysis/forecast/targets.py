"""What is asked: rungs of an experiment that are not finished, points, or budgets.

A target is a row of one table: group (the architecture, or None for every group), run_id, size, n,
d, c (NaN where it is not given) and what it is called. Rungs come as `linscale plan --json` gives
them, one target a horizon.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.errors import AnalysisError
from linscale.selection import chosen

SAME_POINT = 0.02
"""Points within this in each logarithm are one."""


@dataclass(frozen=True)
class Target:
    """One loss to forecast."""

    name: str
    """What it is called in tables."""
    n: float | None = None
    d: float | None = None
    c: float | None = None
    group: str | None = None
    """The architecture; None asks every group."""
    run_id: str | None = None
    state: str | None = None
    """Of the run's record when it was asked: planned, running, ..."""

    def as_dict(self) -> dict[str, Any]:
        """JSON types."""
        return dict(self.__dict__)


def at(text: str) -> Target:
    """A point "N=1e9,D=2e10" or a budget "C=1.19e23".

    Raises:
        AnalysisError: neither.
    """
    found: dict[str, float] = {}
    for word in text.split(","):
        name, _, number = word.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if name.strip().lower() not in ("n", "d", "c") or not 0 < value < math.inf:
            raise AnalysisError(f"--at {text}: write C=1.19e23 or N=1e9,D=2e10")
        found[name.strip().lower()] = value
    return Target(
        name=",".join(f"{k.upper()}={v:g}" for k, v in found.items()),
        n=found.get("n"), d=found.get("d"), c=found.get("c"),
    )  # fmt: skip


PARAMETERS = {"non_embedding": "params_exact", "paper": "params", "total": "params_total"}
"""Convention of N -> the field of a plan that holds it."""


def rungs_as_targets(
    rungs: Sequence[Mapping[str, Any]], only: str | None, parameters: str = "non_embedding"
) -> tuple[list[Target], list[str]]:
    """Targets, one a horizon, and the ids of the runs that are finished.

    Args:
        rungs: as `linscale plan --json` gives them.
        only: see `linscale.selection`.
        parameters: the convention of N: non_embedding, paper or total.

    Raises:
        SelectionError: the selection leaves nothing.
        AnalysisError: every run is finished.
    """
    left = chosen(rungs, only, dict)
    done = [str(r["run_id"]) for r in left if r["state"] == "done"]
    targets = [
        Target(
            name=f"{str(r['run_id']).rpartition('-')[0]} at {tokens:.2e} tokens",
            n=float(r[PARAMETERS[parameters]]), d=float(tokens),
            c=float(tokens) * float(r["flops_per_token"]), group=str(r["arch"]),
            run_id=str(r["run_id"]), state=str(r["state"]),
        )
        for r in left if r["state"] != "done" for tokens in r["horizons"]
    ]  # fmt: skip
    if not targets:
        raise AnalysisError(
            f"all {len(done)} run(s) of the experiment are finished: there is nothing left to "
            "forecast. Name an experiment with runs that have not been made"
        )
    return targets, done
