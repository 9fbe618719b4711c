"""Eight token mixers and two hybrids: what do they recall, and how large is the state for it?

Question: the mixers of experiments/mixers.py, trained from scratch on multi-query associative
recall (arXiv 2312.04927): what share of the values does each give back, with a small state and with
one four times as large?
Command: linscale run experiments/mixers_recall.py
         linscale evaluate runs/mixers_recall --tasks recall
         python -m experiments.recall_figure runs/mixers_recall
Expected: mixers with a short convolution, which puts a key and its value side by side, learn in
these few steps; those without it, softmax attention among them, hardly do.

Two layers of width 32 (the hybrids: one of each kind), head dimensions of 4 and 16, sequences of 32
tokens with up to 8 pairs. Rate, batch and steps are the same for all.
"""

from __future__ import annotations

from experiments.mixers import HYBRIDS, MIXERS
from models.config import ModelConfig, toy_config
from scaling.config.recipes import task_recipe
from scaling.config.run import RunConfig

HEAD_DIMS = (4, 16)
PAIRS, VOCAB, LENGTH, BATCH = 8, 34, 32, 32
STEPS, RATE = 2500, 5e-3


def runs() -> list[RunConfig]:
    """Every mixer and hybrid with a small and a larger state."""
    return [
        task_recipe(
            f"{name}-k{head_dim}",
            f"k{head_dim}",
            model,
            f"task:mqar:pairs={PAIRS},vocab={VOCAB}",
            length=LENGTH,
            batch=BATCH,
            steps=STEPS,
            lr=RATE,
            toy=True,
        )
        for head_dim in HEAD_DIMS
        for name, model in _models(head_dim).items()
    ]


def _models(head_dim: int) -> dict[str, ModelConfig]:
    def plain(arch: str) -> ModelConfig:
        return toy_config(arch, 32, vocab_size=VOCAB, layers=2, head_dim=head_dim)

    models = {arch: plain(arch) for arch in MIXERS}
    return models | {f"{arch}-llama": plain(arch).replace(mixers=f"{arch}+llama")
                     for arch in HYBRIDS}  # fmt: skip
