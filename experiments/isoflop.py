"""IsoFLOP profiles: at equal compute, which size is best, and does it differ by architecture?

Question: where is the bottom of loss against parameters at each compute budget, for softmax
attention and for the three linear mixers, when a FLOP is counted by each one's own accounting?
Command: linscale run experiments/isoflop.py --toy
Expected: a valley at every budget whose bottom moves to larger models as compute grows.

Every model trains once: a WSD trunk passes all its budgets, and a decay branch at each gives the
model that a run of exactly that compute would have given.
"""

from __future__ import annotations

from models.config import ARCHS, PAPER_VOCAB, Arch, ModelConfig, toy_config
from scaling.config.recipes import TOY_VOCAB, paper_recipe, toy_recipe
from scaling.config.run import RunConfig
from scaling.plan.plan import isoflop_horizons

BUDGETS = (1e18, 3e18, 1e19, 3e19, 1e20, 3e20)
DIMS = (384, 512, 640, 768, 1024, 1280, 1536, 2048)
TOY_BUDGETS = (2e11, 5e11, 1.2e12)
TOY_DIMS = (32, 40, 48, 56, 64)


def runs(toy: bool = False) -> list[RunConfig]:
    """One run for each architecture and size, with a horizon at each budget it serves."""
    dims, budgets, length = (TOY_DIMS, TOY_BUDGETS, 256) if toy else (DIMS, BUDGETS, 8192)
    configs: list[RunConfig] = []
    for arch in ARCHS:
        for dim in dims:
            model = _model(arch, dim, toy)
            horizons = isoflop_horizons(model, length, budgets)  # <- the intervention
            if not horizons:
                continue
            name, size = f"{arch}-d{dim}", f"d{dim}"
            if toy:
                config = toy_recipe(name, size, model, tokens=horizons[-1], horizons=horizons)
            else:
                config = paper_recipe(
                    name, size, model, tokens=horizons[-1], horizons=horizons, kind="wsd"
                )
            configs.append(config)
    return configs


def _model(arch: Arch, dim: int, toy: bool) -> ModelConfig:
    if toy:
        return toy_config(arch, dim, vocab_size=TOY_VOCAB)
    # The aspect ratio of the paper's 1B rung, d / l = 48.
    return toy_config(arch, dim, vocab_size=PAPER_VOCAB, layers=round(dim / 48), head_dim=128)
