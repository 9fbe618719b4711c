"""How long a fit and its bootstrap take, against the public practice, in one run.

Three ways to get the Chinchilla parameters and 4,000 bootstrap refits of 240 points:

    linscale     variable projection for starts, batched exact Newton (this package)
    per-sample   SciPy BFGS with the analytic gradient on centred logarithms, one sample at a time
    public       what public notebooks do: numeric gradient, uncentred; L-BFGS-B from a grid of
                 4,500 starts for the fit, one BFGS a sample from the full-data optimum for the
                 bootstrap; a share is timed and scaled up

Objectives are compared sample by sample: faster counts only at an equal or lower objective. The
points are synthetic (the law of 2404.10102 with heavy-tailed noise) unless a CSV with the columns
of that paper's data is given.

    OMP_NUM_THREADS=1 python -m experiments.benchmarks.fitting [--csv FILE] [-o FILE.json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy
from scipy.optimize import minimize
from scipy.special import huber

from analysis.fit.fitting import fit_law
from analysis.fit.law_fit import LawFit
from analysis.fit.problem import Problem
from analysis.units import Array

SAMPLES = 4000
GRID_STARTS = 4500
SCIPY_SAMPLES, PUBLIC_SAMPLES, PUBLIC_STARTS = 100, 20, 30
DELTA = 1e-3


def synthetic() -> pd.DataFrame:
    """240 runs spread like those of Chinchilla's Figure 4."""
    rng = np.random.default_rng(0)
    n = np.exp(rng.uniform(np.log(6e7), np.log(1.2e10), 240))
    d = n * np.exp(rng.normal(np.log(20), 1.2, 240))
    loss = 1.8172 + 477.8 * n**-0.3473 + 2143.4 * d**-0.3672
    noise = 0.005 * rng.standard_t(3, 240)
    return pd.DataFrame({"n_params": n, "tokens": d, "loss": loss * np.exp(noise)})


def from_csv(path: Path) -> pd.DataFrame:
    """The points of 2404.10102 (five highest losses dropped, D = C / 6N)."""
    data = pd.read_csv(path).rename(columns={"Model Size": "n_params", "Training FLOP": "flops"})
    data["tokens"] = data["flops"] / (6 * data["n_params"])
    return data.sort_values("loss").head(len(data) - 5)


