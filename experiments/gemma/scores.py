"""Losses of the rows on the same blocks, kept block by block, and what they say beside the teacher.

    ROW.jsonl   a line a block: its number, mean loss of each of `PARTS` parts by position, seconds

A block is scored once; with more blocks asked for, the others are added. Standard errors are of the
paired difference to the teacher over blocks, each of which is another document.
"""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from linscale.errors import LinscaleError
from models.language_model import LanguageModel
from models.linearize.parts import Reads, reading

PARTS = 16
"""Parts of a block by position."""


@torch.no_grad()
def losses(model: LanguageModel, block: Tensor) -> Tensor:
    """Loss of every predicted token of a block (length + 1,) in nats, (length,)."""
    with torch.autocast("cpu", torch.bfloat16):
        return model.loss(block[None, :-1], block[None, 1:])[0]


Losses = dict[int, list[float]]
"""Block -> mean losses by position."""


def read(path: Path) -> Losses:
    """Of a row's file; {} where there is none."""
    return parse(path.read_text(encoding="utf-8")) if path.is_file() else {}


def parse(text: str) -> Losses:
    """Of its text; a line that a stop cut off is left out."""
    lines = map(json.loads, text.split("\n")[:-1])
    return {line["block"]: line["losses"] for line in lines}


def score(
    path: Path, model: LanguageModel, reads: Reads, number: int, block: Tensor
) -> dict[str, Any]:
    """Score a block and append its line, which is returned."""
    start, cpu = time.perf_counter(), time.process_time()
    with reading(model, reads) if reads != "both" else nullcontext():
        found = losses(model, block)
    line = {
        "block": number,
        "losses": [round(part.double().mean().item(), 6) for part in found.chunk(PARTS)],
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.read_text(encoding="utf-8") if path.is_file() else ""
    kept = whole[: whole.rfind("\n") + 1]  # without a line that a stop cut off
    path.write_text(kept + json.dumps(line) + "\n", encoding="utf-8")
    return line


@dataclass(frozen=True)
class Difference:
    """Paired difference of two rows in nats a token."""

    mean: float
    stderr: float | None
    """None of a single block."""
    half_width: float | None
    """Of the 90 % t interval."""
    by_position: list[float]
    blocks: int


def difference(mine: Losses, other: Losses) -> Difference:
    """Of the blocks that both have.

    Raises:
        LinscaleError: there are none.
    """
    both = sorted(mine.keys() & other.keys())
    if not both:
        raise LinscaleError("the two rows have no block in common; score more of one.")
    gap = torch.tensor([mine[b] for b in both], dtype=torch.float64) - torch.tensor(
        [other[b] for b in both], dtype=torch.float64
    )
    means, count = gap.mean(1), len(both)
    error = float(means.std() / count**0.5) if count > 1 else None
    half = None if error is None else error * float(stats.t.ppf(0.95, count - 1))
    return Difference(float(means.mean()), error, half, gap.mean(0).tolist(), count)
