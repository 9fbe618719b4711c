"""Runs that cannot matter are found, and runs that can are left alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from analysis.forecast.early import MARGIN, hopeless, lasting_gap
from analysis.forecast.paths import stretches
from analysis.io.frames import numbers, rows, words
from analysis.io.records import load_sweep
from analysis.io.sweep import Sweep
from experiments.benchmarks.early_stops import KEPT, replay
from tests.support.trajectories import STEP, Run, sweep_of

STEPS = 300


@dataclass
class Case:
    """One run: its size, rate and luck, how far it is, and what goes wrong."""

    n: float = 1e5
    lr: float = 3e-3
    luck: float = 0.0
    share: float = 1.0
    spoil: Callable[[float, float], float] = lambda share, loss: loss


def _sweep(cases: list[Case], seed: int = 0, noise: float = 0.02) -> Sweep:
    """Runs with share 1 are done; the others have logged so much of their trunk."""
    runs = [
        Run(c.n, STEPS, done=c.share == 1,
            spoil=lambda s, loss, c=c: c.spoil(s, loss) * math.exp(c.luck))
        for c in cases
    ]  # fmt: skip
    found = sweep_of(runs, noise, seed)
    ids = words(found.runs, "run_id")
    cut = {run: c.share * STEPS * STEP for run, c in zip(ids, cases, strict=True)}
    live = found.live
    if len(live):
        keep = [t <= cut[run] for run, t in zip(words(live, "run_id"), numbers(live, "tokens"),
                                               strict=True)]  # fmt: skip
        live = rows(live, keep).reset_index(drop=True)
    sizes = {run: f"n{c.n:.0f}" for run, c in zip(ids, cases, strict=True)}

    def named(frame):
        return frame.assign(size=[sizes[run] for run in words(frame, "run_id")]) \
            if len(frame) else frame  # fmt: skip

    told = found.runs.assign(
        lr=[c.lr for c in cases], tokens=[cut[run] for run in ids],
        tokens_total=float(STEPS * STEP), sequence_length=128, corpus="kjv", tokenizer="bytes",
    )  # fmt: skip
    return replace(found, runs=named(told), live=named(live), curves=named(found.curves))


DONE = [Case(n=4e4), Case(n=1e5)]


def test_a_run_far_behind_another_rate_is_dominated() -> None:
    sweep = _sweep(
        [*DONE, Case(lr=3e-5, luck=0.12, share=0.5), Case(lr=2e-3, luck=0.01, share=0.5)]
    )
    found = hopeless(sweep)
    bad, good = words(sweep.runs, "run_id")[2:]
    assert list(found) == [bad]
    assert found[bad].startswith("dominated: on the trunk 1")
    assert "of loss behind llama-n1-0123abcd (optim.lr 0.003 against 3e-05), at 50%" in found[bad]
    assert good not in found


def test_a_run_that_diverges_is_found() -> None:
    def blows_up(share: float, loss: float) -> float:
        return loss * (1.0 + 8 * max(0.0, share - 0.6))

    sweep = _sweep([*DONE, Case(share=0.56, spoil=blows_up)])
    ((run, reason),) = hopeless(sweep).items()
    assert run == words(sweep.runs, "run_id")[2]
    assert reason.startswith("diverging: +")
    assert "outside the band" in reason


@pytest.mark.parametrize(
    "other",
    [
        Case(luck=0.12, share=0.5),  # the same rate: another seed is a measurement, not a rival
        Case(lr=3e-5, luck=0.12, share=0.2),  # too early to say
        Case(lr=3e-5, luck=0.04, share=0.5),  # within the margin
    ],
)
def test_what_may_still_matter_is_left_alone(other: Case) -> None:
    assert hopeless(_sweep([*DONE, other])) == {}


def test_a_gap_that_closes_in_time_is_none() -> None:
    """A slow start: 25 % behind at a quarter, 8 % at a half, nothing at the end."""

    def slow(share: float, loss: float) -> float:
        return loss * math.exp(0.17 * math.log(1 / share) ** 1.2 * (share < 1))

    assert hopeless(_sweep([*DONE, Case(lr=3e-5, share=0.5, spoil=slow)])) == {}


def test_runs_without_live_ones_are_not_judged() -> None:
    assert hopeless(_sweep(DONE)) == {}


def test_luck_alone_seldom_stops_a_run() -> None:
    """Two rates that are equally good, with the luck of a seed (1 % of loss) and the noise of
    steps (2 %): of 600 looks at 200 pairs, at 30, 50 and 75 % of the tokens, none or one would
    stop a run. A run 15 % behind is found at nine looks of ten or more."""
    rng = np.random.default_rng(0)
    false = true = 0
    for seed in range(200):
        lucks = 0.01 * rng.standard_normal(2)
        worse = 0.15 if seed < 30 else 0.0
        sweep = _sweep([Case(luck=lucks[0], share=0.8), Case(luck=lucks[1] + worse, share=0.8)],
                       seed)  # fmt: skip
        one, other = (s for s in stretches(sweep.live) if not s.is_decay)
        for share in (0.3, 0.5, 0.75):
            tokens = share * STEPS * STEP
            keep = other.tokens <= tokens
            part = replace(other, tokens=other.tokens[keep], loss=other.loss[keep],
                           lines=other.lines[keep])  # fmt: skip
            stops = lasting_gap(part, one, float(STEPS * STEP)) > MARGIN
            true, false = (true + stops, false) if worse else (true, false + stops)
    assert false <= 1
    assert true >= 81


def test_no_run_of_a_kept_sweep_that_mattered_would_have_been_stopped() -> None:
    """48 runs at six rates: those stopped half-way all ended 5 % above the best of their size."""
    found = replay(load_sweep(KEPT), 0.5)
    assert found
    assert min(found.values()) > 0.05


def test_healthy_runs_are_not_taken_for_diverging() -> None:
    """Eight live runs of their own sizes, each looked at twice."""
    stopped = 0
    for seed in range(2):
        rng = np.random.default_rng(seed)
        for share in (0.35, 0.7):
            live = [Case(n=n, luck=0.01 * rng.standard_normal(), share=share)
                    for n in (3e4, 6e4, 1.5e5, 3e5)]  # fmt: skip
            stopped += len(hopeless(_sweep([*DONE, *live], seed)))
    assert stopped == 0
