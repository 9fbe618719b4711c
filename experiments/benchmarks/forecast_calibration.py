"""Do the intervals of `linscale forecast` hold what they say? Public ladders and simulated worlds.

    python -m experiments.benchmarks.forecast_calibration [--data DIR] [-o FILE.md]

Every set of runs is cut: the cheaper rows (or the smaller sizes) are known, the rest are forecast
and compared with what was measured. Three methods answer: `linscale forecast` as it stands, with
the Chinchilla form and its rolling check; its law with a free outer exponent (gamma); and the
percentile bootstrap of `fit_law` with one run's noise. For frontier points in C alone: the
forecast, and a bootstrap of E + A C^-alpha.

Coverage, half-widths, CRPS and errors are averages in which every family of sets counts the same,
within it every set, within it every cut. Half-widths, scores and errors are in per cent of loss.
The sets are not part of the repository: `--data`, or LINSCALE_DATA, names their folder, and
`docs/forecast.md` where they come from.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import scipy

from analysis.errors import AnalysisError
from analysis.fit.fitting import fit_law
from analysis.fit.uncertainty import inflated_residuals
from analysis.forecast.group import prepare_group
from analysis.forecast.predictive import predict_from
from analysis.forecast.rows import gather
from analysis.forecast.score import crps, interval, quantiles_of
from analysis.io.frames import groups, numbers, rows, where, words
from analysis.units import Array
from experiments.benchmarks.public_ladders import Ladder, data_folder, public_ladders
from experiments.benchmarks.simulated_ladders import simulated_ladders

LEVELS = (0.5, 0.8, 0.9)
BOOTSTRAP = 200
MOST_TARGETS = 60
"""Held-out rows of a cut that are forecast, spread evenly over them."""


# ---- cuts -------------------------------------------------------------------------------------


def cuts(ladder: Ladder) -> Iterator[tuple[str, pd.DataFrame, pd.DataFrame]]:
    """Name, known rows and held-out rows of every cut that leaves enough of both."""
    points = ladder.points
    compute = points["flops"].to_numpy()
    edges = {f"C q{q:g}": float(np.quantile(compute, q)) for q in (0.5, 0.65, 0.8)}
    edges |= {f"C / {k}": float(compute.max()) / k for k in (16, 64)}
    masks = {name: compute <= edge * (1 + 1e-9) for name, edge in edges.items()}
    if not ladder.only_compute:
        n = points["n_params"].to_numpy()
        sizes = np.unique(n)
        for q in (0.6, 0.8):
            masks[f"N q{q:g}"] = n <= float(np.quantile(sizes, q)) * (1 + 1e-9)
    least = 8
    seen: set[bytes] = set()
    for name, known in masks.items():
        if known.sum() < least or not (~known).any() or known.tobytes() in seen:
            continue
        seen.add(known.tobytes())
        held = np.flatnonzero(~known)
        if len(held) > MOST_TARGETS:
            held = held[np.linspace(0, len(held) - 1, MOST_TARGETS).astype(int)]
        chosen = np.isin(np.arange(len(points)), held)
        yield (name, rows(points, known).reset_index(drop=True),
               rows(points, chosen).reset_index(drop=True))  # fmt: skip


# ---- methods ----------------------------------------------------------------------------------


def _targets(form: str, held: pd.DataFrame) -> dict[str, Array]:
    if form.startswith("power_c"):
        return {"c": held["flops"].to_numpy(dtype=float)}
    return {"n": held["n_params"].to_numpy(dtype=float), "d": held["tokens"].to_numpy(dtype=float)}


def calibrated(form: str, known: pd.DataFrame, held: pd.DataFrame) -> Array | None:
    """Draws (s, t) of the calibrated law; None where it gives no interval."""
    predictive = predict_from(gather(known, form), {})
    if predictive.no_interval:
        return None
    return predictive.draw(_targets(form, held), _runs(held))


def forecast(form: str, known: pd.DataFrame, held: pd.DataFrame) -> Array | None:
    """The same with the rolling check on the known rows, as `linscale forecast` makes it."""
    gathered = gather(known, form)
    if gathered.too_few:
        return None
    group = prepare_group("all", {form: gathered}, {}, 0)
    return group.draw(_targets(form, held), _runs(held))


def _runs(held: pd.DataFrame) -> list[str]:
    return words(held, "run_id") if "run_id" in held else [""] * len(held)


def bootstrapped(form: str, known: pd.DataFrame, held: pd.DataFrame) -> Array:
    """Draws (s, t) of the percentile bootstrap with one run's noise, as `LawFit.band` takes it."""
    fit = fit_law(form, known, bootstrap=BOOTSTRAP)
    draws = fit.predict_draws(**_targets(form, held))
    noise = inflated_residuals(fit.problem, fit.theta)
    rng = np.random.default_rng(0)
    return draws * np.exp(rng.choice(noise - np.median(noise), draws.shape))


