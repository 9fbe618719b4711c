"""SUPRA: what does a pretrained transformer keep when its attention becomes a recurrence?

Question: uptrained on a twentieth of the pretraining tokens, how much of the gap that the surgery
opens is closed, and what do SUPRA's parts contribute: the norm in softmax's place, the decay, the
learned feature map?
Command: linscale run experiments/supra.py --toy    (after make quickstart; a few core minutes)
Expected: the published form is well ahead of the same model trained from scratch on as many tokens,
1.45 against 1.71 nats a byte; without a norm it is hardly worse, with the identity for a feature
map better (1.42), and with slower decays than ALiBi's, or none, much worse.

At full size: Mistral-7B on 100B tokens of RefinedWeb, as released (arXiv 2405.06640 and the card of
the authors' Mistral-SUPRA). Its weights and tokenizer are expected in models/Mistral-7B-v0.1.
"""

from __future__ import annotations

from experiments import teachers
from models.architectures.llama import LlamaOptions
from models.architectures.supra import Supra
from models.config import ModelConfig
from models.linearize.options import linearized_config
from scaling.config.run import DataConfig, RunConfig
from scaling.linearization.recipes import SUPRA_TOKENS_PER_STEP, supra_run

MISTRAL = ModelConfig(
    arch="llama", vocab_size=32_000, dim=4096, layers=32, heads=32, glu_dim=14_336,
    norm_eps=1e-5, tie_embeddings=False, options=LlamaOptions(kv_heads=8, window=4096),
)  # fmt: skip
"""mistralai/Mistral-7B-v0.1."""
LENGTH = 2048
TOY_TOKENS = 400_000
TOY_HORIZONS = (100_000, 200_000)


def runs(toy: bool = False) -> list[RunConfig]:
    """The published form and its ablations."""
    if not toy:
        path = "models/Mistral-7B-v0.1"
        data = DataConfig(
            corpus="hf:tiiuae/falcon-refinedweb",
            text_field="content",
            tokenizer=f"file:{path}/tokenizer.json",
            sequence_length=LENGTH,
            batch_sequences=SUPRA_TOKENS_PER_STEP // LENGTH,
            validation_fraction=0.0005,
            validation_blocks=512,
        )
        model = linearized_config(MISTRAL, Supra())
        return [supra_run("supra-mistral-7b", path, model, data, size="7B")]
    dim = teachers.LARGEST
    variants = {  # <- the intervention
        "published": teachers.supra(dim),
        "retnet": teachers.supra(dim, Supra(decay_slopes="retnet")),
        "no-decay": teachers.supra(dim, Supra(decay_slopes="none")),
        "no-norm": teachers.supra(dim, Supra(norm=False)),
        "identity": teachers.supra(dim, Supra(feature_map="identity")),
    }
    budget = {"tokens": TOY_TOKENS, "horizons": TOY_HORIZONS, "seed": 1}
    return [
        *(teachers.uptrained(f"supra-{n}", model, **budget) for n, model in variants.items()),
        teachers.scratch("supra-scratch", variants["published"], **budget),
    ]
