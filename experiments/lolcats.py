"""LoLCATs: how few parameters and tokens make a transformer linear?

Question: with attention transfer and low-rank adaptation, which feature map and which window give
most of the teacher back?
Command: linscale run experiments/lolcats.py --toy    (after make quickstart; a few core minutes)
Expected: the published form comes within 0.03 nats of the teacher, most of which its window alone
would do untrained (within 0.043); without attention transfer the same tokens bring less.

At full size: Llama 3 8B on Alpaca's instructions, two epochs a stage, as published (arXiv
2410.10254 and the authors' configurations). Its weights and tokenizer are expected in
models/Meta-Llama-3-8B.
"""

from __future__ import annotations

from dataclasses import replace

from experiments import teachers
from models.architectures.llama import LlamaOptions
from models.architectures.lolcats import LoLCATs
from models.config import ModelConfig
from models.linearize.options import linearized_config
from scaling.config.run import DataConfig, RunConfig
from scaling.linearization.recipes import LOLCATS_TOKENS_PER_STEP, lolcats_run

LLAMA3 = ModelConfig(
    arch="llama", vocab_size=128_256, dim=4096, layers=32, heads=32, glu_dim=14_336,
    norm_eps=1e-5, tie_embeddings=False, options=LlamaOptions(kv_heads=8, rope_base=500_000.0),
)  # fmt: skip
"""meta-llama/Meta-Llama-3-8B."""
LENGTH = 1024
TOY_TOKENS = 200_000


def runs(toy: bool = False) -> list[RunConfig]:
    """The published form, and what it could have been."""
    if not toy:
        path = "models/Meta-Llama-3-8B"
        data = DataConfig(
            corpus="instructions:hf:yahma/alpaca-cleaned",
            tokenizer=f"file:{path}/tokenizer.json",
            sequence_length=LENGTH,
            batch_sequences=LOLCATS_TOKENS_PER_STEP // LENGTH,
            validation_fraction=0.004,
        )
        model = linearized_config(LLAMA3, LoLCATs())
        return [lolcats_run("lolcats-llama3-8b", path, model, data, size="8B")]
    window = teachers.WINDOW
    variants = {  # <- the intervention
        "published": LoLCATs(window=window),
        "window-1": LoLCATs(window=1),
        "window-16": LoLCATs(window=16),
        "sliding": LoLCATs(window=window, arrangement="sliding"),
        "t2r": LoLCATs(window=window, feature_map="t2r"),
        "elu": LoLCATs(window=window, feature_map="elu"),
        "taylor": LoLCATs(window=window, feature_map="taylor"),
    }
    budget = {"tokens": TOY_TOKENS, "seed": 1}
    found = [
        teachers.transferred(f"lolcats-{name}", teachers.lolcats(teachers.LARGEST, o), **budget)
        for name, o in variants.items()
    ]
    # The same tokens without stage 1: LoRA alone.
    only = replace(found[0].linearize, transfer_tokens=0)
    return [*found, replace(found[0], name="lolcats-no-transfer", linearize=only)]
