"""The recipes that experiments share: the paper's, one for a laptop's CPU, one for synthetic tasks.

They fix everything but what an experiment varies, so that an experiment file shows its one idea.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from models.config import ModelConfig
from scaling.config.run import (
    BudgetConfig,
    DataConfig,
    OptimConfig,
    ParallelConfig,
    RunConfig,
    ScheduleConfig,
)

PAPER_TOKENS = 300_000_000_000
PAPER_TOKENS_PER_STEP = 480 * 8192
TOY_VOCAB = 256
"""The byte tokenizer: one byte that no UTF-8 text contains ends a document."""


def paper_recipe(
    name: str,
    size: str,
    model: ModelConfig,
    *,
    tokens: int = PAPER_TOKENS,
    horizons: Sequence[int] | None = None,
    kind: Literal["constant", "wsd"] = "constant",
    sequence_length: int = 8192,
) -> RunConfig:
    """A run of *Scaling Laws for Linear Complexity Language Models* (arXiv 2406.16690).

    Stated by the paper: 300B tokens, context 8192, 480 sequences a step (a batch of 4M tokens,
    held at every context length), Adam, lr 3e-4 for all sizes, weight decay 0.1, "a fixed
    learning rate scheduler", read as constant. Not stated: betas and clipping (the defaults of
    `OptimConfig`), warm-up (2B tokens here, or a fiftieth of a shorter budget, and with `wsd` at
    most half of the first horizon). The corpus is not
    public: point `data.corpus` at your own.

    Args:
        name: slug of the run.
        size: label of the rung.
        model: what is trained.
        tokens: budget.
        horizons: tokens of each milestone; None: 32 evenly spaced ones.
        kind: schedule, `constant` as in the paper, or `wsd` for a decayed model at each horizon.
        sequence_length: context.
    """
    even = tuple(tokens * k // 32 for k in range(1, 33))
    places = even if horizons is None else tuple(horizons)
    first = places[0] if places else tokens
    return RunConfig(
        name=name,
        size=size,
        model=model,
        data=DataConfig(
            corpus="hf:HuggingFaceFW/fineweb-edu:sample-350BT",
            tokenizer="tiktoken:cl100k_base",
            sequence_length=sequence_length,
            batch_sequences=PAPER_TOKENS_PER_STEP // sequence_length,
            validation_fraction=0.0005,
            validation_blocks=512,
        ),
        optim=OptimConfig(lr=3e-4, weight_decay=0.1),
        schedule=ScheduleConfig(
            kind=kind,
            warmup_tokens=min(2_000_000_000, tokens // 50, first // 2 if kind == "wsd" else tokens),
        ),
        budget=BudgetConfig(
            tokens=tokens,
            horizons=places,
            checkpoint_every_tokens=2_000_000_000,
        ),
        parallel=ParallelConfig(
            precision="bf16",
            activation_checkpointing="auto",
            compile=True,
        ),
    )


def toy_recipe(
    name: str,
    size: str,
    model: ModelConfig,
    *,
    tokens: int,
    horizons: Sequence[int] = (),
    sequence_length: int = 256,
    tokens_per_step: int = 2048,
    lr: float = 6e-3,
    seed: int = 0,
) -> RunConfig:
    """A small byte-level run on the embedded corpus, for one CPU core.

    WSD with a decay of a fifth, so that one trunk gives a decayed model at each horizon.

    Args:
        name: slug of the run.
        size: label of the rung.
        model: what is trained; its vocabulary must be the byte tokenizer's, `TOY_VOCAB`.
        tokens: budget (a token is a byte).
        horizons: tokens of each milestone; the end of the run is always one.
        sequence_length: context.
        tokens_per_step: batch.
        lr: peak learning rate.
        seed: seeds initialisation and data order.
    """
    return RunConfig(
        name=name,
        size=size,
        seed=seed,
        model=model,
        data=DataConfig(
            sequence_length=sequence_length,
            batch_sequences=tokens_per_step // sequence_length,
            validation_blocks=128 * 256 // sequence_length,
        ),
        optim=OptimConfig(lr=lr),
        schedule=ScheduleConfig(kind="wsd", warmup_tokens=25 * tokens_per_step),
        budget=BudgetConfig(tokens=tokens, horizons=tuple(horizons)),
        parallel=ParallelConfig(accelerator="cpu", threads=1),
    )


def task_recipe(
    name: str,
    size: str,
    model: ModelConfig,
    corpus: str,
    *,
    length: int,
    batch: int,
    steps: int,
    lr: float,
    seed: int = 0,
    toy: bool,
) -> RunConfig:
    """A run on a synthetic task (`scaling.data.recall_tasks`), WSD with 50 steps of warm-up.

    Args:
        name: slug of the run.
        size: label of the rung.
        model: what is trained.
        corpus: the task, `task:mqar:pairs=8,vocab=64`.
        length: tokens of a sequence.
        batch: sequences of a step.
        steps: of training.
        lr: peak learning rate.
        seed: seeds initialisation and data order.
        toy: for one CPU core.
    """
    return RunConfig(
        name=name,
        size=size,
        seed=seed,
        model=model,
        data=DataConfig(
            corpus=corpus, sequence_length=length, batch_sequences=batch, validation_blocks=256
        ),
        optim=OptimConfig(lr=lr),
        schedule=ScheduleConfig(kind="wsd", warmup_tokens=50 * length * batch),
        budget=BudgetConfig(tokens=steps * length * batch),
        parallel=ParallelConfig(accelerator="cpu", threads=1) if toy else ParallelConfig(),
    )
