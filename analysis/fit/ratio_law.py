"""Loss against compute and the share of softmax layers: L(C, r), and the share that is best.

    L(N, C, r) = E + A (C/C0)^-alpha exp(b1 s + b2 s^2 + kappa (ln(N/N0) - nu ln(C/C0))^2),
    s = sqrt(r)

1. In size, each budget is an IsoFLOP profile: a parabola of the logarithm of the reducible loss in
   log N, whose bottom lies at N0 (C/C0)^nu. All shares have its curvature, so that budgets whose
   own profile would have no minimum inside the sizes still count.
2. Along the bottoms, L(C, r) = E + A (C/C0)^-alpha exp(b1 s + b2 s^2): a share changes the
   reducible loss by a factor at every compute, which is worth exp((b1 s + b2 s^2) / alpha) of
   compute. With `drift` b1 changes with ln C, and the best share with it.
3. The square root spreads the shares that are trained (0, 1/8, 1/4, 1/2, 1) evenly.
4. Least squares of log loss; intervals by redrawing the residuals of whole runs (wild, Webb).

C0 and N0 are the geometric means of the data. The form is this project's own: a quadratic is what
five shares can carry.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.fit.uncertainty import quantiles
from analysis.io.frames import numbers, words
from analysis.units import LEVEL, Array

PARAMETERS = ("E", "log_A", "alpha", "b1", "b2", "kappa", "n0", "nu", "drift")
_START = (1.0, 0.2, 0.0, 0.0, 0.05, 0.0, 0.5, 0.0)  # after E
_LOW = (0.0, -np.inf, 1e-3, -np.inf, -np.inf, 0.0, -np.inf, -2.0, -np.inf)
_HIGH = (np.inf, np.inf, 3.0, np.inf, np.inf, np.inf, np.inf, 3.0, np.inf)
_WEBB = np.sqrt([0.5, 1.0, 1.5])
_GRID = np.linspace(0, 1, 401)


@dataclass(frozen=True)
class RatioLaw:
    """A fit of the module's form."""

    params: dict[str, float]
    """By `PARAMETERS`; n0 is ln of the best size at `c0` over `size0`."""
    c0: float
    size0: float
    points: pd.DataFrame
    """Columns c, n, ratio, loss, run."""
    draws: Array = field(default_factory=lambda: np.empty((0, len(PARAMETERS))))
    """(bootstrap, parameters)."""

    def predict(self, c: Array | float, ratio: Array | float) -> Array:
        """L(C, r) at the best size."""
        return _frontier(self._values(), self._log_c(c), np.asarray(ratio, dtype=float))[0]

    def predict_at(self, n: Array | float, c: Array | float, ratio: Array | float) -> Array:
        """L(N, C, r)."""
        size = np.log(np.asarray(n, dtype=float) / self.size0)
        return _loss(self._values(), self._log_c(c), size, np.asarray(ratio, dtype=float))[0]

    def band(self, c: float, ratio: Array, level: float = LEVEL) -> pd.DataFrame:
        """Columns ratio, loss, lo, hi, and compute: how much is needed for the loss that the share
        0 has, as a multiple of what that takes, with compute_lo and compute_hi."""
        shares = np.asarray(ratio, dtype=float)
        everyone = np.vstack([self._values(), self.draws])
        losses = _frontier(everyone, self._log_c(c), shares)
        factor = np.exp(_share(everyone, self._log_c(c), shares) / everyone[:, 2:3])
        found = {"ratio": shares, "loss": losses[0], "compute": factor[0]}
        for name, values in (("", losses[1:]), ("compute_", factor[1:])):
            low, high = quantiles(values, level) if len(values) else (np.nan, np.nan)
            found |= {f"{name}lo": low, f"{name}hi": high}
        return pd.DataFrame(found)

    def best(self, c: float, level: float = LEVEL) -> tuple[float, float, float]:
        """The share of lowest loss at C, and its interval (NaN without a bootstrap)."""
        everyone = np.vstack([self._values(), self.draws])
        shares = _GRID[np.argmin(_share(everyone, self._log_c(c), _GRID), axis=1)]
        if not len(self.draws):
            return float(shares[0]), float("nan"), float("nan")
        low, high = quantiles(shares[1:, None], level)
        return float(shares[0]), float(low[0]), float(high[0])

    def tied(self, c: float, ratios: Array, level: float = LEVEL) -> list[float]:
        """Those of the shares that cannot be told from the best of them: the interval of their
        compute over its compute reaches 1."""
        shares = np.asarray(ratios, dtype=float)
        everyone = np.vstack([self._values(), self.draws])
        worth = _share(everyone, self._log_c(c), shares)
        best = int(np.argmin(worth[0]))
        low, _ = quantiles((worth - worth[:, [best]])[1:], level)
        return [float(r) for r, lo, i in zip(shares, low, range(len(shares)), strict=True)
                if i == best or lo <= 0]  # fmt: skip

    def table(self, level: float = LEVEL) -> pd.DataFrame:
        """Columns parameter, value, lo, hi."""
        frame = pd.DataFrame({"parameter": list(self.params), "value": list(self.params.values())})
        if len(self.draws):
            low, high = quantiles(self.draws, level)
            frame = frame.assign(lo=low, hi=high)
        return frame

    def _values(self) -> Array:
        return np.array([[self.params[name] for name in PARAMETERS]])

    def _log_c(self, c: Array | float) -> Array:
        return np.log(np.asarray(c, dtype=float) / self.c0)


