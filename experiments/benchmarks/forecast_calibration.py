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
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
from analysis.laws.power_sum import Array

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).resolve().parents[2]
LEVELS = (0.5, 0.8, 0.9)
BOOTSTRAP = 200
MOST_TARGETS = 60
"""Held-out rows of a cut that are forecast, spread evenly over them."""


@dataclass(frozen=True)
class Ladder:
    """One set of runs."""

    family: str
    name: str
    points: pd.DataFrame
    """Columns n_params, tokens, flops, loss, run_id; or flops and loss alone."""

    @property
    def only_compute(self) -> bool:
        """Whether it holds frontier points in C alone."""
        return "n_params" not in self.points


# ---- sets -------------------------------------------------------------------------------------


def public_ladders(root: Path) -> list[Ladder]:
    """Every public set below a folder."""
    return [*_chinchilla(root), *_porian(root), *_gemstones(root), *_isoflops(root), *_olmo(root)]


def _table(n: object, d: object, loss: object, run: object = None) -> pd.DataFrame:
    frame = pd.DataFrame({"n_params": n, "tokens": d, "loss": loss}).astype(float)
    frame["flops"] = 6.0 * frame["n_params"] * frame["tokens"]
    labels = [str(i) for i in range(len(frame))] if run is None else run
    return frame.assign(run_id=labels).reset_index(drop=True)


def _chinchilla(root: Path) -> Iterator[Ladder]:
    data = pd.read_csv(root / "chinchilla_epoch" / "svg_extracted_data.csv")
    n = data["Model Size"]
    yield Ladder("chinchilla", "chinchilla",
                 _table(n, data["Training FLOP"] / (6 * n), data["loss"]))  # fmt: skip


def _porian(root: Path) -> Iterator[Ladder]:
    folder = root / "porian_formll"
    keys = ("file", "dataset", "hparams", "warmup", "decay", "param_count", "val")
    points = _keyed(pd.read_csv(folder / "isoflop_points_tidy.csv"), keys)
    for name in groups(points, "key"):
        own = where(points, key=name)
        family = f"porian {words(own, 'dataset')[0]}"
        yield Ladder(family, name, _table(own["n"], own["t"], own["loss"]))
    pairs = _keyed(pd.read_csv(folder / "optimal_pairs_tidy.csv"), keys)
    for name in groups(pairs, "key"):
        own = where(pairs, key=name)
        family = f"porian {words(own, 'dataset')[0]} frontier"
        yield Ladder(family, f"{name} frontier", _frontier(own["flops"], own["loss"]))


def _keyed(frame: pd.DataFrame, keys: tuple[str, ...]) -> pd.DataFrame:
    """With a column `key` that joins the words of others."""
    return frame.assign(key=["_".join(row) for row in zip(*(words(frame, k) for k in keys),
                                                          strict=True)])  # fmt: skip


def _frontier(compute: object, loss: object) -> pd.DataFrame:
    return pd.DataFrame({"flops": compute, "loss": loss}).astype(float).reset_index(drop=True)


def _gemstones(root: Path) -> Iterator[Ladder]:
    for name in ("hot", "cool_end", "lr_ablation_hot", "hot_100b+"):
        path = root / "gemstones" / "wandb_dfs" / f"wandb_df_for_fitting_{name}.jsonl"
        data = pd.read_json(path, lines=True)
        data = rows(data, data["step"] > 0)
        family = "gemstones decayed" if "cool" in name else "gemstones"
        yield Ladder(family, f"gemstones {name}",
                     _table(data["params_active_precise"], data["tokens"], data["final_loss"],
                            words(data, "run_name")))  # fmt: skip


def _isoflops(root: Path) -> Iterator[Ladder]:
    data = pd.read_csv(root / "isoflop_collection" / "isoflops.csv")
    data = _keyed(rows(data, data["condition"].fillna("raw_loss") == "raw_loss"),
                  ("source", "dataset"))  # fmt: skip
    for name in groups(data, "key"):
        own = where(data, key=name)
        family = name.split("_")[0]
        if family in ("epochai", "ml"):
            continue  # the points of chinchilla_epoch
        yield Ladder(family, name, _table(own["params"], own["tokens"], own["loss"]))
        best = own.sort_values("loss").drop_duplicates("budget").sort_values("budget")
        yield Ladder(f"{family} frontier", f"{name} lowest of each budget",
                     _frontier(best["budget"], best["loss"]))  # fmt: skip


