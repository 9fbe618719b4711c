"""What a start from a transformer's weights is worth to a linear model.

    python -m experiments.benchmarks.linear_starts runs/quickstart/RUN [--steps 60]

Question: what is the loss of a TNL, HGRN2, cosFormer2 or SUPRA, before training and after some
steps, that starts afresh, from the weights of a transformer (`models.linearize`), or from these
with output projections fitted to the transformer's attention (`fit_outputs`)?
Method: RUN is a run of arch llama. All starts of an architecture see the same text in the same
order; AdamW at a constant 2e-3, all weights; outputs are fitted on 16 other sequences. One seed.
Expected: every start from weights is ahead of a fresh one, the fitted one most.

Prints a table, validation loss in nats a token.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from models.architectures.supra import Supra
from models.language_model import LanguageModel, build
from models.linearize.initialise import STARTED, fit_outputs, from_attention
from models.linearize.surgery import linearize
from scaling.data.prepare import prepare
from scaling.data.prepared import PreparedData
from scaling.record.pretrained import load_pretrained

BATCH, FITTED_ON, LEARNING_RATE = 8, 16, 2e-3


def starts(teacher: LanguageModel, arch: str, text: Tensor) -> dict[str, LanguageModel]:
    """A student of each start."""

    def adapted() -> LanguageModel:
        torch.manual_seed(0)
        if arch == "supra":
            return linearize(copy.deepcopy(teacher), Supra())
        return from_attention(teacher, arch)

    plain, fitted = adapted(), adapted()
    fit_outputs(fitted, teacher, text)
    torch.manual_seed(0)
    return {"fresh": build(plain.config), "weights": plain, "weights, fitted": fitted}


def trained(
    model: LanguageModel, batch: Callable[[int], Tensor], steps: int, loss: Callable[..., float]
) -> str:
    """Loss after the steps, and before them."""
    before = loss(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    for step in range(steps):
        rows = batch(step)
        optimizer.zero_grad()
        model.loss(rows[:, :-1], rows[:, 1:]).mean().backward()
        optimizer.step()
    return f"{loss(model):.2f} ({before:.2f})"


def rows(data: PreparedData, first: int, count: int) -> Tensor:
    """Training sequences, (count, T + 1)."""
    return torch.from_numpy(data.train.gather(list(range(first, first + count))))


def main() -> None:
    parser = argparse.ArgumentParser(description="Starts of linear models from a transformer.")
    parser.add_argument("run", type=Path, help="run of arch llama, or one of its checkpoints")
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps (60)")
    args = parser.parse_args()
    loaded = load_pretrained(args.run)
    if loaded.run is None:
        parser.error(f"{args.run}: give a run or a checkpoint, whose text is known.")
    teacher, data = loaded.model, prepare(loaded.run.data)
    held_out = torch.from_numpy(data.validation[:16])

    @torch.no_grad()
    def loss(model: LanguageModel) -> float:
        return float(model.loss(held_out[:, :-1], held_out[:, 1:]).mean())

    def batch(step: int) -> Tensor:
        return rows(data, FITTED_ON + BATCH * step, BATCH)

    table = Table("student", "fresh", "weights", "weights, fitted")
    table.title = f"Loss after {args.steps} steps (before them); teacher {loss(teacher):.2f}"
    for arch in ("supra", *STARTED):
        students = starts(teacher, arch, rows(data, 0, FITTED_ON)[:, :-1])
        table.add_row(
            arch, *(trained(student, batch, args.steps, loss) for student in students.values())
        )
    Console().print(table)


if __name__ == "__main__":
    main()
