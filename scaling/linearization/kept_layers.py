"""Which layers keep their softmax: by what they cost without it, as measured, or by position.

    by position: the last of each of so many groups, evenly spread; nothing is measured
    by cost or by KL of the outputs:
    a run of attention transfer alone, all layers linear (`NAME-probe`, kept beside the other)
    -> what each layer costs on the validation blocks, as loss of the text (`costs`) or as
       divergence of the next tokens from the teacher's (`divergences`), into linearization.json
    -> the costliest keep softmax attention in the run that is asked for
    methods without attention transfer: each layer exchanged alone (`swap_costs`)

The choice becomes part of that run's configuration (`model.options.softmax_layers`, or the pattern
`model.mixers` of a hybrid), so that it is a pure function of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

from linscale.errors import LinscaleError
from models.architectures.llama import LlamaOptions
from models.architectures.lolcats import LoLCATs
from models.config import ConfigError, ModelConfig
from models.linearize.initialise import keep_attention
from models.linearize.layer_costs import (
    keep_costliest,
    keep_spread,
    layer_costs,
    with_softmax_layers,
)
from models.linearize.options import Linearized
from scaling.config.experiment import Experiment
from scaling.config.linearize import LinearizeConfig
from scaling.config.run import BudgetConfig, RunConfig
from scaling.data.loader import validation_batches
from scaling.data.prepare import prepare
from scaling.linearization import linearization_record as record
from scaling.linearization.swap_costs import judge, swap_costs
from scaling.linearization.teacher import teacher_config
from scaling.record.pretrained import load_pretrained
from scaling.sweep.launch import launch

BY = {"cost": "costs", "position": "", "kl": "divergences"}
"""How layers are chosen -> the part of linearization.json with what was measured."""


def keep_layers(
    config: RunConfig,
    sweep_dir: Path,
    keep: int,
    by: str,
    command: str,
    *,
    accept_data_change: bool = False,
    say: Callable[[str], object] = print,
) -> RunConfig:
    """The run with softmax attention kept in `keep` layers.

    Args:
        config: linearizes all layers.
        sweep_dir: where the run goes; the one that measures goes there too.
        keep: layers.
        by: one of `BY`.
        command: what the user gave, for the record.
        accept_data_change: of `launch`.
        say: told what is measured where no run does it.

    Raises:
        ConfigError: another way to choose, or not so many layers.
        LinscaleError: the measuring run was stopped or failed.
    """
    first = config.linearize.transfer_tokens
    if by not in BY:
        raise ConfigError(f"keep_by={by!r}: choose one of {', '.join(BY)}.")
    if config.model.softmax_layers:
        raise ConfigError(f"keep={keep} with keep_softmax: give one of the two.")
    if not 0 < keep < config.model.layers:
        raise ConfigError(
            f"keep={keep}: must be between 1 and {config.model.layers - 1}, one less than the "
            "layers."
        )
    theirs = teacher_config(config.linearize.teacher)
    if not isinstance(theirs.options, LlamaOptions):
        raise ConfigError(
            f"keep={keep} with linearize.teacher={config.linearize.teacher}: it is linearized "
            "already; choose layers where a transformer is linearized."
        )
    model, kept_in = config.model, _keeper(config.model, theirs.options)
    if by == "position":
        return replace(config, model=kept_in(model, keep_spread(model.layers, keep)))
    if not isinstance(model.options, LoLCATs) or not first:
        costs = swap_costs(config, sweep_dir, by, kept_in, say)
        return replace(config, model=kept_in(model, keep_costliest(costs, keep)))
    probe = replace(
        config,
        name=f"{config.name[:58]}-probe",
        budget=BudgetConfig(tokens=first),
        linearize=LinearizeConfig(
            teacher=config.linearize.teacher,
            transfer_tokens=first,
            transfer_lr=config.linearize.transfer_lr,
            cross_entropy=config.linearize.cross_entropy,
            far_error=config.linearize.far_error,
            transfer_error=config.linearize.transfer_error,
            window_dropout=config.linearize.window_dropout,
        ),
    )
    experiment = Experiment(name=sweep_dir.name, path=Path(command), text=command, runs=[probe])
    if not launch(experiment, sweep_dir, launcher="inline", accept_data_change=accept_data_change):
        raise LinscaleError(
            f"{sweep_dir / probe.run_id}: the run that measures layers has not ended; give the "
            "same command again."
        )
    measured = measure(sweep_dir / probe.run_id, by)
    return replace(config, model=kept_in(model, keep_costliest(measured, keep)))


def measure(run_dir: Path, by: str) -> dict[int, float]:
    """Layer -> what it costs in nats a token, of a run of attention transfer; measured once.

    Args:
        run_dir: of the run.
        by: `cost`, loss on the validation text; or `kl`, divergence from the teacher there.
    """
    part = BY[by]
    stored = record.read(run_dir).get(part)
    if stored is None:
        loaded = load_pretrained(run_dir)
        run, student = cast(RunConfig, loaded.run), loaded.model
        batches = list(validation_batches(prepare(run.data), run.data.batch_sequences))
        teacher = with_softmax_layers(student, tuple(range(student.config.layers)))

        loss = judge(by, teacher, batches)
        stored = {str(layer): cost for layer, cost in layer_costs(student, loss).items()}
        record.put(run_dir, part, stored)  # all at once: some of them would look like all
    return {int(layer): cost for layer, cost in stored.items()}


def _keeper(
    linear: ModelConfig, attention: LlamaOptions
) -> Callable[[ModelConfig, tuple[int, ...]], ModelConfig]:
    """A model of the run's method with softmax attention in some layers."""
    if isinstance(linear.options, Linearized):

        def chosen(model: ModelConfig, layers: tuple[int, ...]) -> ModelConfig:
            options = model.options_as(Linearized)
            return model.replace(options=replace(options, softmax_layers=layers))

        return chosen
    return lambda model, layers: keep_attention(model, attention, layers)