def fit_ratio_law(
    data: pd.DataFrame,
    *,
    drift: bool = False,
    bootstrap: int = 0,
    seed: int = 0,
) -> RatioLaw:
    """Fits L(C, r).

    Args:
        data: columns flops, n_params, ratio (the share of softmax layers), loss, and run_id.
        drift: let the best share change with compute.
        bootstrap: redraws for intervals, 0 for none.
        seed: of the redraws.

    Raises:
        AnalysisError: values that are not positive, or too few shares, budgets, sizes or points.
    """
    table = pd.DataFrame(
        {"c": numbers(data, "flops"), "n": numbers(data, "n_params"),
         "ratio": numbers(data, "ratio"), "loss": numbers(data, "loss"),
         "run": words(data, "run_id")}
    )  # fmt: skip
    c, n, ratio, loss = (numbers(table, name) for name in ("c", "n", "ratio", "loss"))
    if not (np.isfinite([c, n, loss]).all() and min(c.min(), n.min(), loss.min()) > 0):
        raise AnalysisError("compute, size and loss of every row must be positive numbers")
    if ratio.min() < 0 or ratio.max() > 1:
        raise AnalysisError(f"shares of softmax layers from {ratio.min():g} to {ratio.max():g}: "
                            "they lie between 0 and 1")  # fmt: skip
    wanted = 8 + drift
    for what, found, least in (
        ("shares", len(np.unique(ratio)), 3),
        ("budgets", len(np.unique(np.round(np.log(c), 1))), 2),
        ("sizes", len(np.unique(n)), 3),
        ("points", len(table), wanted + 1),
    ):
        if found < least:
            raise AnalysisError(f"{found} {what} of runs: the law of shares needs {least}")
    c0, size0 = float(np.exp(np.log(c).mean())), float(np.exp(np.log(n).mean()))
    log_c, size = np.log(c / c0), np.log(n / size0)
    target = np.log(loss)
    values = _fit(log_c, size, ratio, target, drift, None)
    fitted = np.log(_loss(values[None], log_c, size, ratio)[0])
    rest = (target - fitted) * np.sqrt(len(target) / (len(target) - wanted))
    rng = np.random.default_rng(seed)
    _, cluster = np.unique(words(table, "run"), return_inverse=True)
    draws = np.empty((bootstrap, len(PARAMETERS)))
    for i in range(bootstrap):
        count = int(cluster.max()) + 1
        factor = rng.choice([-1.0, 1.0], count) * rng.choice(_WEBB, count)
        draws[i] = _fit(log_c, size, ratio, fitted + rest * factor[cluster], drift, values)
    return RatioLaw(dict(zip(PARAMETERS, map(float, values), strict=True)), c0, size0, table, draws)


def _fit(
    log_c: Array, size: Array, ratio: Array, target: Array, drift: bool, start: Array | None
) -> Array:
    """Values of `PARAMETERS` by least squares of log loss."""
    from scipy.optimize import least_squares  # a large part of the time to start: loaded when used

    floor = float(np.exp(target.min()))
    low, high = np.array(_LOW), np.array(_HIGH)
    high[0] = floor * (1 - 1e-6)
    free = np.arange(len(PARAMETERS) - (not drift))
    starts = [start] if start is not None else []
    starts += [np.array([floor * share, *_START]) for share in ((0.7, 0.2) if not starts else ())]
    best, least = starts[0], np.inf
    for begin in starts:
        values = np.clip(begin, low, high)

        def residual(x: Array, values: Array = values) -> Array:
            whole = values.copy()
            whole[free] = x
            return np.log(_loss(whole[None], log_c, size, ratio)[0]) - target

        inside = np.clip(values[free], low[free] + 1e-12, high[free] - 1e-12)
        found = least_squares(residual, inside, bounds=(low[free], high[free]), x_scale="jac")
        if found.cost < least:
            best, least = values.copy(), float(found.cost)
            best[free] = found.x
    return best


def _share(values: Array, log_c: Array, ratio: Array) -> Array:
    """ln of the factor on the reducible loss, (b, ratios)."""
    s = np.sqrt(ratio)
    b1, b2, drift = (values[:, i : i + 1] for i in (3, 4, 8))
    return (b1 + drift * log_c) * s + b2 * s**2


def _frontier(values: Array, log_c: Array, ratio: Array) -> Array:
    floor, log_a, alpha = (values[:, i : i + 1] for i in range(3))
    return floor + np.exp(log_a - alpha * log_c + _share(values, log_c, ratio))


def _loss(values: Array, log_c: Array, size: Array, ratio: Array) -> Array:
    floor, kappa, n0, nu = (values[:, i : i + 1] for i in (0, 5, 6, 7))
    away = size - n0 - nu * log_c
    return floor + (_frontier(values, log_c, ratio) - floor) * np.exp(kappa * away**2)
