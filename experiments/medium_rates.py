"""Learning rate and batch for the medium ladder: one small search, the same for each architecture.

Question: at which learning rate and batch does each architecture learn best, and how does that
change with width, without muP?
Command, in a folder that holds the text as data/prose:

    linscale run experiments/medium_rates.py       (48 runs, about eight core minutes)
    python -m experiments.medium_rates runs/medium_rates

Expected: at the larger width the best rate is one to two octaves lower.

For each architecture: four rates at two batches on 0.4 million bytes at width 32, and four rates on
0.3 million bytes at width 96, an octave apart. The second command prints the rates at the bottom
of the parabolas (`experiments.lr_transfer.best_rate`), and the power of the width between them.

Why without muP: with it the best rate stays put, but TNL and HGRN2 lose more at every width
(`experiments.lr_transfer`); a rate by width serves all four.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

from analysis.io.sweep_files import unpacked
from experiments.lr_transfer import best_rate
from experiments.medium_ladder import rung
from models.config import ARCHS
from scaling.config.run import RunConfig

NARROW, WIDE = 32, 96
NARROW_RATES = tuple(2.0**k for k in range(-8, -4))
WIDE_RATES = tuple(2.0**k for k in range(-10, -6))
NARROW_TOKENS, WIDE_TOKENS = 409_600, 307_200
BATCHES = (2048, 4096)


def runs() -> list[RunConfig]:
    """Rates and batches at the narrow width, rates at the wide one."""
    grid = [(NARROW, rate, batch, NARROW_TOKENS) for batch in BATCHES for rate in NARROW_RATES] + [
        (WIDE, rate, BATCHES[0], WIDE_TOKENS) for rate in WIDE_RATES
    ]
    return [
        rung(
            f"{arch}-d{dim}-b{batch}-lr{math.log2(rate):.0f}",
            arch,
            dim,
            tokens=tokens,
            horizons=(),
            rate=rate,
            batch=batch,
        ).override(["data.validation_blocks=128"])
        for dim, rate, batch, tokens in grid
        for arch in ARCHS
    ]


Curve = list[tuple[float, float]]


def curves(sweep: Path) -> dict[tuple[str, int, int], Curve]:
    """(architecture, width, batch) -> (log2 of the rate, validation loss) of finished runs."""
    found: dict[tuple[str, int, int], Curve] = {}
    for path in sorted(sweep.glob("*/milestones.jsonl")):
        values = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
        loss = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])["val_loss"]
        data, model = values["data"], values["model"]
        batch = data["sequence_length"] * data["batch_sequences"]
        point = math.log2(values["optim"]["lr"]), loss
        found.setdefault((model["arch"], model["dim"], batch), []).append(point)
    return found


def main() -> None:
    """Print the curves, their bottoms and the powers of width."""
    parser = argparse.ArgumentParser(description="Best rates of a finished search.")
    parser.add_argument("sweep", type=Path, help="its directory, or the kept zip file")
    sweep = parser.parse_args().sweep
    with unpacked(sweep) as folder:
        found = curves(folder)
    if not found:
        parser.error(f"{sweep}: no finished run there")
    for (arch, dim, batch), points in sorted(found.items()):
        losses = "  ".join(f"2^{rate:.0f} {loss:.4f}" for rate, loss in sorted(points))
        bottom = best_rate(points)
        print(f"{arch:11} width {dim:3} batch {batch}: {losses}  best 2^{bottom:.2f}")
    for arch in ARCHS:
        narrow, wide = (found.get((arch, dim, BATCHES[0])) for dim in (NARROW, WIDE))
        if narrow and wide:
            octaves = best_rate(wide) - best_rate(narrow)
            print(f"{arch:11} rate ~ width^{octaves / math.log2(WIDE / NARROW):.2f}")


if __name__ == "__main__":
    main()
