"""Hybrids: how many layers of softmax attention does a recurrent stack want?

Question: at equal compute, counted by each pattern's own accounting, which share of softmax layers
gives the lowest loss, and does it move with compute? HGRN2 and Gated DeltaNet, and their hybrids
with 1/8, 1/4, 1/2 and all of the layers softmax; norms, channel mixers and stem stay the family's.
Command: linscale run experiments/hybrid_ratio.py --toy
         python -m experiments.hybrid_figure runs/hybrid_ratio-toy runs/hybrid_recall-toy
Expected: some softmax layers are better than none and than all; shares next to the best tie in
loss. What they recall differs (experiments/hybrid_recall.py).

Every model trains once: a WSD trunk passes all its budgets, with a decay branch at each.
"""

from __future__ import annotations

from models.config import PAPER_VOCAB, Arch, ModelConfig, toy_config
from scaling.config.recipes import TOY_VOCAB, paper_recipe, toy_recipe
from scaling.config.run import RunConfig
from scaling.plan.plan import isoflop_horizons

FAMILIES: tuple[Arch, ...] = ("hgrn2", "gated_deltanet")
PERIOD = 8
SHARES = (0, 1, 2, 4, 8)
"""Softmax layers of `PERIOD`."""
BUDGETS = (1e18, 3e18, 1e19, 3e19, 1e20, 3e20)
SHAPES = ((384, 8), (512, 8), (640, 16), (768, 16), (1024, 24), (1280, 24), (1536, 32), (2048, 40))
"""Width and depth, which is a multiple of `PERIOD`."""
TOY_BUDGETS = (2.5e10, 5e10, 1e11)
TOY_SHAPES = ((12, 8), (16, 8), (24, 8))
TOY_HEAD_DIM = 4
TOKENS_PER_PARAMETER = (1.5, 200.0)


def runs(toy: bool = False) -> list[RunConfig]:
    """One run for each pattern and size, with a horizon at each budget it serves."""
    shapes, budgets, length = (TOY_SHAPES, TOY_BUDGETS, 256) if toy else (SHAPES, BUDGETS, 8192)
    configs: list[RunConfig] = []
    for family in FAMILIES:
        for softmax in SHARES:
            for dim, layers in shapes:
                model = hybrid(family, softmax, dim, layers, toy)
                horizons = isoflop_horizons(model, length, budgets, TOKENS_PER_PARAMETER)
                if not horizons:
                    continue
                name, size = f"{family}-s{softmax}of{PERIOD}-d{dim}", f"d{dim}"
                if toy:
                    config = toy_recipe(name, size, model, tokens=horizons[-1], horizons=horizons)
                else:
                    config = paper_recipe(
                        name, size, model, tokens=horizons[-1], horizons=horizons, kind="wsd"
                    )
                configs.append(config)
    return configs


def hybrid(family: Arch, softmax: int, dim: int, layers: int, toy: bool) -> ModelConfig:
    """A stack with so many softmax layers of every `PERIOD`, the last of equal parts of it."""
    vocab, head_dim = (TOY_VOCAB, TOY_HEAD_DIM) if toy else (PAPER_VOCAB, 128)
    model = toy_config(family, dim, vocab_size=vocab, layers=layers, head_dim=head_dim)
    return model.replace(mixers=pattern(family, softmax))  # <- the intervention


def pattern(family: Arch, softmax: int) -> str:
    """Such as hgrn2*3+llama for 2 of 8."""
    if softmax in (0, PERIOD):
        return "llama" if softmax else family
    return f"{family}*{PERIOD // softmax - 1}+llama"
