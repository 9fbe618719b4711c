"""Do several architectures share their exponents? One set for all against one set each.

    shared_exponents({name: fit}) -> SharedExponents
        1. for trial exponents every group is solved for its own E and coefficients
        2. the sum of objectives is minimised over the exponents (Nelder-Mead: one to three of them)
        3. AICc of both models, and a likelihood ratio
        4. with draws: the interval of every pairwise difference, which respects runs as the unit

The objective is read as the scale of the noise: Gaussian for least squares, Laplace for the others.
The likelihood ratio takes points as independent and is too sure of itself when a run gave several;
the intervals of the differences are the answer then.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.fit.law_fit import LawFit
from analysis.fit.uncertainty import quantiles
from analysis.io.frames import plain
from analysis.units import LEVEL, Array


@dataclass(frozen=True)
class SharedExponents:
    """Shared against separate exponents."""

    exponents: dict[str, float]
    """The best common values."""
    aicc_shared: float
    aicc_free: float
    p_value: float
    """Of the likelihood ratio: small speaks against sharing."""
    differences: pd.DataFrame
    """Columns parameter, x, y, difference, lo, hi, differs; only with draws."""
    verdict: str

    def table(self) -> pd.DataFrame:
        """AICc of the two models."""
        return pd.DataFrame(
            {"exponents": ["shared", "separate"], "aicc": [self.aicc_shared, self.aicc_free]}
        )

    def words(self) -> pd.DataFrame:
        """The differences as text with their intervals."""
        return pd.DataFrame([
            {"exponent": r["parameter"], "difference": f"{r['x']} - {r['y']}",
             "value": f"{r['difference']:+.3f} [{r['lo']:+.3f}, {r['hi']:+.3f}]",
             "excludes zero": "yes" if r["differs"] else "no"}
            for r in self.differences.to_dict("records")
        ])  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "exponents": self.exponents, "aicc_shared": self.aicc_shared,
            "aicc_free": self.aicc_free, "p_value": self.p_value, "verdict": self.verdict,
            "differences": plain(self.differences),
        }  # fmt: skip

    def _repr_html_(self) -> str:
        return (
            f"<p>{self.verdict}</p>{self.table().to_html(index=False)}"
            f"{self.differences.to_html(index=False)}"
        )


def shared_exponents(fits: Mapping[str, LawFit], *, level: float = LEVEL) -> SharedExponents:
    """Compares one set of exponents for all groups with one set each.

    Raises:
        AnalysisError: fewer than two fits, different forms or objectives, or a form whose exponents
            are not coordinates of its fit (kaplan).
    """
    from scipy.optimize import minimize  # a large part of the time to start: loaded when used
    from scipy.special import chdtrc

    first = _check(fits)
    law, names = first.law, list(first.law.exponents)
    position = [law.parameters.index(n) for n in names]
    thetas = {k: f.theta.copy() for k, f in fits.items()}

    def total(trial: Array) -> float:
        value = 0.0
        for key, fit in fits.items():
            lower, upper = fit.problem.lower.copy(), fit.problem.upper.copy()
            fixed = np.clip(trial, lower[position], upper[position])
            lower[position] = upper[position] = fixed
            start = thetas[key].copy()
            start[position] = fixed
            solution = fit.problem.solve(start, lower=lower, upper=upper)
            thetas[key] = solution.theta[0]
            value += float(solution.value[0])
        return value * scale

    free = sum(f.objective for f in fits.values())
    scale = 1.0 / max(free, 1e-300)
    start = np.mean([f.theta[position] for f in fits.values()], axis=0)
    found = minimize(
        total, start, method="Nelder-Mead", options={"xatol": 1e-5, "fatol": 1e-8, "maxiter": 400}
    )
    shared = float(found.fun) / scale
    points = sum(len(f.observations.loss) for f in fits.values())
    factor = 1 if first.problem.robust.gaussian else 2
    k_free = law.size * len(fits) + 1
    k_shared = k_free - len(names) * (len(fits) - 1)
    ratio = factor * points * np.log(max(shared / max(free, 1e-300), 1.0))
    p_value = float(chdtrc(k_free - k_shared, ratio))
    aicc = [
        factor * points * np.log(max(value, 1e-300) / points) + 2 * k
        + (2 * k * (k + 1) / (points - k - 1) if points > k + 1 else np.inf)
        for value, k in ((shared, k_shared), (free, k_free))
    ]  # fmt: skip
    differences = _differences(fits, names, level)
    exponents = dict(zip(names, np.asarray(found.x, dtype=float).tolist(), strict=True))
    verdict = _verdict(exponents, aicc, differences, level)
    return SharedExponents(exponents, float(aicc[0]), float(aicc[1]), p_value, differences, verdict)


def _check(fits: Mapping[str, LawFit]) -> LawFit:
    if len(fits) < 2:
        raise AnalysisError(f"sharing exponents needs at least two groups, got {len(fits)}")
    values = list(fits.values())
    first = values[0]
    if any(f.form != first.form or f.problem.robust != first.problem.robust for f in values):
        raise AnalysisError("fits to be compared must have the same form and objective, got "
                            + ", ".join(f"{k}: {f.form}" for k, f in fits.items()))  # fmt: skip
    if first.form == "kaplan":
        raise AnalysisError("kaplan's exponents cannot be held in common; compare with gamma or "
                            "chinchilla instead")  # fmt: skip
    return first


def _differences(fits: Mapping[str, LawFit], names: list[str], level: float) -> pd.DataFrame:
    rows: list[dict[str, object]] = []
    for x, y in itertools.combinations(fits, 2):
        if fits[x].draws is None or fits[y].draws is None:
            continue
        for name in names:
            a, b = fits[x].draws_of(name), fits[y].draws_of(name)
            count = min(len(a), len(b))
            low, high = quantiles(a[:count] - b[:count], level)
            rows.append({
                "parameter": name, "x": x, "y": y,
                "difference": fits[x].params[name] - fits[y].params[name],
                "lo": float(low), "hi": float(high), "differs": not low <= 0 <= high,
            })  # fmt: skip
    return pd.DataFrame(rows, columns=["parameter", "x", "y", "difference", "lo", "hi", "differs"])


def _verdict(
    exponents: dict[str, float], aicc: list[float], differences: pd.DataFrame, level: float
) -> str:
    common = ", ".join(f"{k} = {v:.3f}" for k, v in exponents.items())
    gap = aicc[1] - aicc[0]
    prefers = "shared" if gap > 0 else "separate"
    text = f"AICc prefers {prefers} exponents (by {abs(gap):.1f}); shared they are {common}."
    if not len(differences):
        return text + " No draws: nothing can be said about single differences."
    count = int(differences["differs"].to_numpy(dtype=bool).sum())
    return text + (
        f" {count} of {len(differences)} pairwise differences exclude zero at {level:.0%}, where "
        f"about {(1 - level) * len(differences):.1g} would by chance alone."
        if count
        else f" No pairwise difference excludes zero at {level:.0%}."
    )
