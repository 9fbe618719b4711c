"""Runs beside a linearization that have the same training and less to gain from it.

    teacher        the softmax model itself, trained on
    window         the student's window and sinks, without a linear part
    equal window   a sliding window of as many bytes as the student's state, first token kept

Each is trained as the student is after its layers are aligned: the same text, seed, tokens, rate
and, where the student has them, low-rank additions. What the student has beyond them is what its
linear part is worth. They are runs of their own in the student's sweep.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from linscale.errors import LinscaleError
from models.architectures.llama import LlamaBased
from models.architectures.lolcats import LoLCATs
from scaling.config.experiment import Experiment
from scaling.config.linearize import LinearizeConfig
from scaling.config.run import RunConfig
from scaling.linearization import linearization_record as record
from scaling.linearization.baselines import held_bytes, own_window, windows
from scaling.sweep.launch import launch


def controls(config: RunConfig) -> dict[str, RunConfig]:
    """The controls of a linearization by name; {} where nothing is trained after the alignment, or
    the model has no transformer's projections.

    Args:
        config: whose teacher is a softmax model.
    """
    options, first = config.model.options, config.prelude_steps * config.tokens_per_step
    rest = config.budget.tokens - first
    if not isinstance(options, LlamaBased) or config.steps <= config.prelude_steps:
        return {}
    softmax = config.model.replace(arch="llama", options=options.llama)
    models: dict[str, Any] = {"teacher": softmax}
    if isinstance(options, LoLCATs):
        alone = replace(options, feature_map="none", feature_size=None)
        equal = windows(config, softmax)["equal window + sink"].options
        for name, part in (
            ("window", alone),
            ("equal window", replace(equal, llama=options.llama)),
        ):
            models[name] = config.model.replace(options=part)
    kept = config.linearize
    stages = LinearizeConfig(
        teacher=kept.teacher,
        lora_rank=kept.lora_rank,
        lora_alpha=kept.lora_alpha,
        temperature=kept.temperature,
        hard=kept.hard,
    )
    horizons = tuple(h - first for h in config.budget.horizons if h > first)
    budget = replace(config.budget, tokens=rest, horizons=horizons)
    return {
        name: replace(
            config,
            name=f"{config.name[:50]}-{name.replace(' ', '-')}",
            model=model,
            # Distilled from itself the teacher would learn nothing.
            linearize=replace(stages, temperature=0.0, hard=0.0) if name == "teacher" else stages,
            budget=budget,
        )
        for name, model in models.items()
    }


def run_controls(
    config: RunConfig, sweep_dir: Path, command: str, *, accept_data_change: bool = False
) -> None:
    """Train the controls of a finished run, or what is left of them, and write what they reached.

    Args:
        config: the run, in `sweep_dir`.
        sweep_dir: its sweep; the controls go there too.
        command: what the user gave, for the record.
        accept_data_change: of `launch`.

    Raises:
        LinscaleError: one of them was stopped or failed.
    """
    found = controls(config)
    if not found:
        return
    runs = list(found.values())
    experiment = Experiment(name=sweep_dir.name, path=Path(command), text=command, runs=runs)
    if not launch(experiment, sweep_dir, launcher="inline", accept_data_change=accept_data_change):
        raise LinscaleError(
            f"{sweep_dir}: the runs that {config.run_id} is compared with have not ended; give the "
            "same command again, or --no-controls to do without them."
        )
    note_controls(sweep_dir, config)


def note_controls(sweep_dir: Path, config: RunConfig) -> None:
    """Write what the finished controls of a run reached into its linearization.json."""
    found = controls(config)
    if not found:
        return
    softmax = found["teacher"].model
    untrained = windows(config, softmax)  # of the same attention as the controls
    same = {"window": own_window(config.model), "equal window": "equal window + sink"}
    for name, control in found.items():
        if not (sweep_dir / control.run_id / "milestones.jsonl").is_file():
            continue
        last = record.last_milestone(sweep_dir / control.run_id)
        alike = same.get(name)
        size = held_bytes(softmax, config) if alike is None else untrained[alike].state_bytes
        entry = {"run": control.run_id, "tokens": last["tokens"], "loss": last["val_loss"]}
        record.note(sweep_dir / config.run_id, "controls", name, {**entry, "state_bytes": size})