Method = Callable[[pd.DataFrame, pd.DataFrame], Array | None]


def methods(only_compute: bool) -> dict[str, Method]:
    """What is compared, by name."""
    if only_compute:
        return {
            "forecast": lambda k, h: forecast("power_c_e", k, h),
            "bootstrap": lambda k, h: bootstrapped("power_c_e", k, h),
        }
    return {
        "forecast, Chinchilla": lambda k, h: forecast("chinchilla", k, h),
        "its law with gamma": lambda k, h: calibrated("gamma", k, h),
        "bootstrap, Chinchilla": lambda k, h: bootstrapped("chinchilla", k, h),
    }


def measure(ladders: list[Ladder]) -> pd.DataFrame:
    """One row per ladder, cut and method and held-out row: leap, inside, width, crps, error."""
    parts: list[pd.DataFrame] = []
    for ladder in ladders:
        for cut, known, held in cuts(ladder):
            outcome = held["loss"].to_numpy(dtype=float)
            leap = held["flops"].to_numpy(dtype=float) / float(numbers(known, "flops").max())
            for name, method in methods(ladder.only_compute).items():
                begin = time.process_time()
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        draws = method(known, held)
                except AnalysisError:
                    draws = None
                if draws is None:
                    continue
                q = quantiles_of(np.maximum(draws, 1e-9))
                part = {"family": ladder.family, "set": ladder.name, "cut": cut, "method": name,
                       "rows": len(known), "leap": leap, "seconds": time.process_time() - begin,
                       "crps": crps(q, outcome)}  # fmt: skip
                part["error"] = 100 * np.log(q[49] / outcome)
                for level in LEVELS:
                    low, high = interval(q, level)
                    part[f"in{level:.0%}"] = (low <= outcome) & (outcome <= high)
                    part[f"width{level:.0%}"] = 50 * np.log(high / low)
                parts.append(pd.DataFrame(part))
    return pd.concat(parts, ignore_index=True)


# ---- tables -----------------------------------------------------------------------------------

_COLUMNS = ("in50%", "in80%", "in90%", "width90%", "crps", "size", "error")


def averaged(table: pd.DataFrame) -> dict[str, float]:
    """Means in which families, sets within them and cuts within these count the same."""
    values = table.assign(size=np.abs(numbers(table, "error")))
    for keys in (["family", "set", "cut"], ["family", "set"], ["family"]):
        values = values.groupby(keys, as_index=False)[list(_COLUMNS)].mean()
        values = cast(pd.DataFrame, values)
    return {name: float(numbers(values, name).mean()) for name in _COLUMNS}


