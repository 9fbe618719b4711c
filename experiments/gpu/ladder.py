"""A forecast that is sealed before the run it is about: small rungs, the forecast, the larger rung.

    python -m experiments.gpu.ladder rungs | forecast | rung  OUT

The law is L = a C^-b in the compute C = 6 N D of the small rungs, least squares of the logarithms;
its interval is `WIDTH` times the scatter about it, and never less than 1 %. OUT/forecast.json is
written once, with its own hash, before the larger rung is trained, which refuses to run without.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.gpu import training
from models import config as model_config
from models.accounting import parameters
from models.config import ARCHS
from scaling.config.recipes import TOY_VOCAB, toy_recipe
from scaling.config.run import RunConfig
from scaling.training.train import train

DIMS = (64, 96, 128, 192)
TARGET = 256
TOKENS_EACH = 20
"""Training tokens a parameter."""
STEPS = 50
"""Optimizer steps of a rung at the least: twice the warm-up."""
LENGTH, BATCH_TOKENS = 1024, 2**16
WIDTH = 3.0


def run_at(arch: Any, dim: int) -> RunConfig:
    """One rung on the device."""
    model = model_config.toy_config(arch, dim, vocab_size=TOY_VOCAB)
    steps = max(TOKENS_EACH * sum(parameters(model).values()) // BATCH_TOKENS, STEPS)
    tokens = steps * BATCH_TOKENS
    run = toy_recipe(
        f"ladder-{arch}-d{dim}", f"d{dim}", model, tokens=tokens, sequence_length=LENGTH,
        tokens_per_step=BATCH_TOKENS, lr=3e-3,
    )  # fmt: skip
    precision = "bf16" if training.ACCELERATOR == "cuda" else "fp32"
    return run.override(
        [f"parallel.accelerator={training.ACCELERATOR}", f"parallel.precision={precision}"]
    )


def compute_of(run: RunConfig) -> float:
    """6 N D."""
    return 6.0 * sum(parameters(run.model).values()) * run.budget.tokens


def loss_of(run: RunConfig, sweep: Path) -> float | None:
    """The last validation loss; None where the run has not ended."""
    rows = training.metrics(sweep / run.run_id)
    losses = [row["loss"] for row in rows if row["split"] == "validation"]
    status = sweep / run.run_id / "status.json"
    done = status.exists() and json.loads(status.read_text())["state"] == "done"
    return losses[-1] if done and losses else None


def rungs(out: Path) -> Iterator[dict[str, Any]]:
    """Train the small rungs, or go on with them."""
    for dim in DIMS:
        for arch in ARCHS:
            run = run_at(arch, dim)
            state = train(run, out / "ladder")
            yield {"part": "rungs", "arch": arch, "dim": dim, "state": state,
                   "loss": loss_of(run, out / "ladder")}  # fmt: skip


def predict(compute: list[float], losses: list[float], at: float) -> tuple[float, float, float]:
    """Loss at a compute by the law, and its interval."""
    x, y = np.log(compute), np.log(losses)
    slope, offset = np.polyfit(x, y, 1)
    scatter = float(np.sqrt(((y - slope * x - offset) ** 2).sum() / max(len(x) - 2, 1)))
    middle, half = float(slope * np.log(at) + offset), max(WIDTH * scatter, 0.01)
    return float(np.exp(middle)), float(np.exp(middle - half)), float(np.exp(middle + half))


def seal(forecasts: dict[str, Any]) -> str:
    """The hash that the file carries."""
    return hashlib.sha256(json.dumps(forecasts, sort_keys=True).encode()).hexdigest()


def forecast(out: Path) -> Iterator[dict[str, Any]]:
    """Write the forecast; it is never written anew."""
    path = out / "forecast.json"
    if not path.exists():
        found: dict[str, Any] = {}
        for arch in ARCHS:
            runs = [run_at(arch, dim) for dim in DIMS]
            losses = [loss_of(run, out / "ladder") for run in runs]
            known = [(compute_of(r), x) for r, x in zip(runs, losses, strict=True) if x is not None]
            if len(known) < 3:
                raise SystemExit(f"{arch}: {len(known)} rungs have ended; a forecast needs 3.")
            at = compute_of(run_at(arch, TARGET))
            loss, low, high = predict([c for c, _ in known], [x for _, x in known], at)
            found[arch] = {"loss": loss, "low": low, "high": high, "compute": at}
        path.write_text(json.dumps({"forecasts": found, "sha256": seal(found)}, indent=1))
    content = json.loads(path.read_text())
    yield {"part": "forecast", **content}


def rung(out: Path) -> Iterator[dict[str, Any]]:
    """Train the larger rung, and compare."""
    path = out / "forecast.json"
    if not path.exists():
        raise SystemExit("no forecast.json: the forecast comes before the run that it is about.")
    content = json.loads(path.read_text())
    if seal(content["forecasts"]) != content["sha256"]:
        raise SystemExit("forecast.json was changed after it was sealed.")
    for arch, told in content["forecasts"].items():
        run = run_at(arch, TARGET)
        state = train(run, out / "ladder")
        loss = loss_of(run, out / "ladder")
        inside = loss is not None and told["low"] <= loss <= told["high"]
        row = {"part": "rung", "arch": arch, "state": state, "loss": loss, "inside": inside}
        yield row | {f"forecast_{k}": told[k] for k in ("loss", "low", "high")}


PARTS = {"rungs": rungs, "forecast": forecast, "rung": rung}


def main(part: str, out: Path) -> int:
    """Print a line of JSON for each result. A forecast that misses is a result, not a failure."""
    for row in PARTS[part](out):
        print(json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
