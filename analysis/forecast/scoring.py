"""What became of sealed forecasts: outcomes found in a source, scores, baselines, coverage.

score(seals, sweep) -> Scores
    1. is each seal whole, and are the rows it used still what they were?
    2. each forecast is matched with what was measured since: by run and tokens for a rung, by
       N, D and C within 2 % for a point
    3. error, intervals, CRPS and pinball of each; coverage with its binomial interval; the
       same outcomes by three baselines from the sealed rows
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.forecast.baselines import NAMES, baselines
from analysis.forecast.score import LEVELS, PINBALL_AT, binomial_interval, crps, pinball
from analysis.forecast.seal import changed_inputs, holds_any
from analysis.forecast.targets import SAME_POINT
from analysis.io.sweep import Sweep


@dataclass(frozen=True)
class Seal:
    """A sealed forecast as it was read."""

    name: str
    """Of its file."""
    record: Mapping[str, Any]
    broken: list[str]
    """Why the file is not whole."""


@dataclass(frozen=True)
class Scores:
    """Every forecast of every seal beside its outcomes."""

    table: pd.DataFrame
    """One row per outcome: seal, sealed_at, question, group, observed, forecast, lo and hi of 50
    and 90 %, leap, error (%), in_50, in_90, crps, pinball_5 ... pinball_95, the error of each
    baseline, and older (the outcome is older than the seal)."""
    seals: list[dict[str, Any]]
    """Per seal: name, sealed_at, broken, inputs (intact, broken or not in this source), waiting
    (forecasts without an outcome), and the summary."""

    def as_dict(self) -> dict[str, Any]:
        """JSON types."""
        rows = self.table.astype(object).where(self.table.notna(), None).to_dict("records")
        return {"levels": LEVELS.tolist(), "seals": self.seals, "outcomes": rows}

    @property
    def broken(self) -> bool:
        """Whether any seal is."""
        return any(each["broken"] for each in self.seals)


def score(seals: Sequence[Seal], sweep: Sweep) -> Scores:
    """Scores seals against what a source holds today.

    Raises:
        AnalysisError: no seal, or a source without any usable row.
    """
    if not seals:
        raise AnalysisError("no sealed forecast to score: name one with --score FILE.json")
    now = measured(sweep)
    ended = _ends(sweep)
    tables: list[dict[str, Any]] = []
    told: list[dict[str, Any]] = []
    for each in sorted(seals, key=lambda s: str(s.record["sealed_at"])):
        used = each.record["data"]["used"]
        here = holds_any(used, now)
        changed = changed_inputs(used, now) if here else []
        broken = [*each.broken, *(f"its inputs changed: {text}" for text in changed)]
        rows: list[dict[str, Any]] = []
        waiting: list[str] = []
        for forecast in each.record["forecasts"]:
            outcomes = _outcomes(forecast, now, used)
            rows += [_scored(each, forecast, outcome, ended) for outcome in outcomes]
            if not outcomes:
                waiting.append(f"{forecast['group']}: {forecast['name']}")
        tables += rows
        told.append({
            "name": each.name, "sealed_at": each.record["sealed_at"],
            "git_revision": each.record["git_revision"], "pinned": each.record["pinned"],
            "form": each.record["form"],
            "broken": broken,
            "inputs": "broken" if changed else "intact" if here else "not in this source",
            "waiting": waiting, "summary": summary(rows),
        })  # fmt: skip
    return Scores(pd.DataFrame(tables), told)


def stars(seals: Sequence[Seal], scores: Scores) -> pd.DataFrame:
    """Every sealed forecast with its compute, and its outcome if there is one, to be drawn.

    Returns:
        arch, seal, name, flops, loss, lo, hi (90 %; NaN without an interval), observed (or NaN).
    """
    met: dict[tuple[str, str, str], float] = {
        (str(row["seal"]), str(row["question"]), str(row["group"])): float(row["observed"])
        for row in scores.table.to_dict("records")
    }
    told: list[dict[str, Any]] = []
    for each in seals:
        for forecast in each.record["forecasts"]:
            low, high = forecast["interval_90"] or (math.nan, math.nan)
            key = each.name, str(forecast["name"]), str(forecast["group"])
            told.append({
                "arch": forecast["group"], "seal": each.name, "name": forecast["name"],
                "flops": math.nan if forecast["c"] is None else forecast["c"],
                "loss": forecast["loss"], "lo": low, "hi": high,
                "observed": met.get(key, math.nan),
            })  # fmt: skip
    return pd.DataFrame(told)


def fitted_on(seals: Sequence[Seal]) -> pd.DataFrame:
    """The rows that the seals' laws were fitted to, each once: arch, name, flops, loss."""
    rows = [
        {"arch": row["group"], "name": row["run_id"], "flops": row["c"], "loss": row["loss"]}
        for each in seals
        for row in each.record["data"]["used"]
        if row["c"]
    ]
    columns = ["arch", "name", "flops", "loss"]
    return pd.DataFrame(rows, columns=columns).drop_duplicates(ignore_index=True)


def score_words(rows: Sequence[Mapping[str, Any]]) -> str:
    """The score of some outcomes in a line, such as `4 of 4 in 90 %, error +0.3 %, CRPS 0.5 %`."""
    told = summary(rows)
    if not told["outcomes"]:
        return "no outcome yet"
    text = f"mean error {told['mean_error']:+.1f} %"
    if "crps" not in told:
        return f"{told['outcomes']} outcome(s), {text}"
    inside, count = told["inside_90"]
    return f"{inside} of {count} in 90 %, {text}, CRPS {told['crps']:.2f} %"


