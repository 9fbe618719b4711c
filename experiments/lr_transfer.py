"""Learning-rate transfer: does the best learning rate stay put when a model is made wider?

Question: with muP (`model.mup_base_dim`), is the learning rate that is best for a narrow model best
for wide ones too? And without, how far does the best one move?
Command: linscale run experiments/lr_transfer.py --toy    (about fifteen core minutes)
         python experiments/lr_transfer.py runs/lr_transfer-toy [--write]
Expected: with muP the valleys lie above one another; without, the best rate falls as width grows.
Measured on 2026-11-21, octaves that the best rate moves by from width 32 to 128:

                  LLaMA    TNL    HGRN2    cosFormer2
    with muP       -0.2   -1.3     +0.1          +0.5
    without        -1.9   -3.0  <= -2.6       <= -2.5

With muP it stays put within half an octave, but for TNL, whose loss at width 32 is the same within
0.004 nats from 0.008 to 0.03: from 64 to 128 it moves by -0.4 (without: -0.8). Without muP the best
rate of HGRN2 and cosFormer2 at width 128 is the lowest that was tried. At its own best rate and
width 128, muP is better for LLaMA (1.79 against 1.89 nats) and cosFormer2 (1.93, 1.98) and worse
for TNL (2.00, 1.94) and HGRN2 (1.77, 1.69).

Depth, data and batch are the same at all widths. Both forms start with the same spread at the base
width; without muP it shrinks with the square root of the width, as everywhere in these experiments.
The second command reads the records: one row for every run, and for each width the learning rate at
the bottom of a parabola through the best point and its neighbours; `--write` keeps the dated table
in experiments/results/lr_transfer, from which `make figures` draws the published figure.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from datetime import date
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from analysis.figures import style
from models.architecture import find
from models.config import ARCHS, PAPER_VOCAB, Arch, ModelConfig, toy_config
from scaling.config.recipes import TOY_VOCAB, paper_recipe, toy_recipe
from scaling.config.run import RunConfig

DIMS, LAYERS, BASE = (256, 512, 1024, 2048), 12, 256
RATES = tuple(2.0**k for k in range(-14, -5))
TOY_DIMS, TOY_LAYERS, TOY_BASE = (32, 64, 128), 2, 32
TOY_RATES = tuple(2.0**k for k in range(-9, -2))
TOY_STEPS, TOY_STEP_TOKENS = 150, 1024
RESULTS = Path(__file__).parent / "results" / "lr_transfer"


def runs(toy: bool = False) -> list[RunConfig]:
    """Every learning rate at every width, with muP and without."""
    configs: list[RunConfig] = []
    for arch in ARCHS:
        for dim in TOY_DIMS if toy else DIMS:
            for mup in (True, False):
                model = _model(arch, dim, mup, toy)  # <- the intervention
                for rate in TOY_RATES if toy else RATES:
                    form = "mup" if mup else "standard"
                    name = f"{arch}-{form}-d{dim}-lr{math.log2(rate):.0f}"
                    configs.append(_run(name, f"d{dim}", model, rate, toy))
    return configs


def _model(arch: Arch, dim: int, mup: bool, toy: bool) -> ModelConfig:
    vocab, layers, head_dim, base = (
        (TOY_VOCAB, TOY_LAYERS, 16, TOY_BASE) if toy else (PAPER_VOCAB, LAYERS, 128, BASE)
    )
    narrow, model = (
        toy_config(arch, d, vocab_size=vocab, layers=layers, head_dim=head_dim) for d in (base, dim)
    )
    return model.replace(mup_base_dim=base, init_std=narrow.std) if mup else model


def _run(name: str, size: str, model: ModelConfig, rate: float, toy: bool) -> RunConfig:
    if toy:
        tokens = TOY_STEPS * TOY_STEP_TOKENS
        return toy_recipe(
            name,
            size,
            model,
            tokens=tokens,
            tokens_per_step=TOY_STEP_TOKENS,
            sequence_length=128,
            lr=rate,
        )
    config = paper_recipe(name, size, model, tokens=5_000_000_000, horizons=(), kind="wsd")
    return config.override([f"optim.lr={rate}"])


def table(sweep: Path) -> list[dict[str, Any]]:
    """One row for every run: architecture, form, width, learning rate, validation loss, run id.

    The loss of a run that diverged is infinite; runs that have not ended are left out.
    """
    rows: list[dict[str, Any]] = []
    for path in sorted(sweep.glob("*/config.json")):
        values = json.loads(path.read_text(encoding="utf-8"))
        state = json.loads((path.parent / "status.json").read_text(encoding="utf-8"))["state"]
        if state not in ("done", "diverged"):
            continue
        milestones = path.parent / "milestones.jsonl"
        lines = milestones.read_text(encoding="utf-8").splitlines() if state == "done" else []
        rows.append(
            {
                "arch": values["model"]["arch"],
                "form": "standard" if values["model"]["mup_base_dim"] is None else "mup",
                "dim": values["model"]["dim"],
                "lr": values["optim"]["lr"],
                "val_loss": json.loads(lines[-1])["val_loss"] if lines else math.inf,
                "run": path.parent.name,
            }
        )
    return sorted(rows, key=lambda row: tuple(row.values()))


def best_rate(points: list[tuple[float, float]]) -> float:
    """log2 of the rate at the bottom of the parabola through the lowest point and its neighbours.

    Args:
        points: (log2 of the rate, loss), evenly spaced.

    Returns:
        The position of the lowest point itself where it is the first or the last.
    """
    points = sorted(points)
    i = min(range(len(points)), key=lambda i: points[i][1])
    if i in (0, len(points) - 1) or not math.isfinite(points[i + 1][1]):
        return points[i][0]
    (x, left), (middle, low), (_, right) = points[i - 1 : i + 2]
    bend = left - 2 * low + right
    return middle + (middle - x) * (left - right) / (2 * bend) if bend else middle


def optima(rows: list[dict[str, Any]]) -> dict[tuple[str, str, int], float]:
    """(architecture, form, width) -> log2 of its best rate."""
    groups: dict[tuple[str, str, int], list[tuple[float, float]]] = {}
    for row in rows:
        key = row["arch"], row["form"], row["dim"]
        groups.setdefault(key, []).append((math.log2(row["lr"]), row["val_loss"]))
    return {key: best_rate(points) for key, points in groups.items()}


def figure(rows: list[dict[str, Any]]) -> Figure:
    """Loss over learning rate, one curve a width; a column each for muP and without."""
    archs = list(dict.fromkeys(row["arch"] for row in rows))
    dims = sorted({row["dim"] for row in rows})
    best = optima(rows)
    with style.context():
        fig, axes = style.panels(
            len(archs), 2, width=style.DOUBLE, height=2.4 * len(archs), sharex=True
        )
        for arch, line in zip(archs, axes, strict=True):
            for form, ax in zip(("mup", "standard"), line, strict=True):
                for i, dim in enumerate(dims):
                    color = mpl.colormaps[style.SEQUENTIAL](0.85 * i / max(1, len(dims) - 1))
                    points = [
                        (row["lr"], row["val_loss"])
                        for row in rows
                        if (row["arch"], row["form"], row["dim"]) == (arch, form, dim)
                    ]
                    ax.plot(*zip(*points, strict=True), "o-", color=color, label=f"width {dim}")
                    ax.axvline(2.0 ** best[arch, form, dim], color=color, lw=0.8, ls="--")
                name = "muP" if form == "mup" else "without muP"
                ax.set(xscale="log", title=f"{find(arch).label}, {name}")
            low, high = (f(ax.get_ylim()[i] for ax in line) for i, f in enumerate((min, max)))
            for ax in line:
                ax.set_ylim(low, high)
            line[0].set_ylabel("loss (nats per byte)")
        for ax in axes[-1]:
            ax.set_xlabel("peak learning rate")
        handles, labels = axes[0][0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside upper center", ncols=len(labels))
        style.finish(fig)
    return fig


def main() -> None:
    """Print the optima of a sweep; keep the table with --write."""
    parser = argparse.ArgumentParser(description="Best learning rates of a finished sweep.")
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--write", action="store_true", help=f"keep the results in {RESULTS}")
    arguments = parser.parse_args()
    rows = table(arguments.sweep)
    if not rows:
        sys.exit(f"error: {arguments.sweep}: no run has ended there.")
    for (arch, form, dim), rate in optima(rows).items():
        print(f"{arch:<12} {form:<9} d{dim:<5} best learning rate 2^{rate:.2f} = {2**rate:.3g}")
    if arguments.write:
        RESULTS.mkdir(parents=True, exist_ok=True)
        stamp = date.today().isoformat()
        with (RESULTS / f"losses_{stamp}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
