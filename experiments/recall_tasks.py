"""Selective copying and induction heads: do the models learn them, and does state matter?

Question: trained from scratch on selective copying (arXiv 2312.00752, section 4.1.1) and on
induction heads (arXiv 2212.14052), what share of the answers does a model give, and does a linear
model give more of them with a larger state? The head dimension sets the state and hardly changes
the parameters, as in experiments/recall.py.
Command: linscale run experiments/recall_tasks.py --toy
         linscale evaluate runs/recall_tasks-toy --tasks recall
         python -m experiments.recall_figure runs/recall_tasks-toy
Expected: all four learn induction, which is one thing to remember; LLaMA copies everything, and the
linear models copy more with the larger state. The toy shows the first two; its four items fit into
every state (`docs/recall.md`).
"""

from __future__ import annotations

from models.config import ARCHS, Arch, toy_config
from scaling.config.recipes import task_recipe
from scaling.config.run import RunConfig

SEEDS = (0, 1)


def runs(toy: bool = False) -> list[RunConfig]:
    """Induction with every architecture; copying also with the small state of the linear ones."""
    small, large = (4, 16) if toy else (16, 128)
    induction = [_run(arch, "induction", large, 0, toy) for arch in ARCHS]
    copying = [
        _run(arch, "copying", head_dim, seed, toy)
        for seed in SEEDS
        for arch in ARCHS
        for head_dim in ((large,) if arch == "llama" else (small, large))  # <- the intervention
    ]
    return induction + copying


def _run(arch: Arch, task: str, head_dim: int, seed: int, toy: bool) -> RunConfig:
    """Two layers, on sequences of 12 or 16 tokens, or of 256."""
    items, vocab = (4, 10) if toy else (16, 18)
    if task == "copying":
        corpus, length = f"task:copying:items={items},vocab={vocab}", 12 if toy else 256
    else:
        corpus, length, vocab = "task:induction:vocab=16", 16 if toy else 256, 16
    batch, dim, lr = (64, 32, 1e-2) if toy else (256, 128, 2e-3)
    steps = (1500 if task == "copying" else 1000) * (1 if toy else 10)
    return task_recipe(
        f"{task}-{arch}-k{head_dim}-s{seed}",
        f"k{head_dim}",
        toy_config(arch, dim, vocab_size=vocab, layers=2, head_dim=head_dim),
        corpus,
        length=length, batch=batch, steps=steps, lr=lr, seed=seed, toy=toy,
    )  # fmt: skip
