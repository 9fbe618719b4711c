"""The quickstart's transformers as teachers, and small recipes that linearize them on a CPU core.

The rates were chosen at d64 with 100 to 200 thousand tokens among factors of two and three; weight
decay and betas are the quickstart's. LoLCATs' are ten and a hundred times the published ones, for
stages of fifty steps instead of 2400. As in the quickstart, a run has a decay of a fifth before
each horizon.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from experiments.quickstart import DIMS, HORIZONS
from experiments.quickstart import runs as quickstart
from models.architectures.lolcats import LoLCATs
from models.architectures.supra import Supra
from models.config import ModelConfig
from models.linearize.options import Linearized, linearized_config
from scaling.config.recipes import toy_recipe
from scaling.config.run import BudgetConfig, LinearizeConfig, RunConfig

TEACHERS = {run.model.dim: run for run in quickstart() if run.model.arch == "llama"}
"""The quickstart's LLaMA by width."""
LARGEST, QUICKSTART_TOKENS = DIMS[-1], HORIZONS[-1]
WINDOW = 4
"""LoLCATs' window in bytes. The published share of the sequence, a sixteenth, would be 16: bytes
depend so much on those just before that the linear part would have almost nothing to do."""
SUPRA_LR, SCRATCH_LR = 3e-3, 6e-3
TRANSFER_LR, LORA_LR = 1e-1, 1e-2
LORA_RANK = 8


def path(dim: int) -> str:
    """Where `make quickstart` leaves the teacher."""
    return f"runs/quickstart/{TEACHERS[dim].run_id}"


def supra(dim: int, options: Linearized | None = None) -> ModelConfig:
    """The teacher's configuration with SUPRA's attention."""
    return linearized_config(TEACHERS[dim].model, options or Supra())


def lolcats(dim: int, options: Linearized | None = None) -> ModelConfig:
    """The teacher's configuration with LoLCATs' attention."""
    return linearized_config(TEACHERS[dim].model, options or LoLCATs(window=WINDOW))


def uptrained(
    name: str, model: ModelConfig, *, tokens: int, horizons: Sequence[int] = (), seed: int
) -> RunConfig:
    """All weights of a teacher learn: SUPRA, or the teacher itself as a control."""
    run = scratch(name, model, tokens=tokens, horizons=horizons, seed=seed, lr=SUPRA_LR)
    return replace(run, linearize=LinearizeConfig(teacher=path(model.dim)))


def transferred(name: str, model: ModelConfig, *, tokens: int, seed: int) -> RunConfig:
    """LoLCATs: half of the tokens for attention transfer, half for LoRA."""
    run = scratch(name, model, tokens=tokens, seed=seed, lr=LORA_LR)
    stages = LinearizeConfig(
        teacher=path(model.dim),
        transfer_tokens=tokens // 2,
        transfer_lr=TRANSFER_LR,
        lora_rank=LORA_RANK,
    )
    return replace(run, linearize=stages)


def scratch(
    name: str,
    model: ModelConfig,
    *,
    tokens: int,
    horizons: Sequence[int] = (),
    seed: int,
    lr: float = SCRATCH_LR,
) -> RunConfig:
    """The same model from random weights, as in the quickstart, with a warm-up of five steps."""
    run = toy_recipe(name, f"d{model.dim}", model, tokens=QUICKSTART_TOKENS, lr=lr, seed=seed)
    return replace(
        run,
        schedule=replace(run.schedule, warmup_tokens=5 * run.tokens_per_step),
        budget=BudgetConfig(tokens=tokens, horizons=tuple(horizons)),
    )
