"""Quickstart: scaling laws of four architectures, from nothing, on a laptop's CPU.

Question: with this machine and ten minutes, does a FLOP buy more with softmax attention or with a
linear mixer, at the smallest scale where a law can be seen at all?
Command: make quickstart    (or: linscale run experiments/quickstart.py)
Expected: 60 points, 15 an architecture, on clean lines; at this scale HGRN2 needs the least compute
for the same loss.

The models have 7 to 158 thousand parameters besides the embedding and read at most 1.6 million
bytes of English: enough to see that the machinery works, far too little to say which architecture
is better at the sizes that people use. Every size is trained past the point where it would be the
best choice, so that the laws are read off inside the data.
"""

from __future__ import annotations

from models.config import ARCHS, toy_config
from scaling.config.recipes import TOY_VOCAB, toy_recipe
from scaling.config.run import RunConfig

DIMS = (16, 24, 32, 48, 64)
HORIZONS = (400_000, 800_000, 1_600_000)


def runs() -> list[RunConfig]:
    """Four architectures at five sizes, each with a decayed model at three horizons."""
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
