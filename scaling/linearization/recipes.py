"""The published recipes of SUPRA and LoLCATs, as runs.

    supra     all weights learn, on plain text: about 5 % of the pretraining tokens
    lolcats   half of the tokens for attention transfer, half for LoRA; Alpaca's instructions

Where the numbers are from: for SUPRA the card of the authors' Mistral-SUPRA model (AdamW, bf16,
lr 3e-5 cooled down to 1e-5, 1000 steps of warm-up, batches of 2M tokens in sequences of 2048, 100B
tokens of RefinedWeb) and the flags in their repository's README (weight decay 0.1, beta2 0.98,
clipping at 1; its z-loss of 1e-4 is left out here). For LoLCATs the authors' configurations
(distill_alpaca_clean_xent0_mse1000_lr1e-2, finetune_lora_qkvo_alpaca_clean: lr 1e-2 and 1e-4, no
weight decay, no clipping, batches of 8 sequences of 1024, 2 epochs a stage, LoRA of rank 8 and
alpha 16 without dropout). Their rate is divided by ten when ten evaluations, a hundred steps
apart, bring nothing, and the best checkpoint is kept; here it is constant, and the last one is
kept, so that a run is a pure function of its configuration.
"""

from __future__ import annotations

from models.config import ModelConfig
from scaling.config.run import (
    BudgetConfig,
    DataConfig,
    LinearizeConfig,
    OptimConfig,
    ParallelConfig,
    RunConfig,
    ScheduleConfig,
)

METHODS = ("supra", "lolcats")
LORA_RANK = 8
SUPRA_WARMUP_STEPS = 1000
SUPRA_TOKENS_PER_STEP = 2**21
SUPRA_TOKENS = 100_000_000_000
LOLCATS_TOKENS = 40_000_000
LOLCATS_TOKENS_PER_STEP = 8 * 1024


def supra_run(
    name: str,
    teacher: str,
    model: ModelConfig,
    data: DataConfig,
    *,
    size: str = "",
    tokens: int = SUPRA_TOKENS,
    seed: int = 0,
    parallel: ParallelConfig | None = None,
) -> RunConfig:
    """SUPRA's uptraining of all weights.

    Args:
        name: slug of the run.
        teacher: path, as in `linearize.teacher`.
        model: the student's configuration: the teacher's with `arch` and `supra` or `lolcats`.
        data: text, tokenised as the teacher's; published: 1024 sequences of 2048.
        size: label of the rung.
        tokens: budget. The warm-up is 1000 steps, or a fiftieth of a budget below 50,000 steps.
        seed: seeds new weights and data order.
        parallel: devices; None: bf16, with the micro-batch and the activation checkpointing that
            the memory of the device allows.
    """
    per_step = data.sequence_length * data.batch_sequences
    steps = max(1, tokens // per_step)
    return RunConfig(
        name=name,
        size=size,
        seed=seed,
        model=model,
        data=data,
        linearize=LinearizeConfig(teacher=teacher),
        optim=OptimConfig(lr=3e-5, betas=(0.9, 0.98), weight_decay=0.1, clip_norm=1.0),
        schedule=ScheduleConfig(
            kind="cosine",
            warmup_tokens=min(SUPRA_WARMUP_STEPS, steps // 50) * per_step,
            final_lr_ratio=1 / 3,
        ),
        budget=BudgetConfig(tokens=tokens),
        parallel=parallel or ParallelConfig(precision="bf16", activation_checkpointing="auto"),
    )


def lolcats_run(
    name: str,
    teacher: str,
    model: ModelConfig,
    data: DataConfig,
    *,
    size: str = "",
    tokens: int = LOLCATS_TOKENS,
    seed: int = 0,
    parallel: ParallelConfig | None = None,
) -> RunConfig:
    """LoLCATs' attention transfer and LoRA, each on half of the tokens.

    Args: as `supra_run`; published data: 8 packed sequences of 1024 tokens, on one device.
    """
    return RunConfig(
        name=name,
        size=size,
        seed=seed,
        model=model,
        data=data,
        linearize=LinearizeConfig(
            teacher=teacher, transfer_tokens=tokens // 2, lora_rank=LORA_RANK
        ),
        optim=OptimConfig(lr=1e-4, betas=(0.9, 0.999), weight_decay=0.0, clip_norm=None),
        schedule=ScheduleConfig(kind="constant"),
        budget=BudgetConfig(tokens=tokens),
        parallel=parallel
        or ParallelConfig(strategy="single", precision="bf16", activation_checkpointing="auto"),
    )
