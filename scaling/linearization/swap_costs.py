"""What each layer costs once it is linear: one is exchanged at a time, before anything is trained.

    for each layer: the teacher with that layer alone linear
    -> its output projection solved for the teacher's attention (`fit_outputs`)
    -> loss of the validation text, or divergence of the next tokens from the teacher's

For methods without attention transfer, which has a better answer (`kept_layers.measure`). The same
weights are drawn for a layer whatever the others do. Results go into layer_costs.json of the sweep,
so that a run which goes on, and another number of kept layers, find them there; under the name of
the run that linearizes all layers, which says teacher, method, text and seed.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Any

import torch

from models.config import ModelConfig
from models.language_model import LanguageModel, build
from models.linearize.initialise import fit_outputs
from models.linearize.layer_costs import divergence
from scaling.config.run import RunConfig
from scaling.data.loader import Batch, to_batch, validation_batches
from scaling.data.prepare import prepare
from scaling.linearization.objectives import inputs
from scaling.linearization.teacher import adopt, load_teacher
from scaling.system.claims import exclusive
from scaling.system.files import read_json, write_json
from scaling.training.loss import block_means

FILE = "layer_costs.json"
TOKENS_PER_CHANNEL = 10
"""Tokens that output projections are solved on, for each channel of the model."""


def swap_costs(
    config: RunConfig,
    sweep_dir: Path,
    by: str,
    with_kept: Callable[[ModelConfig, tuple[int, ...]], ModelConfig],
    say: Callable[[str], object],
) -> dict[int, float]:
    """Layer -> its cost in nats a token; measured once.

    Args:
        config: a run that linearizes all layers.
        sweep_dir: of the run; layer_costs.json is there.
        by: `cost`, loss on the validation text above that with softmax in all layers; or `kl`,
            divergence from the teacher there.
        with_kept: the run's model with softmax attention in these layers alone.
        say: told of each layer.

    Raises:
        LinscaleError, ConfigError: the teacher is missing or does not fit.
    """
    path, key = sweep_dir / FILE, f"{config.run_id} {by}"
    known: dict[str, Any] = read_json(path)
    if key not in known:
        found = {str(n): cost for n, cost in _measure(config, by, with_kept, say).items()}
        with exclusive(path.with_suffix(".lock")):
            known = read_json(path)  # what others have measured meanwhile stays
            known.setdefault(key, found)
            write_json(path, known)
    return {int(layer): cost for layer, cost in known[key].items()}


def judge(
    by: str, teacher: LanguageModel, batches: list[Batch]
) -> Callable[[LanguageModel], float]:
    """Model -> nats a token: its loss on the text, or for `kl` its divergence from the teacher."""

    def loss(model: LanguageModel) -> float:
        if by == "kl":
            pairs = [inputs(batch) for batch in batches]
            found = [divergence(model, teacher, tokens, *more) for tokens, more in pairs]
        else:
            found = [block_means(model, batch) for batch in batches]
        return torch.cat(found).mean().item()

    return loss


@torch.no_grad()
def _measure(
    config: RunConfig,
    by: str,
    with_kept: Callable[[ModelConfig, tuple[int, ...]], ModelConfig],
    say: Callable[[str], object],
) -> dict[int, float]:
    data, model = config.data, config.model
    prepared = prepare(data)
    prepared.verify_changed()
    teacher = load_teacher(config, prepared.tokenizer()).model
    count = ceil(TOKENS_PER_CHANNEL * model.dim / data.sequence_length)
    count = max(count, config.linearize.fit_sequences)
    rows = prepared.train.gather(prepared.order(config.seed).blocks(0, count))
    text = to_batch(rows)[0]
    batches = list(validation_batches(prepared, data.batch_sequences))

    def student(linear: tuple[int, ...]) -> LanguageModel:
        kept = tuple(layer for layer in range(model.layers) if layer not in linear)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            made = build(with_kept(model, kept)).eval()
        adopt(made, teacher)
        if linear:
            fit_outputs(made, teacher, text)
        return made

    loss = judge(by, teacher, batches)
    base, costs = loss(student(())), {}
    for layer in range(model.layers):
        costs[layer] = loss(student((layer,))) - base
        say(f"layer {layer}: {costs[layer]:.4f} nats a token")
    return costs
