"""Training context: what does a longer one buy, and what does it cost?

Question: how does the loss of a 1B model depend on the training context from 2K to 16K tokens at a
constant batch in tokens (arXiv 2406.16690, Table 6)?
Command: linscale run experiments/context_length.py --toy
Expected in the paper: 2K to 8K are alike in perplexity, 16K is slightly worse.
"""

from __future__ import annotations

from models.config import ARCHS, paper_config, toy_config
from scaling.config.recipes import TOY_VOCAB, paper_recipe, toy_recipe
from scaling.config.run import RunConfig

LENGTHS = (2048, 4096, 8192, 16384)
TOY_LENGTHS = (64, 128, 256, 512)


def runs(toy: bool = False) -> list[RunConfig]:
    """Four architectures at four context lengths, the batch in tokens held."""
    if toy:
        return [
            toy_recipe(
                f"{arch}-n{length}",
                f"n{length}",
                toy_config(arch, 48, vocab_size=TOY_VOCAB),
                tokens=600_000,
                sequence_length=length,  # <- the intervention
            )
            for arch in ARCHS
            for length in TOY_LENGTHS
        ]
    return [
        paper_recipe(
            f"{arch}-1B-{length // 1024}K",
            "1B",
            paper_config(arch, "1B"),
            sequence_length=length,  # <- the intervention
        )
        for arch in ARCHS
        for length in LENGTHS
    ]
