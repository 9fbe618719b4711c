"""The ladder of *Scaling Laws for Linear Complexity Language Models* (arXiv 2406.16690).

Question: how do loss, optimal size and optimal tokens scale with compute for TNL, HGRN2 and
cosFormer2 against LLaMA?
Command: linscale plan experiments/paper_ladder.py --device h100
Expected: L(C) = 3.71 C^-0.080 for LLaMA and 3.54 C^-0.077, 3.48 C^-0.075, 3.59 C^-0.076 for TNL,
HGRN2, cosFormer2 (Table 3, C in PFLOP/s-days); the corpus of the paper is not public, so the
constants will differ with yours.
"""

from __future__ import annotations

from models.config import ARCHS, PAPER_SIZES, paper_config
from scaling.config.recipes import paper_recipe
from scaling.config.run import RunConfig


def runs() -> list[RunConfig]:
    """Four architectures at six sizes, smallest first."""
    return [
        paper_recipe(f"{arch}-{size}", size, paper_config(arch, size))
        for size in PAPER_SIZES
        for arch in ARCHS
    ]
