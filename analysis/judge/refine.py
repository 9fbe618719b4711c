"""Which runs of an experiment to add to a finished sweep: `linscale plan FILE --refine DIR`.

    refine(sweep, candidates, quantity, budget) -> Refinement
        1. a law for each architecture of the sweep, from its decayed checkpoints
        2. candidates that the sweep has finished are left out; so are architectures without a law
        3. design.rank_rungs for each architecture: how far does the interval of the quantity
           shrink with this run, and which runs within the budget shrink it most
        4. a budget is shared equally by the architectures, since a comparison of two is as wide as
           its wider side

Intervals are those of the linearised law (delta method), so they compare designs; the report's
come from a bootstrap.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.fit.fitting import fit_law
from analysis.io.frames import groups, numbers, plain, rows, where, words
from analysis.io.sweep import Sweep
from analysis.judge.design import rank_rungs
from analysis.units import LEVEL

_DATA = ("corpus", "tokenizer", "sequence_length")
"""Fields of `data` that finished runs and candidates must share."""


@dataclass(frozen=True)
class Refinement:
    """Candidates, best first within each architecture."""

    quantity: str
    budget: float | None
    """FLOPs to spend in all."""
    frame: pd.DataFrame
    """One row per candidate: run_id, arch, size, seed, n_params, tokens, cost, now and alone
    (half-width of the interval without and with it), gain (share by which it shrinks),
    gain_per_flop (relative to the best), order (in the plan, 0: not bought), planned (half-width
    after the plan so far)."""
    left_out: dict[str, str]
    """Run or architecture, and why it was not ranked."""

    def as_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {"quantity": self.quantity, "budget": self.budget, "level": LEVEL,
                "candidates": plain(self.frame), "left_out": self.left_out}  # fmt: skip

    def _repr_html_(self) -> str:
        return self.frame.to_html(index=False)


def refine(
    sweep: Sweep,
    candidates: pd.DataFrame,
    *,
    quantity: str = "a",
    budget: float | None = None,
    form: str = "chinchilla",
) -> Refinement:
    """Ranks candidate runs by how much they shrink the interval of a quantity.

    Args:
        sweep: finished runs, in the conventions that the candidates follow.
        candidates: one row per horizon of each run: run_id, arch, size, n_params, tokens, flops
            (of that horizon) and cost (FLOPs of the whole run).
        quantity: see `analysis.judge.design.quantity`.
        budget: FLOPs for all new runs together; None ranks only.
        form: law fitted to the sweep.

    Raises:
        AnalysisError: nothing to rank, an unknown quantity, or a budget that buys no run; or
            candidates with another corpus, tokenizer or context than every finished run.
    """
    points = sweep.require_points()
    _check_same_data(sweep, candidates)
    left_out = _find_finished(sweep, candidates)
    fresh = rows(candidates, ~candidates["run_id"].isin(list(left_out)))
    archs = groups(fresh, "arch") if len(fresh) else []
    able = {}
    for arch in archs:
        try:
            able[arch] = fit_law(form, where(points, arch=arch))
        except AnalysisError as error:
            left_out[arch] = str(error)
    if not len(fresh) and len(candidates):
        raise AnalysisError(
            f"every run of the experiment is finished in {sweep.name}: nothing is left to rank. "
            "Add sizes, seeds or horizons to the experiment file, or name a larger one"
        )
    if not able:
        reasons = "; ".join(f"{what}: {why}" for what, why in left_out.items())
        raise AnalysisError(f"no candidate can be ranked against {sweep.name}: {reasons}")
    share = None if budget is None else budget / len(able)
    wide = NormalDist().inv_cdf((1 + LEVEL) / 2)
    tables: list[pd.DataFrame] = []
    for arch, fit in able.items():
        try:
            ranked = rank_rungs(fit, where(fresh, arch=arch), quantity_name=quantity, budget=share,
                                run="run_id", cost="cost")  # fmt: skip
        except AnalysisError as error:
            raise AnalysisError(f"{arch}: {error}") from error
        tables.append(
            ranked.assign(
                now=wide * ranked["se_now"],
                alone=wide * ranked["se_alone"],
                planned=wide * ranked["se_planned"],
            ).drop(columns=["se_now", "se_alone", "se_planned"])
        )
    frame = pd.concat(tables, ignore_index=True)
    return Refinement(quantity, budget, frame, left_out)


def _check_same_data(sweep: Sweep, candidates: pd.DataFrame) -> None:
    """A law says nothing about losses on another text, in other tokens, or after other contexts.

    Raises:
        AnalysisError: candidates differ from all finished runs; the field and both values.
    """
    if not len(sweep.runs) or not len(candidates):
        return
    for column in _DATA:
        if column not in candidates or column not in sweep.runs:
            continue
        known = set(words(where(sweep.runs, state="done"), column))
        other = sorted(set(words(candidates, column)) - known)
        if known and other:
            raise AnalysisError(
                f"data.{column}: the rungs have {', '.join(other)} and the runs of {sweep.name} "
                f"{', '.join(sorted(known))}: their losses follow different laws. Give "
                f"data.{column}={sorted(known)[0]}, or refine with a sweep of the same data"
            )


def _find_finished(sweep: Sweep, candidates: pd.DataFrame) -> dict[str, str]:
    """Candidates that the sweep has already."""
    done = {
        run for run, state in zip(words(sweep.runs, "run_id"), words(sweep.runs, "state"),
                                  strict=True) if state == "done"
    }  # fmt: skip
    return {run: f"finished in {sweep.name}" for run in words(candidates, "run_id") if run in done}


def candidates_of(rungs: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows for `refine` from the rungs of `linscale plan --json`: a row a horizon."""
    return pd.DataFrame([
        {"run_id": r["run_id"], "arch": r["arch"], "size": r["size"], "seed": r["seed"],
         **{name: str(r[name]) for name in _DATA if name in r},
         "n_params": float(r["params_exact"]), "tokens": float(tokens),
         "flops": tokens * float(r["flops_per_token"]), "cost": float(r["flops"])}
        for r in rungs for tokens in r["horizons"]
    ])  # fmt: skip


def shrinkage(frame: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """By architecture: half-width now, and after the whole plan (NaN without one)."""
    found: dict[str, tuple[float, float]] = {}
    for arch in groups(frame, "arch"):
        own = where(frame, arch=arch)
        planned = numbers(own, "planned")
        after = float(np.nanmin(planned)) if np.isfinite(planned).any() else float("nan")
        found[arch] = float(numbers(own, "now")[0]), after
    return found