def measured(sweep: Sweep) -> list[dict[str, Any]]:
    """Rows of a source as a seal lists them: group, run_id, n, d, c and loss; of N, D and C what is
    not given follows from C = 6 N D where the other two are."""
    points = sweep.require_points()
    names = {"n": "n_params", "d": "tokens", "c": "flops", "loss": "loss"}
    rows: list[dict[str, Any]] = []
    for record in points.to_dict("records"):
        row = {k: _positive(record.get(name)) for k, name in names.items()}
        n, d, c = row["n"], row["d"], row["c"]
        if n and d and not c:
            row["c"] = 6.0 * n * d
        elif n and c and not d:
            row["d"] = c / (6.0 * n)
        elif d and c and not n:
            row["n"] = c / (6.0 * d)
        if row["loss"]:
            rows.append({"group": str(record["arch"]), "run_id": str(record["run_id"]), **row})
    return rows


def _positive(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number > 0 else None


def _ends(sweep: Sweep) -> dict[str, datetime]:
    """When each run of a sweep last wrote its status."""
    found: dict[str, datetime] = {}
    if "updated" in sweep.runs:
        for row in sweep.runs.to_dict("records"):
            try:
                found[str(row["run_id"])] = datetime.fromisoformat(str(row["updated"]))
            except ValueError:
                continue
    return found


def _outcomes(
    forecast: Mapping[str, Any], now: Sequence[Mapping[str, Any]],
    used: Sequence[Mapping[str, Any]],
) -> list[Mapping[str, Any]]:  # fmt: skip
    """Measured rows that answer a forecast and were not among the rows it was made from."""
    keys = ["d"] if forecast["run_id"] else forecast["asked"]

    def answers(row: Mapping[str, Any]) -> bool:
        if row["group"] != forecast["group"]:
            return False
        if forecast["run_id"] and row["run_id"] != forecast["run_id"]:
            return False
        return all(
            row[k] is not None and abs(math.log(row[k] / forecast[k])) < SAME_POINT for k in keys
        )

    known = {(u["group"], u["run_id"], u["loss"]) for u in used}
    found = [row for row in now if answers(row)
             and (row["group"], row["run_id"], row["loss"]) not in known]  # fmt: skip
    if found and forecast["best_split"]:  # of a budget, the best that was made of it
        return [min(found, key=lambda row: row["loss"])]
    return found


def _scored(
    each: Seal, forecast: Mapping[str, Any], outcome: Mapping[str, Any],
    ended: Mapping[str, datetime],
) -> dict[str, Any]:  # fmt: skip
    """One row of the table."""
    observed = float(outcome["loss"])
    end = ended.get(str(outcome["run_id"]))
    row: dict[str, Any] = {
        "seal": each.name,
        "sealed_at": each.record["sealed_at"],
        "question": forecast["name"],
        "group": forecast["group"],
        "run_id": outcome["run_id"],
        "n": outcome["n"], "d": outcome["d"], "c": outcome["c"],
        "leap": forecast["leap"],
        "observed": observed,
        "forecast": forecast["loss"],
        "error": 100.0 * (forecast["loss"] / observed - 1.0),
        "older": end is not None and end < datetime.fromisoformat(each.record["sealed_at"]),
    }  # fmt: skip
    for level in ("50", "90"):
        bounds = forecast[f"interval_{level}"]
        low, high = bounds or (math.nan, math.nan)
        row |= {f"lo_{level}": low, f"hi_{level}": high}
        row[f"in_{level}"] = bool(low <= observed <= high) if bounds else None
    if forecast["quantiles"]:
        quantiles = np.asarray(forecast["quantiles"], dtype=float)
        every = pinball(quantiles, np.asarray(observed))
        row["crps"] = float(crps(quantiles, np.asarray(observed)))
        for level in PINBALL_AT:
            row[f"pinball_{100 * level:.0f}"] = float(every[round(100 * level) - 1])
    else:
        row |= {"crps": math.nan, **{f"pinball_{100 * p:.0f}": math.nan for p in PINBALL_AT}}
    for name, guess in _guesses(each.record, forecast).items():
        row[name] = 100.0 * (guess / observed - 1.0)
    return row


def _guesses(record: Mapping[str, Any], forecast: Mapping[str, Any]) -> dict[str, float]:
    """What the baselines say, from the sealed rows of the forecast's group."""
    own = [r for r in record["data"]["used"] if r["group"] == forecast["group"]]
    columns = {k: [r[k] for r in own] for k in ("n", "d", "c", "loss")}
    return baselines(
        {k: v for k, v in columns.items() if all(x is not None for x in v)},
        {k: forecast[k] for k in ("n", "d", "c")},
    )


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over outcomes: error, its size, CRPS, coverage with binomial intervals, baselines."""
    told: dict[str, Any] = {"outcomes": len(rows)}
    if not rows:
        return told
    told["mean_error"] = float(np.mean([r["error"] for r in rows]))
    told["mean_size"] = float(np.mean([abs(r["error"]) for r in rows]))
    scored = [r for r in rows if r["in_90"] is not None]
    if scored:
        told["crps"] = float(np.mean([r["crps"] for r in scored]))
        for level in ("50", "90"):
            inside = sum(bool(r[f"in_{level}"]) for r in scored)
            told[f"inside_{level}"] = [inside, len(scored)]
            told[f"binomial_{level}"] = list(binomial_interval(inside, len(scored)))
    told["baselines"] = {
        name: float(np.mean(sizes)) if sizes else None
        for name in NAMES
        if (sizes := [abs(r[name]) for r in rows if math.isfinite(r[name])]) is not None
    }
    return told
