"""Recall: how much can a state of a given size hold?

Question: trained from scratch on multi-query associative recall (arXiv 2312.04927), what share of
the pairs of a sequence does a model give back, against the size of its recurrent state? The head
dimension sets the state of the linear models, d K numbers a layer (cosFormer2: 2 d K), and hardly
changes their parameters; the key-value cache of LLaMA grows with the text.
Command: linscale run experiments/recall.py --toy
         linscale evaluate runs/recall-toy --tasks recall
         python -m experiments.recall_figure runs/recall-toy
Expected: LLaMA recalls everything; the linear models lose accuracy as the pairs grow, the smaller
their state the earlier. The toy has cosFormer2, which shows it in 1500 steps, and LLaMA; in so few
TNL and HGRN2 did not learn to bind values to keys, nor did LLaMA in 3000 (`docs/recall.md`).

The other two tasks are those of experiments/recall_tasks.py.
"""

from __future__ import annotations

from models.config import ARCHS, Arch, toy_config
from scaling.config.recipes import task_recipe
from scaling.config.run import RunConfig

HEAD_DIMS = (16, 32, 64, 128)
TOY_HEAD_DIMS = (2, 4, 8)
TOY_ARCHS: tuple[Arch, ...] = ("llama", "cosformer2")
TOY_STEPS = ((1500, 1e-2), (3000, 3e-3))
"""Steps and learning rate of the linear models, and of LLaMA."""
SEEDS = (0, 1, 2)


def runs(toy: bool = False) -> list[RunConfig]:
    """The linear architectures at several head dimensions, and LLaMA at the largest."""
    sizes, archs = (TOY_HEAD_DIMS, TOY_ARCHS) if toy else (HEAD_DIMS, ARCHS)
    return [
        _run(arch, head_dim, seed, toy)
        for seed in SEEDS
        for arch in archs
        for head_dim in (sizes[-1:] if arch == "llama" else sizes)  # <- the intervention
    ]


def _run(arch: Arch, head_dim: int, seed: int, toy: bool) -> RunConfig:
    """Two layers, as many as looking up by content takes; steps of 32 and of 256 sequences."""
    pairs, vocab, length, batch = (8, 34, 32, 32) if toy else (64, 8192, 512, 256)
    dim, steps, lr = (32, *TOY_STEPS[arch == "llama"]) if toy else (128, 20_000, 2e-3)
    return task_recipe(
        f"{arch}-k{head_dim}-s{seed}",
        f"k{head_dim}",
        toy_config(arch, dim, vocab_size=vocab, layers=2, head_dim=head_dim),
        f"task:mqar:pairs={pairs},vocab={vocab}",
        length=length, batch=batch, steps=steps, lr=lr, seed=seed, toy=toy,
    )  # fmt: skip
