"""Which layers keep their softmax: those that cost most without it, as measured.

    a run of attention transfer alone, all layers linear (`NAME-probe`, kept beside the other)
    -> cost of each layer on the validation blocks, into its linearization.json
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
from models.linearize.layer_costs import keep_costliest, layer_costs
from scaling.config.experiment import Experiment
from scaling.config.linearize import LinearizeConfig
from scaling.config.run import BudgetConfig, RunConfig
from scaling.data.loader import validation_batches
from scaling.data.prepare import prepare
from scaling.linearization import linearization_record as record
from scaling.record.pretrained import load_pretrained
from scaling.sweep.launch import launch
from scaling.training.loss import block_means


def keep_costliest_layers(config: RunConfig, sweep_dir: Path, keep: int, command: str) -> RunConfig:
    """The run with softmax attention in the `keep` layers that cost most without it.

    Args:
        config: linearizes all layers by LoLCATs, with attention transfer.
        sweep_dir: where the run goes; the one that measures goes there too.
        keep: layers.
        command: what the user gave, for the record.

    Raises:
        ConfigError: another method, no attention transfer, or not so many layers.
        LinscaleError: the measuring run was stopped or failed.
    """
    options, first = config.model.options, config.linearize.transfer_tokens
    if not isinstance(options, LoLCATs) or not first or options.softmax_layers:
        raise ConfigError(
            f"keep_costliest={keep}: layers are judged by attention transfer, with all of them "
            "linear; use --method lolcats, linearize.transfer_tokens above 0, and no keep_softmax."
        )
    if not 0 < keep < config.model.layers:
        raise ConfigError(
            f"keep_costliest={keep}: must be between 1 and {config.model.layers - 1}, one less "
            "than the layers."
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
        ),
    )
    experiment = Experiment(name=sweep_dir.name, path=Path(command), text=command, runs=[probe])
    if not launch(experiment, sweep_dir, launcher="inline"):
        raise LinscaleError(
            f"{sweep_dir / probe.run_id}: the run that measures layers has not ended; give the "
            "same command again."
        )
    kept = keep_costliest(costs(sweep_dir / probe.run_id), keep)
    part = replace(options, softmax_layers=kept)
    return replace(config, model=config.model.replace(options=part))


def costs(run_dir: Path) -> dict[int, float]:
    """Layer -> what it costs in nats a token, of a run of attention transfer; measured once."""
    stored = record.read(run_dir).get("costs")
    if stored is None:
        loaded = load_pretrained(run_dir)
        run = cast(RunConfig, loaded.run)
        batches = list(validation_batches(prepare(run.data), run.data.batch_sequences))

        def loss(model: LanguageModel) -> float:
            return torch.cat([block_means(model, batch) for batch in batches]).mean().item()

        for layer, cost in layer_costs(loaded.model, loss).items():
            record.note(run_dir, "costs", str(layer), cost)
        stored = record.read(run_dir)["costs"]
    return {int(layer): cost for layer, cost in stored.items()}
