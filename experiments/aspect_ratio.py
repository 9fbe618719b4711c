"""Aspect ratio: at one size, does it matter how the parameters are shared by width and depth?

Question: how do the four 1B shapes of arXiv 2406.16690 (d x l = 1536 x 32 to 3072 x 8) differ in
loss for each architecture (its section on aspect ratio, Table 5)?
Command: linscale run experiments/aspect_ratio.py --toy
Expected in the paper: the linear models prefer the deeper, narrower shapes.
"""

from __future__ import annotations

from models.config import ARCHS, ASPECT_SHAPES, paper_config, toy_config
from scaling.config.recipes import TOY_VOCAB, paper_recipe, toy_recipe
from scaling.config.run import RunConfig

TOY_SHAPES = ((24, 16), (32, 9), (48, 4), (96, 1))
"""d x l, all with 12 l d^2 = 110,592."""


def runs(toy: bool = False) -> list[RunConfig]:
    """Four architectures in four shapes of one size."""
    if toy:
        return [
            toy_recipe(
                f"{arch}-{dim}x{layers}",
                f"{dim}x{layers}",  # <- the intervention
                toy_config(arch, dim, vocab_size=TOY_VOCAB, layers=layers),
                tokens=1_000_000,
            )
            for arch in ARCHS
            for dim, layers in TOY_SHAPES
        ]
    return [
        paper_recipe(f"{arch}-{shape}", shape, paper_config(arch, shape))  # <- the intervention
        for arch in ARCHS
        for shape in ASPECT_SHAPES
    ]
