"""A study in words: findings with their intervals, and what must not be read into them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.errors import alike
from analysis.fit.law_fit import LawFit
from analysis.fit.within import in_interval
from analysis.io.frames import numbers, where, words
from analysis.io.looks import look
from analysis.judge.form_selection import holdout_summary
from analysis.judge.study import REACH, Study
from analysis.judge.task_law import Tasks
from analysis.report.page import bold
from analysis.units import LEVEL
from linscale.si import si

_PUBLISHED_SIZE = 70e6
"""Smallest model of arXiv 2406.16690 and of most published ladders."""


_UNDETERMINED = {
    "at_bound": "a parameter ended at its bound",
    "no_irreducible": "the irreducible loss E went to zero",
    "not_converged": "the fit did not converge",
    "unstable_resamples": "refits of resampled runs did not converge",
}
"""Warnings that say a law is not determined by its data, in words."""


def undetermined(result: Study) -> dict[str, list[str]]:
    """Architectures whose law the data do not determine, and why.

    A parameter at its bound, fits or refits that do not converge, or rolling forecasts that the
    pure power law in compute beats.
    """
    found: dict[str, list[str]] = {}
    for group in result.groups:
        codes = {w.code for w in result.laws[group].warnings}
        why = [text for code, text in _UNDETERMINED.items() if code in codes]
        own = where(result.rolling, arch=group) if len(result.rolling) else result.rolling
        if len(own):
            error, pure = (float(np.abs(numbers(own, k)).mean()) for k in ("error", "pure"))
            if error > pure:
                why.append(
                    f"its rolling forecasts err by {error:.1%} where a pure power law errs by "
                    f"{pure:.1%}"
                )
        if why:
            found[group] = why
    return found


def headline(result: Study) -> str | None:
    """What heads a report whose laws are not determined; None where they all are."""
    found = undetermined(result)
    if not found:
        return None
    shared = alike({look(g).label: ", ".join(why) for g, why in found.items()})
    reasons = "; ".join(f"{names}: {why}" for names, why in shared)
    every = len(found) == len(result.groups) > 1
    names = "these architectures" if every else ", ".join(look(g).label for g in found)
    return (
        f"The data do not determine the law{'s' * (len(found) > 1)} of {names} ({reasons}). Read "
        "exponents, multipliers and optima below as descriptions of these runs, not as findings."
    )


def summary(result: Study) -> list[str]:
    """Findings, one sentence or two each: verdicts, what limits them, then what they rest on."""
    care = headline(result)
    return [*verdicts(result), *([care] if care else []), *facts(result)]


def verdicts(result: Study) -> list[str]:
    """What the comparisons found, the clearest first; one of a law that the data do not determine
    comes after the others and says so. For one architecture, its law."""
    doubtful = undetermined(result)
    if not result.comparisons:
        return [law_sentence(result, group) for group in result.groups]

    def clear(group: str) -> float:
        frame = result.comparisons[group].frame
        sure = (numbers(frame, "lo") > 1) | (numbers(frame, "hi") < 1)
        return -float((sure & np.asarray(frame["inside"], dtype=bool)).sum())

    sure = [g for g in result.comparisons if not {g, result.baseline} & doubtful.keys()]
    rest = [g for g in result.comparisons if g not in sure]
    return [result.comparisons[g].verdict for g in sorted(sure, key=clear)] + [
        f"Not determined: {result.comparisons[g].verdict}" for g in sorted(rest, key=clear)
    ]


def facts(result: Study) -> list[str]:
    """What the findings rest on, and how forecasts went."""
    points = result.points
    names = [look(g).label for g in result.groups]
    found = [
        f"{len(names)} architecture{'s' * (len(names) > 1)} ({', '.join(names)}), "
        f"{len(set(words(points, 'run_id')))} runs, {len(points)} checkpoints: N from "
        f"{si(numbers(points, 'n_params').min())} to "
        f"{si(numbers(points, 'n_params').max())}, D from "
        f"{si(numbers(points, 'tokens').min())} to {si(numbers(points, 'tokens').max())} "
        f"tokens, up to {numbers(points, 'flops').max():.2g} FLOPs a run."
    ]
    if len(result.forecast):
        found.append(
            "Forecasts of each architecture's largest size from its smaller ones "
            + _forecast_sentence(result.forecast)
        )
    return found


def law_sentence(result: Study, group: str) -> str:
    """The law of one architecture in words."""
    law = result.laws[group]
    name = look(group).label
    text = f"{bold(name)}: " if group not in undetermined(result) else f"{name} (not determined): "
    text += (
        f"loss falls as N^-{_span(law, 'alpha')} and "
        f"D^-{_span(law, 'beta')} towards E = {_span(law, 'E')}"
    ) + _best_split(result, group)
    fit = result.envelopes.get(group)
    if fit is not None:
        low, high = fit.interval("alpha", LEVEL)
        text += (
            f". Along the envelope, L ~ C^-{fit.params['alpha']:.4f} [{low:.4f}, {high:.4f}] "
            "(pure power law)"
        )
    return text + "."


def _best_split(result: Study, group: str) -> str:
    """The optimum at the largest budget where it lies within the data."""
    inside = np.flatnonzero(result.covered(group))
    if not len(inside):
        return "; its optimum is nowhere within the sizes and tokens trained"
    c, n, d = (float(numbers(result.optima[group], k)[inside[-1]]) for k in ("c", "n", "d"))
    return (
        f"; at {c:.1e} FLOPs, the largest budget with its optimum within the data, the best split "
        f"is about {si(n)} parameters and {si(d)} tokens ({d / n:.3g} a parameter)"
    )


def _forecast_sentence(own: pd.DataFrame) -> str:
    error = numbers(own, "predicted") / numbers(own, "loss") - 1
    return (
        f"(up to {numbers(own, 'leap').max():.3g} times the compute fitted) err by "
        f"{error.min():+.1%} to {error.max():+.1%}; {int(_covered(own).sum())} of {len(own)} "
        f"losses lie in their {LEVEL:.0%} interval."
    )


def _covered(own: pd.DataFrame) -> np.ndarray:
    loss = numbers(own, "loss")
    return in_interval(loss, numbers(own, "lo"), numbers(own, "hi"))


def _span(law: LawFit, name: str) -> str:
    low, high = law.interval(name, LEVEL)
    return f"{law.params[name]:.3f} [{low:.3f}, {high:.3f}]"


def _two_lines(text: str) -> str:
    """Value above its interval, for a narrow column."""
    return text.replace(" [", "\n[")


def cautions(result: Study) -> list[str]:
    """Limits of this sweep, from its own numbers."""
    points = result.points
    largest = numbers(points, "n_params").max()
    found: list[str] = []
    if largest < _PUBLISHED_SIZE:
        found.append(
            f"The largest model has {si(largest)} parameters, "
            f"{_PUBLISHED_SIZE / largest:,.0f} times fewer than the smallest of published ladders "
            "(70M). These laws describe these models: they say nothing about which architecture "
            "wins at sizes people use."
        )
    found.append(
        f"Nothing here holds beyond about {REACH:g} times the largest compute "
        f"({numbers(points, 'flops').max():.1e} FLOPs). Irreducible losses E are extrapolations."
    )
    if len(result.forecast) and _covered(result.forecast).mean() < 0.6:
        found.append(
            "Most held-out losses miss their interval: beyond the data the laws are worse than "
            "their bands say."
        )
    each = [where(points, arch=g) for g in result.groups]
    few = min(len(set(words(own, "run_id"))) for own in each)
    seeds = min(len(set(words(own, "seed"))) for own in each) if result.sweep.recorded else 0
    seen = {0: "", 1: " with one seed each"}.get(seeds, f" and {seeds} seeds")
    found.append(
        f"Intervals rest on as few as {few} runs an architecture{seen}"
        + (": they tend to be too narrow." if few < 9 else ".")
        + " They hold noise between runs, not the choice of data, hyper-parameters or code."
    )
    found += (
        _of_training(result)
        if result.sweep.recorded
        else [
            "The table does not say how its runs were tuned, on which data, or in which context: a "
            "difference between two groups may be one of these."
        ]
    )
    left = len(set(words(result.sweep.exclusions, "run_id")))
    if left:
        found.append(f"{left} run(s) are left out wholly or in part (see Records).")
    return found


def _of_training(result: Study) -> list[str]:
    """Limits that run records show: tuning, repeated text, context."""
    found = [
        "Learning rates and batches come from the rule of the experiment file and were not "
        "searched for every rung: a difference between two architectures may be one of tuning."
    ]
    epochs = _epochs(result)
    if epochs > 1.5:
        found.append(
            f"The longest run reads its training text {epochs:.1f} times; repeated tokens are "
            "worth less than new ones, which bends the law in D."
        )
    contexts = sorted({int(v) for v in numbers(result.sweep.runs, "sequence_length")})
    found.append(
        f"Context is {' and '.join(f'{c:,}' for c in contexts)} tokens; what linear attention "
        "saves, and what a bounded state costs, shows at longer ones."
    )
    return found


def _epochs(result: Study) -> float:
    """Passes of the longest run over its training tokens; 0 when the record does not say."""
    sizes = [(e.get("data") or {}).get("train_tokens") for e in result.sweep.environments]
    known = [float(s) for s in sizes if s]
    return numbers(result.points, "tokens").max() / min(known) if known else 0.0


def law_rows(result: Study) -> pd.DataFrame:
    """One row an architecture: parameters with intervals, as text."""
    table: list[dict[str, object]] = []
    for group in result.groups:
        law = result.laws[group]
        own = where(result.points, arch=group)
        row: dict[str, object] = {
            "architecture": look(group).label,
            "runs": len(set(words(own, "run_id"))),
            "points": len(own),
        }
        for name, label in (("E", "E"), ("alpha", "α"), ("beta", "β"), ("a", "a")):
            row[label] = _two_lines(_span(law, name))
        row |= {"A": law.params["A"], "B": law.params["B"]}
        fit = result.envelopes.get(group)
        if fit is not None:
            low, high = fit.interval("alpha", LEVEL)
            text = f"{fit.params['alpha']:.4f} [{low:.4f}, {high:.4f}]"
            row["envelope C^-x"] = _two_lines(text)
        row["rms error"] = f"{law.criteria()['rms']:.2%}"
        table.append(row)
    return pd.DataFrame(table)


def rolling_rows(result: Study) -> pd.DataFrame:
    """Rolling hold-out by architecture and by how far the forecast leaps."""
    table: list[dict[str, object]] = []
    for group in result.groups:
        own = where(result.rolling, arch=group)
        if not len(own):
            continue
        for row in holdout_summary(own).to_dict("records"):
            table.append({
                "architecture": look(group).label, "leap": row["leap"],
                "forecasts": row["points"], "mean": f"{row['bias']:+.2%}",
                "size": f"{row['mean_error']:.2%}", "largest": f"{row['max_error']:.2%}",
                "pure power law": f"{row['pure']:.2%}", "nearest": f"{row['nearest']:.2%}",
            })  # fmt: skip
    return pd.DataFrame(table)


def tasks_table(tasks: Tasks | None) -> pd.DataFrame:
    """One row a task: its sigmoid with intervals, as text."""
    table: list[dict[str, object]] = []
    for task, fit in (tasks.fits if tasks else {}).items():
        row: dict[str, object] = {"task": task, "checkpoints": len(fit.points)}
        row["chance"] = f"{fit.chance:.0%}"
        for name in ("midpoint", "slope"):
            low, high = fit.interval(name, LEVEL)
            row[name] = _two_lines(f"{fit.params[name]:.3f} [{low:.3f}, {high:.3f}]")
        row["rms error"] = f"{fit.residual:.1%}"
        row["note"] = " ".join(str(w) for w in fit.warnings)
        table.append(row)
    return pd.DataFrame(table)


def compute_words(result: Study) -> str:
    """Under which C = f(N) D optima are taken; the scatter about f once, the largest."""
    models = [fit.compute_model for fit in result.laws.values()]
    told = " or ".join(dict.fromkeys(replace(m, scatter=0.0).describe() for m in models))
    most = max((m.scatter for m in models if m.source != "6ND"), default=0.0)
    return f"{told} (rows scatter by up to {most:.1%} about it)" if most > 0.001 else told
