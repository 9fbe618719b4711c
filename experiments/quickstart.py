"""Quickstart: scaling laws of four architectures, from nothing, on a laptop's CPU.

Question: with this machine and ten minutes, does a FLOP buy more with softmax attention or with a
linear mixer, at the smallest scale where a law can be seen at all?
Command: make quickstart    (or: linscale run experiments/quickstart.py)
Expected: 48 points, 12 an architecture, on clean lines; at this scale the linear mixers, HGRN2 first
of all, need less compute than LLaMA for the same loss.

The models have 27 thousand to 450 thousand parameters besides the embedding and read at most 1.2
million bytes of English: enough to see that the machinery works, far too little to say which
architecture is better at the sizes that people use.
"""

from __future__ import annotations

from experiments.recipes import TOY_VOCAB, toy_recipe
from models.config import ARCHS, toy_config
from scaling.config import RunConfig

DIMS = (32, 48, 64, 96)
HORIZONS = (300_000, 600_000, 1_200_000)


def runs() -> list[RunConfig]:
    """Four architectures at four sizes, each with a decayed model at three horizons."""
    return [
        toy_recipe(
            f"{arch}-d{dim}",
            f"d{dim}",
            toy_config(arch, dim, vocab_size=TOY_VOCAB),
            tokens=HORIZONS[-1],
            horizons=HORIZONS,
        )
        for dim in DIMS
        for arch in ARCHS
    ]
