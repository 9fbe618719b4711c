"""An experiment made to fit into some minutes of this machine.

1. The time of every run is estimated as `linscale plan` does, with this machine's measured speed.
2. The sizes that are kept are as many as possible, smallest first, and four at least, so that every
   kept run still sees a quarter of its tokens; the horizons of all are shortened alike.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from models.accounting import non_embedding_parameters
from models.config import ConfigError
from scaling.config.experiment import Experiment
from scaling.config.run import RunConfig
from scaling.plan.plan import rung
from scaling.system.devices import Device, device_for
from scaling.system.files import read_json, write_json

FEWEST_SIZES = 4
"""A law of N and D needs so many to be held against one that is left out."""
LEAST_SHARE = 0.25
"""Of the tokens of a run that is kept, before a size is given up."""
LEAST_STEPS = 50
"""Optimizer steps to the first horizon, below which nothing can be learnt."""


def within(experiment: Experiment, minutes: float, machine: Device) -> tuple[Experiment, str]:
    """The experiment, shortened to about so many minutes, and what was done in words.

    Args:
        experiment: its runs.
        minutes: on that machine.
        machine: with its measured speed.

    Raises:
        ConfigError: not a time, or too short for anything to be learnt.
    """
    if not minutes > 0:
        raise ConfigError(f"--minutes {minutes:g}: must be more than 0.")
    hours = {run.run_id: rung(run, machine).device_hours for run in experiment.runs}
    whole = 60 * sum(hours.values())
    name = f"{experiment.name}-{minutes:g}min"
    if whole <= minutes:
        return replace(experiment, name=name), (
            f"all of it fits: about {whole:.0f} minutes on {machine.name}; sweep {name}"
        )
    of_size = {run.run_id: non_embedding_parameters(run.model) for run in experiment.runs}
    sizes = list(dict.fromkeys(run.size for run in sorted(experiment.runs, key=lambda r:
                                                          of_size[r.run_id])))  # fmt: skip
    share = 0.0
    kept = list(experiment.runs)
    for count in range(len(sizes), min(FEWEST_SIZES, len(sizes)) - 1, -1):
        kept = [run for run in experiment.runs if run.size in sizes[:count]]
        share = minutes / 60 / sum(hours[run.run_id] for run in kept)
        if share >= LEAST_SHARE:
            break
    share = min(1.0, share)
    if share * min(run.horizon_steps[0] for run in kept) < LEAST_STEPS:
        raise ConfigError(
            f"--minutes {minutes:g}: too short for {experiment.name} on {machine.name}, whose "
            f"shortest form needs about {LEAST_STEPS} steps to every first horizon; give more, or "
            "a smaller experiment."
        )
    ids = len(dict.fromkeys(run.size for run in kept))
    return replace(experiment, name=name, runs=[_shorter(run, share) for run in kept]), (
        f"{len(kept)} of {len(experiment.runs)} runs ({ids} of {len(sizes)} sizes) at {share:.0%} "
        f"of their tokens: about {minutes:g} of {whole:.0f} minutes on {machine.name}; sweep {name}"
    )


def within_this_machine(
    experiment: Experiment, minutes: float, out: Path | None
) -> tuple[Experiment, str]:
    """`within` for this machine's CPU, whose speed is measured once and kept with the sweep: the
    same command goes on with the same runs.

    Args:
        out: the sweep's directory; None: below runs/.

    Raises:
        ConfigError: as `within`; or a run is not set to a CPU.
    """
    if any(run.parallel.accelerator != "cpu" for run in experiment.runs):
        raise ConfigError(
            "--minutes: measures the CPU, and these runs are not set to one; set "
            "parallel.accelerator=cpu, or leave --minutes out."
        )
    name = f"{experiment.name}-{minutes:g}min"
    kept = (out or Path("runs") / name) / "machine.json"
    known = read_json(kept)
    machine = Device(**known) if known else device_for(experiment.runs)
    shorter, what = within(experiment, minutes, machine)
    if not known:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept, asdict(machine))
    return shorter, what


def _shorter(run: RunConfig, share: float) -> RunConfig:
    """A run on this share of its tokens."""
    step = run.tokens_per_step

    def tokens(of: int) -> int:
        return max(1, round(share * of / step)) * step

    changes = [f"budget.tokens={tokens(run.budget.tokens)}"]
    if run.budget.horizons:
        horizons = dict.fromkeys(tokens(h) for h in run.budget.horizons)
        changes.append("budget.horizons=" + ",".join(map(str, horizons)))
    if run.schedule.warmup_tokens:
        changes.append(f"schedule.warmup_tokens={tokens(run.schedule.warmup_tokens)}")
    return run.override(changes)