def summary(table: pd.DataFrame) -> list[str]:
    """Markdown rows: one per method."""
    lines = ["| method | cuts | 50 % | 80 % | 90 % | half-width | CRPS | error | bias |",
             "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for name in dict.fromkeys(words(table, "method")):
        own = where(table, method=name)
        a = averaged(own)
        count = len(set(zip(words(own, "set"), words(own, "cut"), strict=True)))
        lines.append(
            f"| {name} | {count} | {a['in50%']:.2f} | {a['in80%']:.2f} | {a['in90%']:.2f} | "
            f"{a['width90%']:.1f} | {a['crps']:.2f} | {a['size']:.2f} | {a['error']:+.2f} |"
        )
    return lines


def by_leap(table: pd.DataFrame) -> list[str]:
    """Markdown: coverage of 90 %, median error and bias by how far the forecast leaps in C."""
    lines = ["| method | leap | rows | 90 % | median error | bias |", "|---|---|---|---|---|---|"]
    edges = [0, 1, 3, 8, 32, np.inf]
    for name in dict.fromkeys(words(table, "method")):
        own = where(table, method=name)
        leap = numbers(own, "leap")
        for low, high in itertools.pairwise(edges):
            part = rows(own, (leap > low) & (leap <= high))
            if len(part):
                lines.append(
                    f"| {name} | {low:g} to {high:g} | {len(part)} | "
                    f"{numbers(part, 'in90%').mean():.2f} | "
                    f"{np.median(np.abs(numbers(part, 'error'))):.2f} | "
                    f"{averaged(part)['error']:+.2f} |"
                )
    return lines


def by_family(table: pd.DataFrame) -> list[str]:
    """Markdown: coverage of 90 % and CRPS of each family."""
    names = list(dict.fromkeys(words(table, "method")))
    lines = ["| family | " + " | ".join(f"{n}: 90 %, CRPS" for n in names) + " |",
             "|---|" + "---|" * len(names)]  # fmt: skip
    for family in groups(table, "family"):
        cells: list[str] = []
        for name in names:
            part = where(table, family=family, method=name)
            a = averaged(part) if len(part) else None
            cells.append("" if a is None else f"{a['in90%']:.2f}, {a['crps']:.2f}")
        lines.append(f"| {family} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, help="folder of the public sets")
    parser.add_argument("--worlds", type=int, default=3, help="suites of each simulated kind")
    parser.add_argument("-o", "--output", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    ladders = public_ladders(data_folder(options.data))
    plane = measure([each for each in ladders if not each.only_compute])
    frontier = measure([each for each in ladders if each.only_compute])
    worlds = measure(simulated_ladders(options.worlds))
    by_size = np.array([cut.startswith("N") for cut in words(plane, "cut")])
    quick = where(rows(plane, numbers(plane, "rows") <= 110), method="forecast, Chinchilla")
    seconds = numbers(quick, "seconds")
    lines = [
        f"# Coverage of forecasts, {date.today().isoformat()}",
        "",
        "`python -m experiments.benchmarks.forecast_calibration`; "
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, NumPy "
        f"{np.__version__}, SciPy {scipy.__version__}. Half-widths (of 90 % intervals), CRPS, "
        "errors and bias in per cent of loss.",
        "",
        f"## Public sets in N and D: {len(set(plane['set']))} sets, "
        f"{len(set(plane['family']))} families",
        "", *summary(plane), "",
        "By cuts in C and in N:",
        "", *summary(rows(plane, ~by_size)), "", *summary(rows(plane, by_size)), "",
        "By leap in compute:", "", *by_leap(plane), "",
        "By family:", "", *by_family(plane), "",
        f"## Frontier points in C alone: {len(set(frontier['set']))} sets", "",
        *summary(frontier), "",
        f"## Simulated worlds: {len(set(worlds['set']))} suites of {len(set(worlds['family']))} "
        "kinds", "",
        *summary(worlds), "", *by_family(worlds), "",
        f"A forecast of up to 110 rows takes {np.median(seconds):.2f} s of CPU (median), "
        f"{seconds.max():.2f} s at most, with its rolling check.", "",
    ]  # fmt: skip
    text = "\n".join(lines)
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
