"""What will a trunk lose once it is decayed? Forecasts from the curves of a sweep.

decay_forecast(sweep, hide) -> body of a seal, as `forecasting.forecast` gives it
    for each architecture
    1. the law of loss over tokens is fitted to all trunks and to the decays that are known
    2. each decay that is not, of a run that has a trunk, is read off it
    3. the same is done for sizes whose decays are known, from smaller ones, with as much of the
       trunk: the errors there are the interval here

Interval: Student's t with as many degrees of freedom as there were sizes to test on, scaled by the
root mean squared error in ln L of the worst of them: the errors grow towards new sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from analysis.errors import AnalysisError
from analysis.forecast.paths import KNOTS, Stretch, stretches
from analysis.forecast.score import LEVELS, binomial_interval
from analysis.forecast.seal import digest
from analysis.forecast.trajectory_fit import FORM, Trajectory, fit_trajectory
from analysis.forecast.trajectory_law import Rates, values
from analysis.io.frames import groups, numbers, where, words
from analysis.io.sweep import Sweep
from analysis.units import Array
from linscale.horizons import whole_steps

SHARES = (1.0, 0.5, 0.25, 0.125)
"""Shares of a trunk, up to where a decay leaves it, that forecasts are tested from."""
NEARLY = 0.02
"""Of a trunk may be missing: not every step is logged."""
FEWEST_SIZES = 2
"""Sizes to test on without which there is no interval."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One decay to forecast."""

    run_id: str
    horizon: float
    start: float
    """Tokens at which it leaves the trunk."""
    final: float
    """Rate at its end, as a share of the peak."""
    flops: float
    state: str
    known: bool
    """Whether it was hidden: its loss is in the source."""


def decay_forecast(sweep: Sweep, hide: str | None = None, seed: int = 0) -> dict[str, Any]:
    """Forecasts every decay that is not measured of runs that have a trunk.

    Args:
        sweep: finished and unfinished runs.
        hide: pattern of run ids whose decays are taken as not known, to be scored.
        seed: is recorded; nothing is drawn.

    Raises:
        AnalysisError: no such decay, or no decay to learn from.
    """
    told: dict[str, Any] = {}
    answers: list[dict[str, Any]] = []
    used: list[dict[str, Any]] = []
    failures: list[str] = []
    for arch in groups(sweep.runs, "arch"):
        runs = where(sweep.runs, arch=arch)
        asked = _asked(sweep, runs, hide)
        if not asked:
            continue
        hidden = {a.run_id for a in asked if a.known}
        own = [
            s for s in stretches(curves_of(sweep, arch)) if not (s.is_decay and s.run_id in hidden)
        ]
        asked = [a for a in asked if any(s.run_id == a.run_id for s in own)]
        if not asked:
            continue
        try:
            law = fit_trajectory(own)
        except AnalysisError as error:
            failures.append(f"not forecast: {arch}: {error}")
            continue
        rows = _rows(where(sweep.points, arch=arch), hidden)
        group = _Group(arch, law, own, rows)
        answers += [group.answer(a) for a in asked]
        told[arch] = group.tell()
        used += rows
    if not answers and failures:
        raise AnalysisError("; ".join(failures))
    if not answers:
        raise AnalysisError(
            f"{sweep.name}: no trunk waits for its decay. --decays forecasts the horizons that "
            "unfinished runs have not reached, and with --hide PATTERN those of finished runs"
        )
    return {
        "form": ["trajectory"],
        "pinned": {},
        "conventions": sweep.conventions,
        "notes": [*sweep.notes, *failures],
        "seed": seed,
        "groups": told,
        "forecasts": answers,
        "data": {"source": sweep.name, "sha256": digest(used), "used": used, "excluded": []},
    }


def curves_of(sweep: Sweep, arch: str) -> pd.DataFrame:
    """Curves of an architecture's finished and unfinished runs."""
    parts = [where(frame, arch=arch) for frame in (sweep.curves, sweep.live) if len(frame)]
    return pd.concat(
        [part.astype({"run_id": str, "size": str, "arch": str}) for part in parts],
        ignore_index=True,
    )


