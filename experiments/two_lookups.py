"""Two lookups: which stacks of mixers find the value at the end of a chain?

Question: a sequence tells two chains, a key with a middle and the middle with a value, all pairs
in random order, and asks for the value of each key (`task:compositional`). The second
lookup needs what the first has found. Who learns it in the same steps?
Command: linscale run experiments/two_lookups.py --jobs 2
         linscale evaluate runs/two_lookups --tasks recall
Expected: softmax layers between layers of the delta rule learn it, softmax alone does later; the
delta rule alone stays near guessing between the two values.

Four layers of width 64, sequences of 12 tokens, 7000 steps of 128 sequences, one seed; a few
minutes of one core a run.
"""

from __future__ import annotations

from models.config import Arch, toy_config
from scaling.config.recipes import task_recipe
from scaling.config.run import RunConfig

STACKS: dict[str, tuple[Arch, str]] = {
    "gated_deltanet": ("gated_deltanet", ""),
    "gated_deltanet-llama": ("gated_deltanet", "gated_deltanet+llama"),
    "llama": ("llama", ""),
    "hgrn2-llama": ("hgrn2", "hgrn2+llama"),
}
"""Name -> base architecture and pattern of its layers."""
CHAINS, VOCAB, LENGTH = 2, 17, 12


def runs() -> list[RunConfig]:
    """Every stack once."""
    found: list[RunConfig] = []
    for name, (arch, mixers) in STACKS.items():
        model = toy_config(arch, 64, vocab_size=VOCAB, layers=4, head_dim=16)
        found.append(
            task_recipe(
                name,
                "two lookups",
                model.replace(mixers=mixers) if mixers else model,
                f"task:compositional:chains={CHAINS},vocab={VOCAB}",
                length=LENGTH,
                batch=128,
                steps=7000,
                lr=1.5e-3,
                toy=True,
            )
        )
    return found
