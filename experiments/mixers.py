"""Eight token mixers and two hybrids on one small ladder.

Question: which mixer needs the least compute for a loss, counted by its own accounting, and how far
apart are softmax attention, fixed and data-dependent decays, and the delta rule?
Command: linscale run experiments/mixers.py    (resumable)
         linscale report runs/mixers
Expected: data-dependent decays and the delta rule below fixed decays at every budget; the hybrids
near the better of their two kinds.

Five sizes of four layers, three decayed horizons each; learning rate, batch and text are the same
for all. Mamba-2 and Gated DeltaNet have 6 d^2 weights a mixer where the others have 4 to 5, as
published, so that sizes are to be compared by compute and not by width.
"""

from __future__ import annotations

from models.config import ModelConfig, toy_config
from scaling.config.recipes import TOY_VOCAB, toy_recipe
from scaling.config.run import RunConfig

MIXERS = ("llama", "tnl", "hgrn2", "cosformer2", "gla", "mamba2", "gated_deltanet", "kda")
HYBRIDS = {"hgrn2": "hgrn2*3+llama", "gated_deltanet": "gated_deltanet*3+llama"}
"""Architecture of norms and channel mixers -> pattern."""
DIMS = (16, 24, 32, 48, 64)
LAYERS = 4
"""So that one layer in four of a hybrid is softmax."""
HORIZONS = (200_000, 400_000, 800_000)


def runs() -> list[RunConfig]:
    """Each mixer and hybrid at each size, a decayed model at each horizon."""
    return [
        toy_recipe(f"{name}-d{dim}", f"d{dim}", model, tokens=HORIZONS[-1], horizons=HORIZONS)
        for dim in DIMS
        for name, model in _models(dim).items()
    ]


def _models(dim: int) -> dict[str, ModelConfig]:
    def plain(arch: str) -> ModelConfig:
        return toy_config(arch, dim, vocab_size=TOY_VOCAB, layers=LAYERS)

    models = {arch: plain(arch) for arch in MIXERS}
    return models | {  # <- the intervention
        f"{arch}-llama": plain(arch).replace(mixers=pattern) for arch, pattern in HYBRIDS.items()
    }