def _asked(sweep: Sweep, runs: pd.DataFrame, hide: str | None) -> list[Asked]:
    """The decays of an architecture's runs that are not known."""
    found: list[Asked] = []
    measured: set[tuple[str, float]] = set()
    for frame in (sweep.curves, sweep.live):
        if len(frame):
            ends = where(frame, split="validation")
            measured |= set(zip(words(ends, "run_id"), numbers(ends, "tokens"), strict=True))
    for run in runs.to_dict("records"):
        run_id = str(run["run_id"])
        hidden = hide is not None and fnmatchcase(run_id, f"*{hide}*")
        if run["schedule"] != "wsd" or (run["state"] == "done" and not hidden):
            continue
        batch, fraction = float(run["batch_tokens"]), float(run["decay_fraction"])
        before = float((run.get("stages") or {}).get("transfer_tokens", 0.0)) / batch
        for tokens in run["horizons"]:
            steps = whole_steps(int(tokens), int(batch))
            horizon = steps * batch
            if (run_id, horizon) in measured and not hidden:
                continue
            asked = Asked(
                run_id=run_id,
                horizon=horizon,
                start=(steps - max(1, round((steps - before) * fraction))) * batch,
                final=float(run["final_lr_ratio"]),
                flops=horizon * float(run["flops_per_token"]),
                state=str(run["state"]),
                known=(run_id, horizon) in measured,
            )
            found.append(asked)
    return found


def _rows(points: pd.DataFrame, hidden: set[str]) -> list[dict[str, Any]]:
    """The decayed losses that the law has seen, as a seal lists them."""
    return [
        {"group": str(p["arch"]), "run_id": str(p["run_id"]), "n": float(p["n_params"]),
         "d": float(p["tokens"]), "c": float(p["flops"]), "loss": float(p["loss"])}
        for p in points.to_dict("records") if str(p["run_id"]) not in hidden
    ]  # fmt: skip


@dataclass(frozen=True)
class _Group:
    """One architecture: its law, and what it answers."""

    arch: str
    law: Trajectory
    own: list[Stretch]
    rows: list[dict[str, Any]]

    tests: dict[float, list[Array]] = field(default_factory=dict[float, list[Array]])
    """Errors by the share of the trunk that was known; filled as asked."""

    def answer(self, asked: Asked) -> dict[str, Any]:
        """A forecast, as a seal lists it."""
        trunk = _trunk(self.own, asked.run_id)
        decay = decay_of(trunk, asked.start, asked.horizon, asked.final)
        loss = float(self.law(decay, np.array([asked.horizon]))[0])
        seen = min(1.0, float(trunk.rates.tokens[-1]) / asked.start)
        share = next((s for s in SHARES if s <= seen + NEARLY), SHARES[-1])
        record: dict[str, Any] = {
            "name": f"{asked.run_id.rpartition('-')[0]} decayed at {asked.horizon:.2e} tokens",
            "n": trunk.n, "d": asked.horizon, "c": asked.flops, "group": self.arch,
            "run_id": asked.run_id, "state": asked.state, "best_split": False, "asked": ["d"],
            "leap": asked.flops / max((r["c"] for r in self.rows), default=math.nan),
            "loss": loss, "measured_before": asked.known, "trunk_seen": seen,
        }  # fmt: skip
        record |= dict.fromkeys(("interval_50", "interval_90", "quantiles", "half_width"))
        errors = self.errors(share)
        if len(errors) >= FEWEST_SIZES:
            spread = scale_of(errors) * student.ppf(LEVELS, len(errors))
            quantiles = loss * np.exp(spread)
            for level, low in (("50", 24), ("90", 4)):
                record[f"interval_{level}"] = [float(quantiles[low]), float(quantiles[98 - low])]
            record["half_width"] = 100.0 * float(spread[94])
            record["quantiles"] = quantiles.tolist()
        doubts = [] if seen >= SHARES[-1] else [
            f"only {seen:.0%} of its trunk is there, less than was tested"
        ]  # fmt: skip
        return record | {"doubts": doubts}

    def errors(self, share: float) -> list[Array]:
        """Errors in ln L of each size's decays, forecast from smaller sizes and so much trunk."""
        if share not in self.tests:
            self.tests[share] = rolling_errors(self.own, share, self.law)
        return self.tests[share]

    def tell(self) -> dict[str, Any]:
        """Law, tests and notes, as `telling.tell` gives them."""
        sizes = {s.size for s in self.own if s.is_decay}
        errors = max(self.tests.values(), key=len, default=[])
        inside, count, tested = coverage(errors)
        # Losses of one size err alike: they count as one.
        low, high = binomial_interval(round(inside * tested / max(count, 1)), tested)
        few = len(errors) < FEWEST_SIZES
        return {
            "rows": len(self.rows), "sizes": len(sizes),
            "runs": len({s.run_id for s in self.own}), "shared_effect": "run",
            "laws": {"trajectory": {
                "weight": 1.0, "noise": self.law.noise,
                "misfit": scale_of(errors) if errors else math.nan,
                "parameters": {
                    name: {"value": v, "lo": None, "hi": None}
                    for name, v in values(self.law.theta).items()
                },
            }},
            "calibration": {
                "forecasts": count, "independent": tested, "inside_90%": inside,
                "binomial_90%": [low, high], "largest_leap": 1.0, "widen": 1.0,
                "too_few": f"only {len(errors)} size(s) to test on: no interval" if few else None,
            },
            "no_interval": "too few sizes have decays" if few else None,
            "notes": [], "frontier": [],
        }  # fmt: skip