def _olmo(root: Path) -> Iterator[Ladder]:
    ladder = pd.read_csv(root / "olmo_ladder" / "ladder_c4.csv")
    for domain in ("c4_en", "dolma_books", "dolma_stack", "dolma_wiki", "dolma_pes2o"):
        column = f"eval/{domain}-validation/CrossEntropyLoss"
        loss = [_last(root / "olmo_ladder" / f"{r['size']}-{r['xC']:g}xC.csv", column)
                for r in ladder.to_dict("records")]  # fmt: skip
        yield Ladder("olmo", f"olmo {domain}", _table(ladder["N"], ladder["D"], loss))


def _last(path: Path, column: str) -> float:
    frame = pd.read_csv(path).sort_values("_step")
    values = numbers(frame, column)
    return float(values[np.isfinite(values)][-1])


World = Callable[[Array, Array, np.random.Generator], Array]


def _worlds() -> dict[str, World]:
    """ln L by N and D; all but the first two are outside the forms that are fitted."""

    def chinchilla(n: Array, d: Array, rng: np.random.Generator) -> Array:
        e, a, b = rng.uniform(1.2, 2.2), rng.uniform(0.25, 0.42), rng.uniform(0.25, 0.42)
        return np.log(e + 0.8 * (n / 1e8) ** -a + 0.9 * (d / 2e9) ** -b)

    def gamma(n: Array, d: Array, rng: np.random.Generator) -> Array:
        e, g = rng.uniform(1.2, 2.2), rng.uniform(0.4, 0.8)
        return np.log(e + (2.0 * (n / 1e8) ** -0.6 + 2.0 * (d / 2e9) ** -0.6) ** g * 0.6)

    def kaplan(n: Array, d: Array, rng: np.random.Generator) -> Array:
        a, b = rng.uniform(0.06, 0.09), rng.uniform(0.08, 0.11)
        return np.log(((8.8e13 / n) ** (a / b) + 5.4e13 / d) ** b)

    def broken(n: Array, d: Array, rng: np.random.Generator) -> Array:
        bend = rng.uniform(0.05, 0.15) * np.logaddexp(0, np.log(n * d / 3e18))
        return chinchilla(n, d, rng) - 0.15 * bend

    def mistuned(n: Array, d: Array, rng: np.random.Generator) -> Array:
        slope = rng.uniform(-0.008, 0.012)
        return chinchilla(n, d, rng) + slope * np.log(n / 1e8)

    def under_trained(n: Array, d: Array, rng: np.random.Generator) -> Array:
        return chinchilla(n, d, rng) + rng.uniform(0.05, 0.3) * (d / n / 4 + 1) ** -1.0

    def repeated(n: Array, d: Array, rng: np.random.Generator) -> Array:
        unique = np.exp(rng.uniform(np.log(2e10), np.log(2e11)))
        fresh = unique * (1 + 5 * (1 - np.exp(-np.maximum(d / unique - 1, 0) / 5)))
        return chinchilla(n, np.where(d > unique, fresh, d), rng)

    def by_size(n: Array, d: Array, rng: np.random.Generator) -> Array:
        _, index = np.unique(n, return_inverse=True)
        return chinchilla(n, d, rng) + 0.01 * rng.standard_normal(index.max() + 1)[index]

    def heavy(n: Array, d: Array, rng: np.random.Generator) -> Array:
        return chinchilla(n, d, rng) + 0.008 * rng.standard_t(2.5, len(n))

    return {f.__name__: f for f in (chinchilla, gamma, kaplan, broken, mistuned, under_trained,
                                    repeated, by_size, heavy)}  # fmt: skip


def simulated_ladders(each: int = 3) -> list[Ladder]:
    """`each` suites of every kind: 6 to 9 sizes, 4 to 6 horizons, noise of .2 to 1 %."""
    found: list[Ladder] = []
    for kind, world in _worlds().items():
        for seed in range(each):
            rng = np.random.default_rng([seed, len(found)])
            sizes = np.geomspace(2e7, np.exp(rng.uniform(np.log(1e9), np.log(8e9))),
                                 int(rng.integers(6, 10)))  # fmt: skip
            ratios = np.geomspace(rng.uniform(2, 8), rng.uniform(60, 200), int(rng.integers(4, 7)))
            n, ratio = (v.ravel() for v in np.meshgrid(sizes, ratios, indexing="ij"))
            d = n * ratio
            noise = rng.uniform(0.002, 0.01) * rng.standard_normal(len(n))
            loss = np.exp(world(n, d, rng) + noise)
            found.append(Ladder(kind, f"{kind} {seed}", _table(n, d, loss)))
    return found


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
    folder = options.data or Path(os.environ.get("LINSCALE_DATA", ROOT.parent / "shared" / "data"))
    ladders = public_ladders(folder)
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
