"""Does a change transfer? Paired differences at a few sizes, and what they say of a larger one.

    gate(base, changed) -> Gate
        1. runs are paired by size and seed, each with its last checkpoint; a pair's difference is
           100 log(loss changed / loss base), per cent of loss: below zero is better
        2. the mean difference at each size, with the interval of Student's t over seeds
        3. a straight line through these means in log N gives the trend for ten times the size and
           the difference at the target size
        4. the verdict is about the target, and about the largest size measured

Seed noise is estimated at each size by itself, since it falls with size; degrees of freedom of a
sum of such means follow Welch and Satterthwaite (Welch 1947, Biometrika 34). That the differences
go on along a line in log N is an assumption: from three sizes on it is tested, with two it cannot
be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis.errors import AnalysisError
from analysis.io.frames import groups, numbers, plain, where
from analysis.io.sweep import Sweep
from analysis.units import LEVEL, Array
from linscale.si import si

TRANSFERS, DOES_NOT, NOT_DETERMINED = "transfers", "does not transfer", "not determined"
REACH = 10.0
"""The target is so many times the largest size, unless it is named."""
BEND_LEVEL = 0.05
"""A line is given up where means lie as far from it with no more than this probability."""
TOKENS_TOLERANCE = 0.01
"""Tokens of a pair may differ by this share."""


@dataclass(frozen=True)
class Estimate:
    """A mean and its interval, in per cent of loss."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """JSON types."""
        return {"value": self.value, "low": self.low, "high": self.high}

    def __str__(self) -> str:
        return f"{self.value:+.2f} % [{self.low:+.2f}, {self.high:+.2f}]"


@dataclass(frozen=True)
class Gate:
    """The verdict over a change, and what it rests on."""

    verdict: str
    level: float
    margin: float
    """Least gain that counts, in per cent of loss."""
    rungs: pd.DataFrame
    """One row a size: size, n_params, seeds, difference, low, high."""
    pairs: pd.DataFrame
    """One row a pair: size, seed, n_params, tokens, base, changed, difference."""
    trend: Estimate
    """How the difference changes for ten times the size."""
    target: Estimate
    """The difference at the target size."""
    target_size: float
    bent: bool
    """The differences do not lie on a line: nothing is said of the target."""
    seeds_needed: int | None
    """About how many seeds a size would settle it, if the difference stays; None: it is settled."""
    unpaired: list[str]
    """Runs without a partner, or whose partner has other tokens."""

    def as_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "verdict": self.verdict, "level": self.level, "margin": self.margin,
            "rungs": plain(self.rungs), "pairs": plain(self.pairs), "trend": self.trend.as_dict(),
            "target": {"n_params": self.target_size, **self.target.as_dict()}, "bent": self.bent,
            "seeds_needed": self.seeds_needed, "unpaired": self.unpaired,
        }  # fmt: skip

    def sentence(self) -> str:
        """The verdict and its reason, in words."""
        told = f"at {si(self.target_size)} parameters the line gives {self.target}"
        if self.bent:
            told = "the differences do not lie on a line in log N, so nothing is said of larger N"
        need = "" if self.seeds_needed is None else (
            f"; about {self.seeds_needed} seeds a size would settle it"
        )  # fmt: skip
        return f"{self.verdict}: {told}{need}"


def gate(
    base: Sweep, changed: Sweep, *, at: float | None = None, margin: float = 0.0,
    level: float = LEVEL,
) -> Gate:  # fmt: skip
    """Judges a change from runs without and with it.

    Args:
        base: runs without the change; at least two sizes, with at least two seeds each.
        changed: runs with it, of the same sizes, seeds and tokens.
        at: target size, parameters as the sweeps count them; None: ten times the largest.
        margin: least gain that counts, in per cent of loss.
        level: of the two-sided intervals.

    Raises:
        AnalysisError: too few pairs, several architectures on a side, or a target that is smaller
            than the largest size.
    """
    pairs, unpaired = paired(base, changed)
    return judge(pairs, at=at, margin=margin, level=level, unpaired=unpaired)


def judge(
    pairs: pd.DataFrame, *, at: float | None = None, margin: float = 0.0, level: float = LEVEL,
    unpaired: list[str] | None = None,
) -> Gate:  # fmt: skip
    """Judges paired differences; see `gate`.

    Args:
        pairs: columns size, seed, n_params, difference.
        at, margin, level: see `gate`.
        unpaired: what was left out.
    """
    if margin < 0:
        raise AnalysisError(f"margin={margin:g}: must be 0 or more, a gain in per cent of loss")
    rungs, alone = _rungs(pairs, level)
    x, means, variances, counts = _arrays(pairs, rungs)
    largest = float(numbers(rungs, "n_params")[-1])
    size = REACH * largest if at is None else at
    if size < largest:
        raise AnalysisError(
            f"at={size:g}: must be at least the largest size measured, {largest:g} parameters"
        )
    target = _contrast(_weights(x, math.log10(size)), means, variances, counts, level)
    slope = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    trend = _contrast(slope, means, variances, counts, level)
    bent = _bent(x, means, variances, counts)
    top = Estimate(*(float(rungs.iloc[-1][name]) for name in ("difference", "low", "high")))
    verdict = NOT_DETERMINED
    if not bent and target.high < -margin and top.high < -margin:
        verdict = TRANSFERS
    elif not bent and target.low > -margin:
        verdict = DOES_NOT
    needed = None
    if verdict == NOT_DETERMINED and not bent:
        needed = _seeds_needed(target, margin, int(counts.min()))
    return Gate(verdict, level, margin, rungs, pairs, trend, target, size, bent, needed,
                [*(unpaired or []), *alone])  # fmt: skip


def paired(base: Sweep, changed: Sweep) -> tuple[pd.DataFrame, list[str]]:
    """The pairs of two sweeps, and the runs that have none.

    Raises:
        AnalysisError: several architectures on a side, or no pair.
    """
    sides: list[dict[tuple[str, int], dict[Any, Any]]] = []
    for sweep in (base, changed):
        points = sweep.require_points()
        archs = groups(points, "arch")
        if len(archs) > 1:
            raise AnalysisError(
                f"{sweep.name} has the architectures {', '.join(archs)}: choose one of each side "
                "with --only arch=NAME"
            )
        last = points.sort_values("tokens").groupby("run_id", sort=False).tail(1)
        sides.append({(str(r["size"]), int(r["seed"])): r for r in last.to_dict("records")})
    rows: list[dict[str, Any]] = []
    unpaired: list[str] = []
    for key, one in sides[0].items():
        other = sides[1].get(key)
        if other is None:
            unpaired.append(f"{one['run_id']}: {changed.name} has no {key[0]} with seed {key[1]}")
        elif abs(other["tokens"] / one["tokens"] - 1) > TOKENS_TOLERANCE:
            unpaired.append(f"{one['run_id']}: {one['tokens']:,.0f} tokens, its partner "
                            f"{other['tokens']:,.0f}")  # fmt: skip
        else:
            rows.append({
                "size": key[0], "seed": key[1], "n_params": float(one["n_params"]),
                "tokens": float(one["tokens"]), "base": float(one["loss"]),
                "changed": float(other["loss"]),
                "difference": 100 * math.log(other["loss"] / one["loss"]),
            })  # fmt: skip
    for (size, seed), row in sides[1].items():
        if (size, seed) not in sides[0]:
            unpaired.append(f"{row['run_id']}: {base.name} has no {size} with seed {seed}")
    if not rows:
        raise AnalysisError(
            f"{base.name} and {changed.name} share no size and seed: {'; '.join(unpaired[:3])}"
        )
    return pd.DataFrame(rows).sort_values(["n_params", "seed"], ignore_index=True), unpaired


def _rungs(pairs: pd.DataFrame, level: float) -> tuple[pd.DataFrame, list[str]]:
    """A row a size with several seeds, and what is said of the others."""
    rows: list[dict[str, Any]] = []
    alone: list[str] = []
    for size in dict.fromkeys(pairs.sort_values("n_params")["size"]):
        own = where(pairs, size=size)
        values = numbers(own, "difference")
        if len(values) < 2:
            alone.append(f"size {size}: one seed has no noise to be compared with")
            continue
        spread = float(values.std(ddof=1) / math.sqrt(len(values)))
        half = spread * float(stats.t.ppf((1 + level) / 2, len(values) - 1))
        mean = float(values.mean())
        rows.append({"size": size, "n_params": float(numbers(own, "n_params").mean()),
                     "seeds": len(values), "difference": mean, "low": mean - half,
                     "high": mean + half})  # fmt: skip
    if len(rows) < 2:
        raise AnalysisError(
            f"{len(rows)} size(s) with two seeds or more: the noise of seeds and the trend with "
            "size need two sizes, better with four seeds each"
            + (f" ({'; '.join(alone)})" if alone else "")
        )
    return pd.DataFrame(rows), alone


def _arrays(pairs: pd.DataFrame, rungs: pd.DataFrame) -> tuple[Array, Array, Array, Array]:
    """log10 N, and the mean, its variance and the seeds of every size.

    Raises:
        AnalysisError: seeds do not differ at all.
    """
    groups_ = [numbers(where(pairs, size=size), "difference") for size in rungs["size"]]
    variances = np.array([values.var(ddof=1) / len(values) for values in groups_])
    if not variances.any():
        raise AnalysisError("every seed gives the same difference: are they the same runs?")
    return (np.log10(numbers(rungs, "n_params")), numbers(rungs, "difference"), variances,
            numbers(rungs, "seeds"))  # fmt: skip


def _weights(x: Array, at: float) -> Array:
    """Of the means, in the straight line's value at a place."""
    return 1 / len(x) + (at - x.mean()) * (x - x.mean()) / ((x - x.mean()) ** 2).sum()


