"""What LoLCATs' reduce-on-plateau schedule does to attention transfer.

    python -m experiments.benchmarks.transfer_schedule runs/quickstart/RUN [--steps 2400]

Question: the authors divide the rate by ten when ten evaluations, a hundred steps apart, bring
nothing (their configurations: factor 0.1, patience 10, at least 1e-5). Runs here keep it constant.
How often does that schedule act in the published 2400 steps, and what is the loss then?
Method: RUN is a run of arch llama. Stage 1 twice, with the same new weights and batches, at
the published 1e-2: constant, and with torch's ReduceLROnPlateau on the validation loss of the
layers. One thread, one seed; window 4, as in experiments/linearize_loop.py.
Expected: the loss still falls when the stage ends, so that the schedule has nothing to do.

Prints a table: the schedule, how often it divided the rate, and the validation loss at the end.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from models.architectures.lolcats import LoLCATs
from models.language_model import LanguageModel
from models.linearize.surgery import linearize
from models.linearize.transfer import (
    attention_transfer_loss,
    freeze_for_transfer,
    layer_losses,
)
from scaling.data.prepare import prepare
from scaling.data.prepared import PreparedData
from scaling.record.pretrained import load_pretrained

BATCH, RATE, EVERY = 8, 1e-2, 100


def transfer(
    teacher: LanguageModel, data: PreparedData, held_out: Tensor, steps: int, plateau: bool
) -> list[str]:
    """One stage 1; returns a row of the table."""
    torch.manual_seed(0)
    student = linearize(copy.deepcopy(teacher), LoLCATs(window=4))
    optimizer = torch.optim.AdamW(freeze_for_transfer(student), lr=RATE, weight_decay=0.0)
    schedule = ReduceLROnPlateau(optimizer, factor=0.1, patience=10, min_lr=1e-5)
    order, losses = data.order(1), []
    for step in range(steps):
        rows = torch.from_numpy(data.train.gather(order.blocks(BATCH * step, BATCH)))
        optimizer.zero_grad()
        parts = list(layer_losses(student, rows[:, :-1]))
        torch.stack([loss for _, loss in parts]).mean().backward()
        optimizer.step()
        if (step + 1) % EVERY == 0:
            with torch.no_grad():
                losses.append(float(attention_transfer_loss(student, held_out).mean()))
            if plateau:
                schedule.step(losses[-1])
    best = losses.index(min(losses)) + 1
    cuts = round(-torch.log10(torch.tensor(optimizer.param_groups[0]["lr"] / RATE)).item())
    name = "reduced on plateaus" if plateau else "constant"
    return [name, str(cuts), f"{losses[-1]:.4f}", f"{min(losses):.4f}", f"{best * EVERY}"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Schedules of attention transfer.")
    parser.add_argument("run", type=Path, help="run of arch llama, or one of its checkpoints")
    parser.add_argument("--steps", type=int, default=2400, help="optimizer steps (2400)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load_pretrained(args.run)
    if loaded.run is None:
        parser.error(f"{args.run}: give a run or a checkpoint, whose text is known.")
    data = prepare(loaded.run.data)
    held_out = torch.from_numpy(data.validation[:16, :-1])
    table = Table("schedule", "divided", "loss at the end", "lowest", "at step")
    for plateau in (False, True):
        table.add_row(*transfer(loaded.model, data, held_out, args.steps, plateau))
    Console().print(table)


if __name__ == "__main__":
    main()
