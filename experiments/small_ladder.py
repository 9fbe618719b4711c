"""The small ladder: the four architectures over a 65-fold range of parameters, with seeds.

Question: on one CPU, with real text, how do the loss laws of softmax attention and of the three
linear mixers compare, and how large is the noise of a seed beside the differences?
Command: linscale run experiments/small_ladder.py    (resumable)
Expected: 192 points; at the smallest rungs the standard deviation over seeds is 0.3 to 1 % of the
loss, less than most distances between the architectures, and about that between LLaMA and HGRN2.

Six sizes of 7 to 455 thousand parameters besides the embedding, four decayed horizons of 0.4 to 3.2
million bytes of English (less than one pass over the corpus), three seeds at the three smallest
sizes. Learning rate and batch are the same at every size, as in the paper.
"""

from __future__ import annotations

from models.config import ARCHS, toy_config
from scaling.config.recipes import TOY_VOCAB, toy_recipe
from scaling.config.run import RunConfig

DIMS = (16, 24, 32, 48, 64, 96)
SEEDED_DIMS = DIMS[:3]
SEEDS = (0, 1, 2)
HORIZONS = (400_000, 800_000, 1_600_000, 3_200_000)


def runs() -> list[RunConfig]:
    """Four architectures at six sizes, a decayed model at four horizons, seeds where small."""
    return [
        toy_recipe(
            f"{arch}-d{dim}-s{seed}",
            f"d{dim}",
            toy_config(arch, dim, vocab_size=TOY_VOCAB),
            tokens=HORIZONS[-1],
            horizons=HORIZONS,
            seed=seed,
        )
        for seed in SEEDS
        for dim in DIMS
        for arch in ARCHS
        if seed == 0 or dim in SEEDED_DIMS
    ]