def _contrast(
    weights: Array, means: Array, variances: Array, counts: Array, level: float
) -> Estimate:
    """A weighted sum of means with unequal variances, by Welch and Satterthwaite."""
    parts = weights**2 * variances
    variance = float(parts.sum())
    freedom = variance**2 / float((parts**2 / (counts - 1)).sum())
    half = math.sqrt(variance) * float(stats.t.ppf((1 + level) / 2, freedom))
    value = float(weights @ means)
    return Estimate(value, value - half, value + half)


def _bent(x: Array, means: Array, variances: Array, counts: Array) -> bool:
    """Whether three or more means lie off a straight line by more than seeds explain."""
    if len(x) < 3:
        return False
    slope, intercept = np.polyfit(x, means, 1)
    off = float(((means - intercept - slope * x) ** 2).sum() / (len(x) - 2))
    ratio = off / float(variances.mean())
    return bool(stats.f.sf(ratio, len(x) - 2, float((counts - 1).sum())) < BEND_LEVEL)


def _seeds_needed(target: Estimate, margin: float, seeds: int) -> int | None:
    """Half-widths fall with the root of the seeds; None where the gain is the margin itself."""
    distance = abs(target.value + margin)
    half = (target.high - target.low) / 2
    return None if distance == 0 else max(seeds + 1, math.ceil(seeds * (half / distance) ** 2))
