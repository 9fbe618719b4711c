"""Every number of a report: laws, intervals, hold-out and comparison of a sweep's architectures.

study(sweep) -> Study
    1. each architecture's decayed checkpoints -> L(N, D) = E + A/N^alpha + B/D^beta, bootstrap
       over runs; runs of one size and seed are resampled in pairs across architectures
    2. its own training FLOPs per token as a function of N -> optimal N, D and lowest L at each C
    3. the envelope of the checkpoints in C -> pure power law L(C) (approach 1)
    4. the same law without the largest size -> forecast of that size, against what was measured
    5. rolling hold-out over compute: laws of the cheaper checkpoints against the dearer ones
    6. equal-loss compute multiplier over the baseline, from paired draws, and where frontiers cross
    7. one set of exponents for all architectures against one set each
    8. with evaluations: loss -> accuracy of each task, and accuracy against compute in two steps

An architecture that cannot be fitted does not stop the others: its reason is in `failures`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.errors import AnalysisError
from analysis.fit.envelope import EnvelopeFit, EnvelopeOptions, envelope
from analysis.fit.fitting import fit_law
from analysis.fit.law_fit import LawFit
from analysis.fit.uncertainty import FEWEST_CLUSTERS
from analysis.fit.within import frontier_within
from analysis.io.frames import groups, numbers, rows, where, words
from analysis.io.looks import look
from analysis.io.sweep import Sweep
from analysis.judge.compare import CompareResult, baseline_of, compute_multiplier
from analysis.judge.form_selection import holdout
from analysis.judge.shared_exponents import SharedExponents, shared_exponents
from analysis.judge.shares import Shares, shares_of
from analysis.judge.task_law import Tasks, tasks_of
from analysis.units import LEVEL, Array

Progress = Callable[[str], None]

REACH = 3.0
"""Laws are drawn up to this factor beyond the largest compute."""
ENVELOPE = EnvelopeOptions(method="grid", points=200, interior=False, form="power_c")
"""Pure power law through every point of the envelope, as in arXiv 2406.16690, but of finished
(decayed) checkpoints."""
SHARE_DRAWS = 300
"""Redraws of the law of shares, which takes a twentieth of a second each."""
ENVELOPE_DRAWS = 100
ROLLS = 4
"""Cuts of the rolling hold-out."""


@dataclass(frozen=True)
class Study:
    """Results by architecture; frames in the columns that the figures take."""

    sweep: Sweep
    points: pd.DataFrame
    groups: list[str]
    """Architectures with a fit, in drawing order."""
    laws: dict[str, LawFit]
    envelopes: dict[str, EnvelopeFit]
    compute: Array
    """Grid of C for bands, up to `REACH` beyond the data."""
    optima: dict[str, pd.DataFrame]
    """Compute-optimal n, d, loss with intervals along `compute`."""
    comparisons: dict[str, CompareResult]
    """Compute multiplier of each architecture over the baseline."""
    baseline: str
    forecast: pd.DataFrame
    """Held-out largest size: points with predicted, lo, hi, leap."""
    rolling: pd.DataFrame
    """Rolling hold-out over compute (`holdout` of form_selection.py), with arch."""
    shared: SharedExponents | None
    """Shared against separate exponents; None for one architecture."""
    tasks: Tasks | None
    """Task accuracies; None without evaluations."""
    shares: Shares
    """Families of hybrids with several shares of softmax layers, and the law of each."""
    bootstrap: int
    seed: int
    failures: dict[str, str] = field(default_factory=dict[str, str])
    """What could not be computed, and why."""

    def require_forecast(self) -> pd.DataFrame:
        """The forecast of the largest size.

        Raises:
            AnalysisError: no architecture has the sizes for one; the message has the reasons.
        """
        if not len(self.forecast):
            why = [w for what, w in self.failures.items() if what.startswith("hold-out")]
            raise AnalysisError(f"there is no hold-out of the largest size: {'; '.join(why)}")
        return self.forecast

    def covered(self, group: str) -> NDArray[np.bool_]:
        """Which of `compute` have their optimum within the data of an architecture."""
        return frontier_within(self.laws[group], self.compute)

    def loss_bands(self) -> pd.DataFrame:
        """L(C) of each law at its own optimal N and D: group, x, y, lo, hi, inside."""
        parts: list[pd.DataFrame] = []
        for group in self.groups:
            best = self.optima[group]
            band = pd.DataFrame(
                {"group": group, "x": self.compute, "y": best["loss"], "lo": best["loss_lo"],
                 "hi": best["loss_hi"], "inside": self.covered(group)}
            )  # fmt: skip
            parts.append(band)
        return pd.concat(parts, ignore_index=True)

    def optimum_bands(self) -> pd.DataFrame:
        """N*(C) and D*(C): group, quantity, x, y, lo, hi, inside."""
        parts: list[pd.DataFrame] = []
        for group in self.groups:
            best = self.optima[group]
            for q in ("n", "d"):
                band = pd.DataFrame(
                    {"group": group, "quantity": q, "x": self.compute, "y": best[q],
                     "lo": best[f"{q}_lo"], "hi": best[f"{q}_hi"], "inside": self.covered(group)}
                )  # fmt: skip
                parts.append(band)
        return pd.concat(parts, ignore_index=True)

    def multiplier_bands(self) -> pd.DataFrame:
        """Compute multipliers: group, x (the baseline's compute), y, lo, hi, inside."""
        parts = [
            pd.DataFrame(
                {
                    "group": group,
                    "x": r.frame["c_y"],
                    "y": r.frame["multiplier"],
                    "lo": r.frame["lo"],
                    "hi": r.frame["hi"],
                    "inside": r.frame["inside"],
                }
            )
            for group, r in self.comparisons.items()
        ]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["group"])

    def accuracy_bands(self) -> pd.DataFrame:
        """Two-step accuracy of each law at its own optimal N and D: group, task, x, y, lo, hi,
        inside."""
        parts = [
            self.tasks.compute_band(
                task, self.laws[g], self.optima[g], self.covered(g), level=LEVEL
            ).assign(group=g)
            for g in self.groups
            for task in self.tasks.fits
        ] if self.tasks else []  # fmt: skip
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["group"])

    def residuals(self) -> pd.DataFrame:
        """Points with the loss that their architecture's law predicts."""
        parts: list[pd.DataFrame] = []
        for group in self.groups:
            own = where(self.points, arch=group)
            predicted = self.laws[group].predict(n=own["n_params"], d=own["tokens"])
            parts.append(own.assign(predicted=predicted))
        return pd.concat(parts, ignore_index=True)

    def exponent_draws(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Bootstrap refits, and the estimates: group, alpha, beta."""
        names = ("alpha", "beta")
        draws = [
            pd.DataFrame({"group": g, **{p: law.draws_of(p) for p in names}})
            for g, law in self.laws.items()
        ]
        estimates = [{"group": g, **law.params} for g, law in self.laws.items()]
        return pd.concat(draws, ignore_index=True), pd.DataFrame(estimates)


def study(
    sweep: Sweep,
    *,
    baseline: str | None = None,
    bootstrap: int = 2000,
    seed: int = 0,
    evals: pd.DataFrame | None = None,
    progress: Progress | None = None,
) -> Study:
    """Fits everything.

    Args:
        sweep: run records.
        baseline: architecture to compare with; None: llama, or the first where llama has no law.
        bootstrap: refits of every law.
        seed: of the bootstrap.
        evals: numbers of its checkpoints on tasks (`analysis.io.evals.load_evals`).
        progress: told in words what is being done.

    Raises:
        AnalysisError: fewer than 2 refits, the sweep has no usable point, no architecture can be
            fitted, or the baseline that was asked for has no points.
    """
    if bootstrap < 2:
        raise AnalysisError(f"bootstrap={bootstrap}: a study needs intervals; 2000 is usual")
    sweep = _with_compute(sweep)
    points, unit = sweep.points, sweep.unit
    say = progress or (lambda _: None)
    if baseline is not None:
        baseline_of(groups(points, "arch"), baseline)
    laws: dict[str, LawFit] = {}
    envelopes: dict[str, EnvelopeFit] = {}
    forecasts: list[pd.DataFrame] = []
    rolled: list[pd.DataFrame] = []
    failures: dict[str, str] = {}
    for group in groups(points, "arch"):
        own = where(points, arch=group)
        say(f"fitting {group}: {bootstrap} refits over {len(set(words(own, 'run_id')))} runs")
        try:
            _enough_runs(own, unit)
            laws[group] = fit_law(
                "chinchilla",
                own,
                clusters=unit,
                accounting=sweep.recorded,
                c=sweep.compute_column,
                bootstrap=bootstrap,
                seed=seed,
            )
        except AnalysisError as error:
            failures[f"law of {group}"] = str(error)
            continue
        try:
            envelopes[group] = envelope(own, ENVELOPE, bootstrap=ENVELOPE_DRAWS, seed=seed)
        except AnalysisError as error:
            failures[f"envelope of {group}"] = str(error)
        try:
            forecasts.append(hold_out_largest(own, unit=unit, bootstrap=bootstrap, seed=seed))
        except AnalysisError as error:
            failures[f"hold-out of {group}"] = str(error)
        try:
            rolled.append(holdout("chinchilla", own, steps=ROLLS).assign(arch=group))
        except AnalysisError as error:
            failures[f"rolling hold-out of {group}"] = str(error)
    if not laws:
        raise AnalysisError(
            "no architecture could be fitted: "
            + "; ".join(f"{what}: {why}" for what, why in failures.items())
        )
    if baseline is not None and baseline not in laws:
        failures["baseline"] = f"{baseline} has no law; the comparison is with another architecture"
        baseline = None
    baseline = baseline_of(laws, baseline)
    comparisons: dict[str, CompareResult] = {}
    for group in laws:
        if group == baseline:
            continue
        say(f"comparing {group} with {baseline}")
        try:
            comparisons[group] = compute_multiplier(
                laws[group],
                laws[baseline],
                names=(look(group).label, look(baseline).label),
                level=LEVEL,
            )
        except AnalysisError as error:
            failures[f"comparison of {group} with {baseline}"] = str(error)
    shared = None
    if len(laws) > 1:
        say("shared exponents")
        shared = shared_exponents({look(g).label: law for g, law in laws.items()}, level=LEVEL)
    if not sweep.recorded:
        sweep = _fitted_rows(sweep, laws)
        points = sweep.points
    tasks = None
    if evals is not None and len(evals):
        say("tasks")
        tasks = tasks_of(evals, points, bootstrap=bootstrap, seed=seed)
        failures |= {f"law of task {task}": why for task, why in tasks.failures.items()}
    shares = shares_of(points, bootstrap=min(bootstrap, SHARE_DRAWS), seed=seed)
    failures |= {f"law of shares of {family}": why for family, why in shares.failures.items()}
    spent = numbers(points, "flops")
    compute = np.geomspace(spent.min(), spent.max() * REACH, 48)
    say("compute-optimal sizes")
    optima = {
        group: law.optimal(compute, level=LEVEL, extrapolate=True) for group, law in laws.items()
    }
    return Study(
        sweep=sweep,
        points=points,
        groups=[g for g in groups(points, "arch") if g in laws],
        laws=laws,
        envelopes=envelopes,
        compute=compute,
        optima=optima,
        comparisons=comparisons,
        baseline=baseline,
        forecast=pd.concat(forecasts, ignore_index=True) if forecasts else pd.DataFrame(),
        rolling=pd.concat(rolled, ignore_index=True) if rolled else pd.DataFrame(),
        shared=shared,
        tasks=tasks,
        shares=shares,
        bootstrap=bootstrap,
        seed=seed,
        failures=failures,
    )


def _with_compute(sweep: Sweep) -> Sweep:
    """The sweep with a C for every point: of a table without one, 6 N D.

    Raises:
        AnalysisError: no usable point, or a table without N and D.
    """
    points = sweep.require_points()
    missing = [f"{label} ({option})" for name, label, option in
               (("n_params", "N", "--params"), ("tokens", "D", "--tokens"))
               if name not in points]  # fmt: skip
    if missing:
        raise AnalysisError(f"a report needs N and D of every run; {sweep.name} has no "
                            f"{' and no '.join(missing)}")  # fmt: skip
    if "flops" in points:
        return sweep
    flops = 6.0 * numbers(points, "n_params") * numbers(points, "tokens")
    return replace(sweep, points=points.assign(flops=flops), assumed_compute=True,
                   conventions=f"{sweep.conventions}; C = 6 N D (assumed)")  # fmt: skip


def _fitted_rows(sweep: Sweep, laws: dict[str, LawFit]) -> Sweep:
    """A table's rows that laws were fitted to; the others are left out with the law's reasons."""
    kept = [row for law in laws.values() for row in law.observations.rows]
    left = [law.observations.exclusions for law in laws.values()]
    more = pd.DataFrame([
        {"run_id": row["name"], "tokens": np.nan, "reason": row["reason"]}
        for part in left for row in part.to_dict("records")
    ])  # fmt: skip
    parts = [part for part in (sweep.exclusions, more) if len(part)]
    return replace(
        sweep,
        points=rows(sweep.points, sweep.points.index.isin(kept)),
        exclusions=pd.concat(parts, ignore_index=True) if parts else sweep.exclusions,
    )


def _enough_runs(points: pd.DataFrame, unit: str) -> None:
    runs = len(set(words(points, unit)))
    if runs < FEWEST_CLUSTERS:
        raise AnalysisError(
            f"{runs} usable run(s), and intervals need at least {FEWEST_CLUSTERS}: train more "
            "sizes or seeds, or finish the runs that are left out"
        )


def hold_out_largest(
    points: pd.DataFrame, *, unit: str, bootstrap: int, seed: int = 0
) -> pd.DataFrame:
    """Forecasts of the largest size by a law that never saw it, with intervals for one more run.

    Fewer than four remaining runs cannot be resampled; then every (N, D) counts as a unit, which
    makes intervals too narrow where the noise of a run is shared by its checkpoints.

    Returns:
        The held-out points with predicted, lo, hi, leap (compute over the largest fitted) and
        unit (what was resampled).

    Raises:
        AnalysisError: too few sizes are left to fit.
    """
    sizes = numbers(points, "n_params")
    seen = rows(points, sizes < sizes.max())
    unseen = rows(points, sizes == sizes.max())
    enough = len(set(words(seen, unit))) >= FEWEST_CLUSTERS
    seen = seen.assign(point=[f"{p} {d:.0f}" for p, d in zip(seen[unit], seen["tokens"],
                                                             strict=True)])  # fmt: skip
    fit = fit_law(
        "chinchilla", seen, clusters=unit if enough else "point", bootstrap=bootstrap, seed=seed
    )
    band = fit.band(
        level=LEVEL,
        kind="run",
        extrapolate=True,
        n=unseen["n_params"],
        d=unseen["tokens"],
        seed=seed,
    )
    return unseen.assign(
        predicted=numbers(band, "loss"),
        lo=numbers(band, "lo"),
        hi=numbers(band, "hi"),
        leap=numbers(unseen, "flops") / numbers(seen, "flops").max(),
        unit="run" if enough else "checkpoint",
    )
