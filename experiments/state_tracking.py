"""State tracking: which mixers can follow a permutation through a sequence?

Question: every token is a permutation of 2, 3 or 5 things, and at every token the model is asked
what all so far make together (arXiv 2404.08819, 2411.12537). What must be held is small, but every
token changes all of it. Which mixers learn it, and does it last beyond the length of training?
Command: linscale run experiments/state_tracking.py --toy
         linscale evaluate runs/state_tracking-toy --tasks recall --lengths 32,64,128
         python -m experiments.state_tracking_table runs/state_tracking-toy
Expected: mixers whose transitions are diagonal and positive (softmax attention holds no state at
all) get the first tokens alone, and fall towards guessing beyond the length of training; the delta
rule with beta up to 2 learns parity and keeps it, since one step can reflect the state. S3 is two
reflections, S5 cannot be done by two layers of one step each.
"""

from __future__ import annotations

from models.config import Arch, toy_config
from scaling.config.recipes import task_recipe
from scaling.config.run import RunConfig

TASKS = {"parity": 2, "s3": 6, "s5": 120}
"""Task -> permutations, which are its answers."""
MIXERS: dict[str, tuple[Arch, bool]] = {
    "llama": ("llama", False),
    "tnl": ("tnl", False),
    "hgrn2": ("hgrn2", False),
    "cosformer2": ("cosformer2", False),
    "gla": ("gla", False),
    "mamba2": ("mamba2", False),
    "gated_deltanet": ("gated_deltanet", False),
    "gated_deltanet-reflects": ("gated_deltanet", True),
    "kda-reflects": ("kda", True),
}
"""Name -> architecture, and whether beta goes up to 2."""
SEEDS = (0, 1)


def runs(toy: bool = False) -> list[RunConfig]:
    """Every mixer on every task; two layers, sequences of 32 permutations, or 256."""
    return [
        _run(name, task, seed, toy) for seed in SEEDS for task in TASKS for name in MIXERS
    ]  # fmt: skip


def _run(name: str, task: str, seed: int, toy: bool) -> RunConfig:
    arch, reflects = MIXERS[name]
    steps, length = (1500, 32) if toy else (20_000, 256)
    batch, dim, lr = (64, 32, 5e-3) if toy else (256, 128, 2e-3)
    vocab = TASKS[task] + 8
    model = toy_config(arch, dim, vocab_size=vocab, layers=2, head_dim=16 if toy else 64)
    if reflects:
        model = model.with_options(negative_eigenvalues=True)
    return task_recipe(
        f"{task}-{name}-s{seed}", task, model, f"task:{task}:steps={length}",
        length=length, batch=batch, steps=steps, lr=lr, seed=seed, toy=toy,
    )  # fmt: skip