def rolling_errors(
    own: Sequence[Stretch], share: float, law: Trajectory | None = None
) -> list[Array]:
    """ln of forecast over measured loss of every size's decays, from smaller sizes' decays.

    Args:
        own: stretches of one architecture.
        share: of the trunk up to where a decay leaves it, that is known of the size under test.
        law: to begin the fits with.
    """
    by_n = sorted({s.n: s.size for s in own if s.is_decay}.items())
    found: list[Array] = []
    for at, (n, size) in enumerate(by_n):
        if at == 0:
            continue
        below = {name for _, name in by_n[:at]}
        decays = [s for s in own if s.is_decay and s.size == size and (s.lines == 0).any()]
        errors: list[float] = []
        starts = sorted({float(s.rates.tokens[0]) for s in decays})
        for cut in starts if share < 1 else starts[-1:]:
            known = [
                s if s.size in below else cut_off(s, share * cut)
                for s in own
                if s.size in below or (s.size == size and not s.is_decay) or s.n < n
            ]
            fitted = fit_trajectory([s for s in known if s.size in below or not s.is_decay], law)
            for decay in decays:
                if share < 1 and float(decay.rates.tokens[0]) != cut:
                    continue
                measured = decay.lines == 0
                said = fitted(decay, decay.tokens[measured])
                errors += np.log(said / decay.loss[measured]).tolist()
        if errors:
            found.append(np.array(errors))
    return found


def cut_off(stretch: Stretch, tokens: float) -> Stretch:
    """What is known of a stretch at so many tokens."""
    keep = stretch.tokens <= tokens
    return replace(
        stretch,
        tokens=stretch.tokens[keep],
        loss=stretch.loss[keep],
        lines=stretch.lines[keep],
    )


def decay_of(trunk: Stretch, start: float, horizon: float, final: float) -> Stretch:
    """The linear decay that leaves a trunk at `start`; the trunk goes on at its last rate."""
    last = float(trunk.rates.share[-1])
    beyond = max(0.0, start - float(trunk.rates.tokens[-1])) * last
    before = float(trunk.rates.at(np.array([start]))[0]) + beyond
    share = last * np.linspace(1.0, final, KNOTS)
    rates = Rates(np.linspace(start, horizon, KNOTS), share, before)
    none = np.empty(0)
    return replace(
        trunk, name=f"decay-{horizon:.0f}", rates=rates, tokens=none, loss=none, lines=none
    )


def scale_of(errors: Sequence[Array]) -> float:
    """Root mean squared error of the worst size, and what any law of this form misses."""
    return math.sqrt(max(float(np.mean(e**2)) for e in errors) + FORM**2)


def coverage(errors: Sequence[Array]) -> tuple[int, int, int]:
    """How the 90 % intervals did as sizes were added: losses inside, losses, sizes tested.

    Each size is held against the interval that the errors of the smaller ones give.
    """
    inside = count = sizes = 0
    for i in range(FEWEST_SIZES, len(errors)):
        bound = scale_of(errors[:i]) * float(student.ppf(0.95, i))
        inside, count = inside + int((np.abs(errors[i]) <= bound).sum()), count + len(errors[i])
        sizes += 1
    return inside, count, sizes


def _trunk(own: Sequence[Stretch], run_id: str) -> Stretch:
    return next(s for s in own if s.run_id == run_id and not s.is_decay)
