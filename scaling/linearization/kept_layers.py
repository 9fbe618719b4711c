"""Which layers keep their softmax: by what they cost without it, as measured, or by position.

    by position: the last of each of so many groups, evenly spread; nothing is measured
    by cost or by KL of the outputs:
    a run of attention transfer alone, all layers linear (`NAME-probe`, kept beside the other)
    -> what each layer costs on the validation blocks, as loss of the text (`costs`) or as
       divergence of the next tokens from the teacher's (`divergences`), into linearization.json
    -> the costliest keep softmax attention in the run that is asked for

The choice becomes part of that run's configuration, `model.options.softmax_layers`, so that it is a
pure function of it. Measured by `models.linearize.layer_costs`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from linscale.errors import LinscaleError
from models.architectures.lolcats import LoLCATs
from models.config import ConfigError
from models.language_model import LanguageModel
from models.linearize.layer_costs import (
    divergence,
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
from scaling.linearization.objectives import inputs
from scaling.record.pretrained import load_pretrained
from scaling.sweep.launch import launch
from scaling.training.loss import block_means

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
) -> RunConfig:
    """The run with softmax attention kept in `keep` layers.

    Args:
        config: linearizes all layers; by LoLCATs with attention transfer, unless `by` is position.
        sweep_dir: where the run goes; the one that measures goes there too.
        keep: layers.
        by: one of `BY`.
        command: what the user gave, for the record.
        accept_data_change: of `launch`.

    Raises:
        ConfigError: another method, no attention transfer, or not so many layers.
        LinscaleError: the measuring run was stopped or failed.
    """
    options, first = config.model.options, config.linearize.transfer_tokens
    if by not in BY:
        raise ConfigError(f"keep_by={by!r}: choose one of {', '.join(BY)}.")
    if not isinstance(options, Linearized):
        raise ConfigError(
            f"keep={keep} with model.arch={config.model.arch!r}: it cannot mix its layers with "
            "softmax attention; use --method supra or lolcats."
        )
    if options.softmax_layers:
        raise ConfigError(f"keep={keep} with keep_softmax: give one of the two.")
    if not 0 < keep < config.model.layers:
        raise ConfigError(
            f"keep={keep}: must be between 1 and {config.model.layers - 1}, one less than the "
            "layers."
        )
    if by == "position":
        return _with(config, keep_spread(config.model.layers, keep))
    if not isinstance(options, LoLCATs) or not first:
        raise ConfigError(
            f"keep={keep} with keep_by={by!r}: layers are judged by attention transfer; use "
            "--method lolcats with linearize.transfer_tokens above 0, or --keep-by position."
        )
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
    return _with(config, keep_costliest(measured, keep))


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

        def loss(model: LanguageModel) -> float:
            if by == "kl":
                pairs = [inputs(batch) for batch in batches]
                found = [divergence(model, teacher, tokens, *more) for tokens, more in pairs]
            else:
                found = [block_means(model, batch) for batch in batches]
            return torch.cat(found).mean().item()

        stored = {str(layer): cost for layer, cost in layer_costs(student, loss).items()}
        record.put(run_dir, part, stored)  # all at once: some of them would look like all
    return {int(layer): cost for layer, cost in stored.items()}


def _with(config: RunConfig, layers: tuple[int, ...]) -> RunConfig:
    options = config.model.options
    assert isinstance(options, Linearized)
    part = replace(options, softmax_layers=layers)
    return replace(config, model=config.model.replace(options=part))
