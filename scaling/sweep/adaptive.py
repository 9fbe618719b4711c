"""A sweep that chooses its runs a batch at a time, until what it is to determine is narrow enough.

    run_adaptive(experiment, sweep_dir, asked, decide, ...)
        1. the runs of the last decision that have not ended are trained
        2. what is finished is read, and the next runs are decided on (`decide`; `linscale run`
           gives `analysis.judge.adaptive.decide`)
        3. the decision is written down with its data (`scaling.sweep.ledger`), then acted on
        4. until it is to stop

Killed at any point, the same command goes on: a decision that was written is acted on, one that was
not is made again from the same data. Batches are launched as any sweep is (`scaling.sweep.launch`);
with SLURM this process waits for their jobs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from linscale.errors import LinscaleError
from models.config import ConfigError
from scaling.config.experiment import Experiment
from scaling.config.run import RunConfig
from scaling.record.head import ENDED, read_head
from scaling.sweep.ledger import Entry, Ledger
from scaling.sweep.slurm_queue import queued
from scaling.system.claims import holder

POLL_SECONDS = 15.0
"""Between two looks at jobs in the queue."""
LOST = 3
"""Looks in a row at which a run has neither a job nor a result before it is given up."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What decisions rest on beside the measurements."""

    settings: dict[str, Any]
    """Targets, budget and so on, as JSON types."""
    candidates: list[dict[str, Any]]
    """`scaling.plan.shorter.candidates`."""
    runs: dict[str, RunConfig]
    """The candidates' runs by id."""


class Decide(Protocol):
    """Reads the sweep and decides: (state, points, decision) as JSON types."""

    def __call__(
        self, asked: Asked, state: dict[str, Any]
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]: ...


def run_adaptive(
    experiment: Experiment,
    sweep_dir: Path,
    asked: Asked,
    decide: Decide,
    launch: Callable[[Experiment], bool],
    *,
    waits: bool = False,
    say: Callable[[str], None] = print,
) -> bool:
    """Decide and train until a decision stops.

    Args:
        experiment: where the runs come from.
        sweep_dir: where their records go.
        asked: settings and candidates.
        decide: makes a decision from the state and what the sweep has measured.
        launch: trains, or submits, an experiment's runs.
        waits: `launch` returns when runs are submitted, not when they have ended.
        say: told every decision in a sentence.

    Returns:
        False if runs failed or were stopped; the same command goes on.

    Raises:
        LinscaleError: jobs have left the queue without a result; or a decision cannot be made.
    """
    sweep_dir.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(sweep_dir)
    ledger.ask(asked.settings, asked.candidates)
    while True:
        if ledger.entries:
            last = ledger.entries[-1]
            left = [run for run in last.runs if not _ended(sweep_dir, run)]
            runs = [_known(asked, run) for run in left if not (waits and _waiting(sweep_dir, run))]
            if runs and not launch(replace(experiment, runs=runs)) and not waits:
                return False
            if waits and left:
                _wait(sweep_dir, left)
                failed = [r for r in left if read_head(sweep_dir / r).state == "failed"]
                if failed:
                    say(f"{', '.join(failed)}: failed; the same command tries again")
                    return False
        state = _state(ledger, sweep_dir, asked)
        points, decision = decide(asked, state)
        if ledger.entries and not decision["runs"] and _same(ledger.entries[-1], state, decision):
            say(_told(ledger.entries[-1]))  # it had stopped, and nothing has changed
            return True
        entry = ledger.decide(state, points, decision)
        say(_told(entry))
        if not entry.runs:
            return True


def _state(ledger: Ledger, sweep_dir: Path, asked: Asked) -> dict[str, Any]:
    """What was bought so far."""
    heads = {run: read_head(sweep_dir / run) for run in sorted(asked.runs)}
    lost = {run: h.reason for run, h in heads.items() if h.state in ("diverged", "stopped")}
    last = ledger.entries[-1].decision["why"] if ledger.entries else ""
    return {
        "done": [run for run, head in heads.items() if head.state == "done"],
        "closed": lost,
        "spent": ledger.spent,
        "reached": last in ("confirm", "target"),
    }


def _known(asked: Asked, run: str) -> RunConfig:
    """Raises ConfigError where the experiment has changed under a decision."""
    if run not in asked.runs:
        raise ConfigError(
            f"{run}: was chosen, has not ended, and is no candidate of the experiment any more; "
            "give the experiment and overrides that it was chosen with."
        )
    return asked.runs[run]


def _same(entry: Entry, state: dict[str, Any], decision: dict[str, Any]) -> bool:
    return (
        not entry.runs
        and entry.decision["why"] == decision["why"]
        and (entry.state["done"] == state["done"])
    )


def _ended(sweep_dir: Path, run: str) -> bool:
    return read_head(sweep_dir / run).state in ENDED


def _waiting(sweep_dir: Path, run: str) -> bool:
    """Whether a run is under way, or has a job in the queue."""
    if holder(sweep_dir / run) is not None:
        return True
    job = queued(sweep_dir).get(run)
    return job is not None and bool(job.state)


def _wait(sweep_dir: Path, runs: list[str]) -> None:
    """Until every run has ended or failed.

    Raises:
        LinscaleError: a run has neither a job nor a result any more.
    """
    lost = dict.fromkeys(runs, 0)
    while True:
        jobs = queued(sweep_dir)
        under_way = {
            run: holder(sweep_dir / run) is not None or (run in jobs and bool(jobs[run].state))
            for run in runs
        }
        states = {run: read_head(sweep_dir / run).state for run in runs}
        left = [
            run for run in runs
            if states[run] not in ENDED and (states[run] != "failed" or under_way[run])
        ]  # fmt: skip
        if not left:
            return
        for run in left:
            lost[run] = 0 if under_way[run] else lost[run] + 1
            if lost[run] >= LOST:
                raise LinscaleError(
                    f"{run}: its job has left the queue without a result; look at "
                    f"{sweep_dir}/slurm and give the same command again, which submits it again."
                )
        time.sleep(POLL_SECONDS)


def _told(entry: Entry) -> str:
    """One decision for people."""
    found = entry.decision
    widths = "; ".join(
        f"{w['of']} {'endless' if w['width'] is None else format(w['width'], '.3g')} "
        f"(goal {w['goal']:.3g})" for w in found["widths"]
    )  # fmt: skip
    text = f"decision {entry.number}: {found['words']}"
    if found["runs"]:
        text += f"; now {len(found['runs'])} runs, {found['cost']:.3g} FLOPs"
    spent = float(entry.state["spent"]) + float(found["cost"])
    text += f" ({spent:.3g} of {float(entry.settings['budget']):.3g} FLOPs)"
    return f"{text}. Widths: {widths}" if widths else text