def timed(call: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """CPU seconds of the best of `repeats` calls, and the last result.

    Everything runs on one thread (set OMP_NUM_THREADS=1), so that on an idle machine this is the
    wall time; on a shared one it leaves out the waiting.
    """
    seconds: list[float] = []
    result = None
    for _ in range(repeats):
        begin = time.process_time()
        result = call()
        seconds.append(time.process_time() - begin)
    return min(seconds), result


def per_sample(problem: Problem, theta: Array, weight: Array) -> float:
    """One refit by SciPy BFGS with gradient, scaled by 1 / delta; returns the objective."""

    def both(t: Array) -> tuple[float, Array]:
        value, jacobian, _ = problem.law.evaluate(t[None], problem.x)
        residual = value[0] - problem.y
        loss = float(weight @ huber(DELTA, residual))
        slope = jacobian[0] @ (weight * np.clip(residual, -DELTA, DELTA))
        return loss / DELTA, slope / DELTA

    return float(minimize(both, theta, jac=True, method="BFGS").fun) * DELTA


def public(data: pd.DataFrame, weight: Array, start: Array, method: str = "BFGS") -> float:
    """One minimisation as in public notebooks: raw logarithms, numeric gradient."""
    log_n, log_d = np.log(data["n_params"].to_numpy()), np.log(data["tokens"].to_numpy())
    log_l = np.log(data["loss"].to_numpy())

    def objective(p: Array) -> float:
        a, b, e, alpha, beta = p
        terms = np.stack([a - alpha * log_n, b - beta * log_d, np.full_like(log_n, e)])
        top = terms.max(axis=0)
        predicted = top + np.log(np.exp(terms - top).sum(axis=0))
        return float(weight @ huber(DELTA, predicted - log_l))

    return float(minimize(objective, start, method=method).fun)


def run(data: pd.DataFrame) -> dict[str, Any]:
    """All measurements."""
    fit_law("chinchilla", data)  # warm up
    fit_seconds, fit = timed(lambda: fit_law("chinchilla", data), 9)
    assert isinstance(fit, LawFit)
    boot_seconds, drawn = timed(lambda: fit.bootstrap(SAMPLES, method="pairs"), 3)
    wild_seconds, _ = timed(lambda: fit.bootstrap(SAMPLES, method="wild"), 1)

    # The same resamples, for the objective of every method
    rng = np.random.default_rng(1)
    points = len(data)
    weight = rng.multinomial(points, np.full(points, 1 / points), SCIPY_SAMPLES).astype(float)
    ours = fit.problem.solve(np.tile(fit.theta, (SCIPY_SAMPLES, 1)), weight=weight).value
    one_seconds, theirs = timed(
        lambda: np.array([per_sample(fit.problem, fit.theta, w) for w in weight]), 1
    )
    best = np.array([fit.params[k] for k in ("A", "B", "E", "alpha", "beta")])
    start = np.concatenate([np.log(best[:3]), best[3:]])
    public_seconds, loose = timed(
        lambda: np.array([public(data, w, start) for w in weight[:PUBLIC_SAMPLES]]), 1
    )
    grid = np.stack(np.meshgrid(
        [0.0, 5, 10, 15, 20, 25], [0.0, 5, 10, 15, 20, 25], [-1, -0.5, 0, 0.5, 1],
        [0, 0.5, 1, 1.5, 2], [0, 0.5, 1, 1.5, 2], indexing="ij",
    ), axis=-1).reshape(-1, 5)  # fmt: skip
    one = np.ones(points)
    chosen = grid[rng.choice(len(grid), PUBLIC_STARTS, replace=False)]
    grid_seconds, ends = timed(
        lambda: np.array([public(data, one, s, "L-BFGS-B") for s in chosen]), 1
    )
    per_refit = boot_seconds / SAMPLES
    return {
        "points": points,
        "fit_ms": 1e3 * fit_seconds,
        "bootstrap_s": boot_seconds,
        "wild_bootstrap_s": wild_seconds,
        "samples": SAMPLES,
        "unconverged": drawn.draws.unconverged,
        "per_sample_bfgs_s_for_all": one_seconds / SCIPY_SAMPLES * SAMPLES,
        "public_refits_s_for_all": public_seconds / PUBLIC_SAMPLES * SAMPLES,
        "public_grid_fit_s": grid_seconds / PUBLIC_STARTS * GRID_STARTS,
        "public_grid_starts_at_optimum": float(np.mean(ends <= fit.objective * (1 + 1e-6))),
        "speedup_refit_over_per_sample": one_seconds / SCIPY_SAMPLES / per_refit,
        "speedup_refit_over_public": public_seconds / PUBLIC_SAMPLES / per_refit,
        "speedup_all_over_public": (
            (public_seconds / PUBLIC_SAMPLES * SAMPLES + grid_seconds / PUBLIC_STARTS * GRID_STARTS)
            / (boot_seconds + fit_seconds)
        ),
        "speedup_fit_over_public_grid": grid_seconds / PUBLIC_STARTS * GRID_STARTS / fit_seconds,
        "objective_worst_excess_over_per_sample": float((ours / theirs - 1).max()),
        "objective_worst_excess_over_public": float((ours[:PUBLIC_SAMPLES] / loose - 1).max()),
        "public_worst_excess_over_ours": float((loose / ours[:PUBLIC_SAMPLES] - 1).max()),
    }


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--csv", type=Path, help="points of 2404.10102; default: synthetic")
    parser.add_argument("-o", "--output", type=Path, help="JSON file to write")
    options = parser.parse_args()
    data = from_csv(options.csv) if options.csv else synthetic()
    record = {
        "date": date.today().isoformat(),
        "command": "OMP_NUM_THREADS=1 python -m experiments.benchmarks.fitting",
        "data": "chinchilla points of 2404.10102" if options.csv else "synthetic",
        "machine": {"cpu": platform.processor() or platform.machine(), "system": platform.system(),
                    "python": platform.python_version(), "numpy": np.__version__,
                    "scipy": scipy.__version__, "load": os.getloadavg()[0],
                    "cores": os.cpu_count()},
        "results": run(data),
    }  # fmt: skip
    text = json.dumps(record, indent=2)
    print(text)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
