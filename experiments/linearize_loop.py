"""The closed loop: is it cheaper to linearize a transformer, or to train a linear model?

Question: with the quickstart's transformers as teachers, how much of the gap that surgery opens do
SUPRA and LoLCATs close with how many tokens, at which model size, and where do linearized models
stand on the loss-versus-compute frontier of models trained from scratch, with the teacher's compute
counted and not?
Command: make linearize    (after make quickstart; about a quarter of an hour on two idle cores)
Expected: on a quarter of the teacher's tokens LoLCATs recovers 53 % beyond its window alone, which
with the same low-rank training recovers as much, while an untrained window of equal state recovers
94 %. SUPRA, which has no window, closes 94 % of the gap that surgery opens, and from scratch 82 %.
Not counting the teacher, LoLCATs reaches its loss with several times less compute than the
frontier's models, and SUPRA with somewhat more; counting it, both cost two to seven times as much.

Each method has several budgets and seeds; three controls have as many tokens: the same models from
random weights, and the teacher itself, trained on. Teacher, window and a window of equal state also
have LoLCATs' low-rank stage, at two budgets of the largest size. SUPRA's budgets are decayed branches of one run;
LoLCATs' are runs of their own, half of each for attention transfer. The teachers saw the blocks in
the order of seed 0; seeds here are others.
"""

from __future__ import annotations

from experiments import teachers
from scaling.config.run import RunConfig
from scaling.linearization.controls import controls

DIMS = (24, 32, 48, 64)
SEEDS = (1, 2, 3)
BUDGETS = (25_000, 50_000, 100_000, 200_000, 400_000)
WITH_CONTROLS = (100_000, 400_000)
"""Budgets of LoLCATs whose low-rank stage teacher and windows have as well."""
LONG = (800_000, 1_600_000)
"""Further horizons of the controls from scratch: the frontier at the teacher's compute."""


def runs() -> list[RunConfig]:
    """Linearizations and controls; all seeds at the largest size, two or one elsewhere."""
    found: list[RunConfig] = []
    for dim in DIMS:
        largest = dim == teachers.LARGEST
        supra, lolcats, llama = (
            teachers.supra(dim), teachers.lolcats(dim), teachers.TEACHERS[dim].model,
        )  # fmt: skip
        for seed in SEEDS if largest else SEEDS[:2]:
            end = f"d{dim}-s{seed}"
            short = {"tokens": BUDGETS[-1], "horizons": BUDGETS[:-1], "seed": seed}
            found.append(teachers.uptrained(f"supra-{end}", supra, **short))
            students = [
                teachers.transferred(f"lolcats-{end}-{n // 1000}k", lolcats, tokens=n, seed=seed)
                for n in BUDGETS
            ]
            found += students
            if largest:
                for student in (s for s in students if s.budget.tokens in WITH_CONTROLS):
                    found += controls(student).values()
            if largest or seed == SEEDS[0]:
                found.append(teachers.uptrained(f"continued-{end}", llama, **short))
            if largest:
                every = short if seed != SEEDS[0] else {
                    "tokens": LONG[-1], "horizons": (*BUDGETS, *LONG[:-1]), "seed": seed,
                }  # fmt: skip
                found.append(teachers.scratch(f"supra-scratch-{end}", supra, **every))
                found.append(teachers.scratch(f"lolcats-scratch-{end}", lolcats, **every))
    return found
