"""The ladder of *Scaling Laws for Linear Complexity Language Models* (arXiv 2406.16690).

Question: how do loss, optimal size and optimal tokens scale with compute for TNL, HGRN2 and
cosFormer2 against LLaMA?
Command: linscale plan experiments/paper_ladder.py --device h100
Expected: L(C) = 3.71 C^-0.080 for LLaMA and 3.54 C^-0.077, 3.48 C^-0.075, 3.59 C^-0.076 for TNL,
HGRN2, cosFormer2 (Table 3, C in PFLOP/s-days); the corpus of the paper is not public, so the
constants will differ with yours.

Stated by the paper: 300B tokens, context 8192, 480 sequences a step, Adam, lr 3e-4 for all sizes,
weight decay 0.1, a fixed schedule. Not stated: betas, clipping and warm-up (the defaults of
`OptimConfig` and 2B tokens of warm-up are used). Point `data.corpus` at your own text.
"""

from __future__ import annotations

from models.config import ARCHS, PAPER_SIZES, paper_config
from scaling.config import (
    BudgetConfig,
    DataConfig,
    OptimConfig,
    ParallelConfig,
    RunConfig,
    ScheduleConfig,
)

TOKENS = 300_000_000_000


def runs() -> list[RunConfig]:
    """Four architectures at six sizes, smallest first."""
    return [
        RunConfig(
            name=f"{arch}-{size}",
            size=size,
            model=paper_config(arch, size),
            data=DataConfig(
                corpus="hf:HuggingFaceFW/fineweb-edu:sample-350BT",
                tokenizer="tiktoken:cl100k_base",
                sequence_length=8192,
                batch_sequences=480,
                validation_fraction=0.0005,
                validation_blocks=512,
            ),
            optim=OptimConfig(lr=3e-4, weight_decay=0.1),
            schedule=ScheduleConfig(kind="constant", warmup_tokens=2_000_000_000),
            budget=BudgetConfig(
                tokens=TOKENS,
                horizons=tuple(TOKENS * k // 32 for k in range(1, 33)),
                checkpoint_every_tokens=2_000_000_000,
            ),
            parallel=ParallelConfig(precision="bf16", micro_batch_sequences=1, compile=True),
        )
        for size in PAPER_SIZES
        for arch in ARCHS
    ]
