"""Decay: none, fixed, learnt or decided by the data?

Question: with everything else of TNL held, what does the decay buy? Slopes as in the authors' code
(`alibi`), as in the paper's equation (`linear`), learnt from the `alibi` start, and none at all;
HGRN2 at the same width shows decay that depends on the data.
Command: linscale run experiments/decay_ablation.py --toy
Expected: none is worst. The authors report that learnt slopes diverge at scale.
"""

from __future__ import annotations

from models.config import Arch, ModelConfig, paper_config, toy_config
from scaling.config.recipes import TOY_VOCAB, paper_recipe, toy_recipe
from scaling.config.run import RunConfig


def runs(toy: bool = False) -> list[RunConfig]:
    """Five kinds of decay at one size."""
    tnl, hgrn2 = _model("tnl", toy), _model("hgrn2", toy)
    variants = {  # <- the intervention
        "none": tnl.with_options(decay_slopes="none"),
        "alibi": tnl,
        "linear": tnl.with_options(decay_slopes="linear"),
        "learnt": tnl.with_options(learn_decay=True),
        "data": hgrn2,
    }
    if toy:
        return [
            toy_recipe(f"decay-{name}", name, model, tokens=1_000_000)
            for name, model in variants.items()
        ]
    return [paper_recipe(f"decay-{name}-410M", name, model) for name, model in variants.items()]


def _model(arch: Arch, toy: bool) -> ModelConfig:
    return toy_config(arch, 64, vocab_size=TOY_VOCAB) if toy else paper_config(arch, "410M")
