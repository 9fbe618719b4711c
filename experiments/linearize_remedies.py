"""Does a linear part that is made to work do more beyond the window?

Question: where LoLCATs' window does nearly everything, do window dropout, cross-entropy or an error
of the linear part alone in attention transfer, or a sink, recover more beyond that window?
Command: linscale run experiments/linearize_remedies.py    (after make quickstart; a few core
minutes)
Expected: none helps here. Cross-entropy and the sink tie with the plain recipe; window dropout and
the error of the linear part alone make the student worse, and the plain student is worse than its
window alone (docs/linearize.md).

The quickstart's LLaMA of width 48 with a window of four bytes, three seeds, 100 thousand tokens,
half of them for attention transfer, as in `experiments/linearize_loop.py`; one option is changed at
a time.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from experiments import teachers
from models.architectures.lolcats import LoLCATs
from scaling.config.run import RunConfig

DIM = 48
SEEDS = (1, 2, 3)
TOKENS = 100_000
REMEDIES: dict[str, dict[str, Any]] = {  # <- the intervention
    "plain": {},
    "dropout-30": {"window_dropout": 0.3},
    "dropout-90": {"window_dropout": 0.9},
    "cross-entropy": {"cross_entropy": 1.0},
    "far-error": {"far_error": 1000.0},
    "dropout-far": {"window_dropout": 0.3, "far_error": 1000.0},
}
"""Name -> fields of `linearize`."""


def runs() -> list[RunConfig]:
    """Every remedy, and a sink, with every seed."""
    window = teachers.WINDOW
    found: list[RunConfig] = []
    for seed in SEEDS:
        for name, fields in REMEDIES.items():
            model = teachers.lolcats(DIM, LoLCATs(window=window))
            run = teachers.transferred(f"{name}-s{seed}", model, tokens=TOKENS, seed=seed)
            found.append(replace(run, linearize=replace(run.linearize, **fields)))
        sink = teachers.lolcats(DIM, LoLCATs(window=window, sink_tokens=1))
        found.append(teachers.transferred(f"sink-s{seed}", sink, tokens=TOKENS, seed=seed))
    return found
