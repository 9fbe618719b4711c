"""Which live runs cannot matter any more, and why: what `--stop-early` acts on.

hopeless(sweep) -> {run: reason}
    diverging    its latest losses lie above the law of its own and its architecture's curves by
                 more than twice the band of `analysis.forecast.health` (six standard deviations of
                 noise and misfit)
    dominated    another run of the same architecture, size, data and schedule, but with another
                 learning rate or batch, is ahead on the trunk by more than `MARGIN` over the second
                 half of the way that both have gone, and at the present pace stays so to the end

Runs that differ in their seed alone never dominate each other: they are measurements of one thing.
`MARGIN` holds the luck of two seeds three times over (1 % of loss each, on the small ladder) and
what the decay of a higher rate may still win. Nothing is said before a run has gone `EARLIEST` of
its tokens.
"""

from __future__ import annotations

import math

import numpy as np

from analysis.forecast.decays import curves_of
from analysis.forecast.health import health
from analysis.forecast.paths import Stretch, stretches
from analysis.io.frames import groups, where, words
from analysis.io.sweep import Sweep
from analysis.units import Array

EARLIEST = 0.25
"""Share of its tokens that a run has gone before it is judged."""
BANDS = 2.0
"""Bands of health above which a run diverges."""
MARGIN = 0.06
"""In ln L, on the trunk."""
FEWEST_WINDOWS = 5
"""That both runs have in the second half of the way."""
SAME_QUESTION = (
    "arch",
    "size",
    "sequence_length",
    "corpus",
    "tokenizer",
    "schedule",
    "tokens_total",
)
"""What runs have in common that ask the same."""
_OTHER = ("lr", "batch_tokens")


def hopeless(sweep: Sweep) -> dict[str, str]:
    """Runs that have not ended and cannot matter, with the reason in a sentence."""
    if not len(sweep.live):
        return {}
    told = {str(run["run_id"]): run for run in sweep.runs.to_dict("records")}
    live = {
        run for run in words(sweep.live, "run_id")
        if told[run]["state"] == "running" and _gone(told[run]) >= EARLIEST
    }  # fmt: skip
    found: dict[str, str] = {}
    for run, one in health(sweep).items():
        if run in live and one.deviation > BANDS * one.band:
            found[run] = f"diverging: {one.words}, at {_gone(told[run]):.0%} of its tokens"
    for arch in groups(where(sweep.runs, state="running"), "arch"):
        own = [run for run in live - found.keys() if told[run]["arch"] == arch]
        if not any(_rivals(told[run], told) for run in own):
            continue
        trunks = {s.run_id: s for s in stretches(curves_of(sweep, arch)) if not s.is_decay}
        for run in own:
            total = float(told[run]["tokens_total"])
            best = _best(trunks, run, _rivals(told[run], told), total)
            if best is not None:
                rival, gap = best
                found[run] = (
                    f"dominated: on the trunk {100 * gap:.1f} % of loss behind {rival} (optim.lr "
                    f"{told[rival]['lr']:g} against {told[run]['lr']:g}), at "
                    f"{_gone(told[run]):.0%} of its tokens"
                )
    return found


def _gone(run: dict[str, object]) -> float:
    """Share of a run's longest path that it has gone."""
    return float(str(run["tokens"])) / float(str(run["tokens_total"]))


def _rivals(run: dict[str, object], told: dict[str, dict[str, object]]) -> list[str]:
    """Runs of the same question with another rate or batch that have not diverged."""
    return [
        name for name, other in told.items()
        if all(other[k] == run[k] for k in SAME_QUESTION)
        and any(other[k] != run[k] for k in _OTHER)
        and other["state"] in ("done", "running", "preempted")
    ]  # fmt: skip


def _best(
    trunks: dict[str, Stretch], run: str, rivals: list[str], total: float
) -> tuple[str, float] | None:
    """The rival that is furthest ahead for good, and by how much in ln L; None without one."""
    gaps = [
        (rival, gap) for rival in rivals
        if run in trunks and rival in trunks
        and (gap := lasting_gap(trunks[run], trunks[rival], total)) > MARGIN
    ]  # fmt: skip
    return max(gaps, key=lambda each: each[1], default=None)


def lasting_gap(run: Stretch, rival: Stretch, total: float) -> float:
    """By how much a run is behind another over the second half of their common way, and still is at
    `total` tokens if the gap goes on closing as it does (ln L); -inf where too little is known."""
    (t, x), (at, y) = _trained(run), _trained(rival)
    if not len(t) or not len(at):
        return -math.inf
    end = min(float(t[-1]), float(at[-1]))
    late = (t >= end / 2) & (t <= end)
    if late.sum() < FEWEST_WINDOWS or ((at >= end / 2) & (at <= end)).sum() < FEWEST_WINDOWS:
        return -math.inf
    gap = x[late] - np.interp(np.log(t[late]), np.log(at), y)
    mean = float(gap.mean())
    slope = float(np.polyfit(np.log(t[late]), gap, 1)[0])
    left = math.log(total / math.sqrt(end / 2 * end))
    return mean + min(0.0, slope) * max(left, 0.0)


def _trained(stretch: Stretch) -> tuple[Array, Array]:
    """Tokens and ln L of training losses along a trunk."""
    logged = stretch.lines > 0
    return stretch.tokens[logged], np.log(stretch.loss[logged])
