"""Hybrids: what do the shares of softmax layers recall?

Question: patterns that tie in loss may differ in what they find again. Trained from scratch on
multi-query associative recall, selective copying and induction, what share of the answers does each
pattern of experiments/hybrid_ratio.py give?
Command: linscale run experiments/hybrid_recall.py --toy
         linscale evaluate runs/hybrid_recall-toy --tasks recall
         python -m experiments.hybrid_figure runs/hybrid_ratio-toy runs/hybrid_recall-toy
Expected: recall rises with the first softmax layer, far more than loss falls.

All patterns of a task have the same width, depth, sequences and steps.
"""

from __future__ import annotations

from experiments.hybrid_ratio import FAMILIES, PERIOD, SHARES, pattern
from models.config import Arch, toy_config
from scaling.config.recipes import task_recipe
from scaling.config.run import RunConfig

TASKS = {"mqar": "pairs=64,vocab=8192", "copying": "items=16,vocab=18", "induction": "vocab=16"}
TOY_TASKS = {"mqar": "pairs=8,vocab=34", "copying": "items=4,vocab=10", "induction": "vocab=16"}
TOY_LENGTHS = {"mqar": 32, "copying": 12, "induction": 16}
TOY_STEPS = {"mqar": 1200, "copying": 400, "induction": 400}


def runs(toy: bool = False) -> list[RunConfig]:
    """Each task with each pattern."""
    return [
        _run(task, family, softmax, toy)
        for task in (TOY_TASKS if toy else TASKS)
        for family in FAMILIES
        for softmax in SHARES  # <- the intervention
    ]


def _run(task: str, family: Arch, softmax: int, toy: bool) -> RunConfig:
    """Eight layers, on short sequences of a few symbols or on 512 tokens."""
    settings = (TOY_TASKS if toy else TASKS)[task]
    vocab = int(settings.rpartition("vocab=")[2])
    length, steps = (TOY_LENGTHS[task], TOY_STEPS[task]) if toy else (512, 20_000)
    batch, dim, lr = (32, 32, 6e-3) if toy else (256, 128, 2e-3)
    model = toy_config(family, dim, vocab_size=vocab, layers=PERIOD)
    return task_recipe(
        f"{task}-{family}-s{softmax}of{PERIOD}",
        f"s{softmax}of{PERIOD}",
        model.replace(mixers=pattern(family, softmax)),
        f"task:{task}:{settings}",
        length=length, batch=batch, steps=steps, lr=lr, toy=toy,
    )  # fmt: skip
