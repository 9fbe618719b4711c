"""Writes sweep directories as a training run would leave them, from laws that are known.

The loss of a decayed checkpoint is L(N, D) = E + A / N^a + B / D^b with log-normal noise per run
and per horizon; the trunk lies a few per cent above it (an undecayed model), falls from log V
during warm-up, and every decay branch comes down to the law at its horizon. So a correct reader
and fit must give back `LAWS`.

    python tests/support/make_runs.py DIR      # a demonstration sweep to look at
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass(frozen=True, kw_only=True)
class TrueLaw:
    E: float
    A: float
    alpha: float
    B: float
    beta: float
    context_flops: float
    """Training FLOPs per token and per (width x layer) of the token mixer, as a fraction of 6N."""

    def loss(self, n: float, d: np.ndarray) -> np.ndarray:
        return self.E + self.A / n**self.alpha + self.B / np.asarray(d, dtype=float) ** self.beta


LAWS = {
    "llama": TrueLaw(E=1.10, A=42.0, alpha=0.34, B=72.0, beta=0.31, context_flops=0.22),
    "tnl": TrueLaw(E=1.10, A=44.0, alpha=0.34, B=74.0, beta=0.31, context_flops=0.08),
    "hgrn2": TrueLaw(E=1.10, A=40.5, alpha=0.34, B=71.0, beta=0.31, context_flops=0.08),
    "cosformer2": TrueLaw(E=1.10, A=46.0, alpha=0.34, B=76.0, beta=0.31, context_flops=0.10),
}
TASKS = {"arc_easy": (0.25, 1.9, 4.0), "piqa": (0.5, 1.8, 5.0), "boolq": (0.5, -9.0, 5.0)}
"""Chance, midpoint and slope of accuracy against loss; boolq stays at chance."""
DIMS = (32, 64, 96, 128, 192)
VOCAB, CONTEXT, BATCH, DECAY = 256, 256, 32, 0.2
BYTES_PER_TOKEN = 1.0


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is wrong with one run."""

    state: str = "done"
    reason: str = ""
    drop_horizons: int = 0
    torn: bool = False
    nan_loss: bool = False
    undecayed: bool = False
    extra: dict[str, object] = field(default_factory=dict)


def write_sweep(
    root: Path,
    *,
    archs: tuple[str, ...] = tuple(LAWS),
    dims: tuple[int, ...] = DIMS,
    seeds: tuple[int, ...] = (0,),
    tokens_per_parameter: float = 10.0,
    fractions: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0),
    log_lines: int = 160,
    noise: float = 0.004,
    problems: dict[str, Problem] | None = None,
    seed: int = 0,
    tasks: bool = False,
) -> Path:
    """Writes `root` and returns it. `problems` maps "arch-d<dim>-s<seed>" to what went wrong;
    `tasks` adds evaluations of every milestone by the sigmoids of `TASKS`."""
    rng = np.random.default_rng(seed)
    run_ids = []
    for arch in archs:
        for dim in dims:
            for run_seed in seeds:
                name = f"{arch}-d{dim}-s{run_seed}"
                run_id = f"{name}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
                problem = (problems or {}).get(name, Problem())
                _write_run(
                    root / run_id, arch, dim, run_seed, run_id, root.name, problem, rng,
                    tokens_per_parameter, fractions, log_lines, noise,
                )  # fmt: skip
                if tasks:
                    _evaluate(root / run_id, rng)
                run_ids.append(run_id)
    sweep = {
        "schema": 1, "sweep": root.name, "experiment": "# made by make_runs.py\n",
        "argv": ["linscale", "run"], "runs": run_ids,
    }  # fmt: skip
    (root / "sweep.json").write_text(json.dumps(sweep, indent=1))
    return root


def parameter_count(dim: int) -> int:
    """Non-embedding parameters of a rung: 12 d^2 per layer and its norms."""
    layers = max(2, round(dim / 24))
    return layers * (12 * dim * dim + 2 * dim)


def _write_run(
    path: Path, arch: str, dim: int, seed: int, run_id: str, sweep: str, problem: Problem,
    rng: np.random.Generator, tokens_per_parameter: float, fractions: tuple[float, ...],
    log_lines: int, noise: float,
) -> None:  # fmt: skip
    path.mkdir(parents=True)
    law, n = LAWS[arch], parameter_count(dim)
    layers, embedding = max(2, round(dim / 24)), VOCAB * dim
    step_tokens = CONTEXT * BATCH
    steps = max(40, math.ceil(n * tokens_per_parameter / step_tokens))
    horizons = sorted({max(8, round(steps * f)) * step_tokens for f in fractions})
    per_token = {
        "paper": {"projections": 4.0 * n, "glu": 2.0 * n, "mixer": law.context_flops * 6 * n},
        "exact": {"projections": 6.0 * n, "mixer": law.context_flops * 6 * n,
                  "head": 6.0 * embedding},
    }  # fmt: skip
    for terms in per_token.values():
        terms["total"] = sum(terms.values())
    speed = 3.0e9 / per_token["exact"]["total"] * (0.7 if arch == "hgrn2" else 1.0)

    config = {
        "schema": 1, "run_id": run_id, "sweep": sweep, "name": f"{arch}-d{dim}", "size": f"d{dim}",
        "seed": seed,
        "model": {"arch": arch, "vocab_size": VOCAB, "dim": dim, "layers": layers,
                  "heads": dim // 32, "glu_dim": -(-dim * 8 // 3 // 16) * 16,
                  "tie_embeddings": True},
        "data": {"corpus": "kjv", "tokenizer": "bytes", "sequence_length": CONTEXT,
                 "batch_sequences": BATCH, "validation_fraction": 0.05, "validation_blocks": 64},
        "optim": {"lr": 3e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1,
                  "clip_norm": 1.0},
        "schedule": {"kind": "wsd", "warmup_tokens": step_tokens * 10, "decay_fraction": DECAY,
                     "final_lr_ratio": 0.0},
        "budget": {"tokens": horizons[-1], "horizons": horizons, "checkpoint_every_tokens": None},
        "parallel": {"devices": 1, "strategy": "single", "precision": "fp32"},
    }  # fmt: skip
    accounting = {
        "params": {"embedding": embedding, "blocks": n},
        "n_total": n + embedding, "n_non_embedding": n, "n_paper": n - 2 * layers * dim,
        "flops_per_token": per_token, "sequence_length": CONTEXT,
    }  # fmt: skip
    environment = {
        "git_revision": "0123456789abcdef", "git_dirty_sha256": None, "python": "3.11.9",
        "torch": "2.13.0", "lightning": "2.6.4", "triton": None, "platform": "Linux-x86_64",
        "cpu": "Xeon, 2 cores", "device": "cpu", "hostname": "bench", "argv": ["linscale", "run"],
        "data": {"corpus_sha256": "ab" * 32, "tokenizer_sha256": "cd" * 32,
                 "train_tokens": 4_000_000, "validation_tokens": 200_000,
                 "bytes_per_token": BYTES_PER_TOKEN},
        "peak_flops": 1.5e11,
    }  # fmt: skip
    status = {
        "state": problem.state, "reason": problem.reason, "tokens": horizons[-1],
        "tokens_total": horizons[-1], "loss": 2.0, "tokens_per_second": speed, "eta_seconds": 0.0,
        "updated": "2026-11-21T08:00:00+00:00", "hostname": "bench", "pid": 1,
    }  # fmt: skip
    for name, value in (("config", config), ("accounting", accounting),
                        ("environment", environment), ("status", status)):  # fmt: skip
        (path / f"{name}.json").write_text(json.dumps(value, indent=1))
    (path / "log.txt").write_text("")

    run_noise = math.exp(noise * rng.standard_normal())
    exact, paper = per_token["exact"]["total"], per_token["paper"]["total"]
    metrics: list[dict[str, object]] = []
    milestones: list[dict[str, object]] = []

    def log(segment: str, tokens: np.ndarray, losses: np.ndarray, lr: np.ndarray) -> None:
        for i, (t, loss) in enumerate(zip(tokens.tolist(), losses.tolist(), strict=True)):
            # At a horizon the only validation line is that of its milestone.
            held_out = i % 10 == 9 and t not in horizons
            metrics.append({
                "segment": segment, "step": t // step_tokens, "tokens": t, "flops": t * exact,
                "wall": t / speed, "split": "validation" if held_out else "train", "loss": loss,
                "bpb": loss / math.log(2) / BYTES_PER_TOKEN, "lr": float(lr[i]),
                "grad_norm": 0.5 + 0.1 * rng.random(),
                "tokens_per_second": speed * (1 + 0.02 * rng.standard_normal()),
                "mfu": speed * exact / 1.5e11,
            })  # fmt: skip

    warm = 10 * step_tokens
    trunk = np.unique(np.geomspace(step_tokens, horizons[-1], log_lines).astype(int) // step_tokens)
    trunk = np.unique(np.maximum(trunk, 1)) * step_tokens
    base = law.loss(n, trunk) * 1.035 * run_noise
    start = math.log(VOCAB)
    mix = np.exp(-trunk / (1.2 * warm))
    trunk_loss = np.minimum(start, base * (1 - mix) + start * mix)
    trunk_loss *= np.exp(0.006 * rng.standard_normal(len(trunk)))
    log("trunk", trunk, trunk_loss, 3e-3 * np.minimum(1, trunk / warm))

    for horizon in horizons[: len(horizons) - problem.drop_horizons]:
        loss = float(law.loss(n, np.array(horizon)) * run_noise)
        loss *= math.exp(0.4 * noise * rng.standard_normal())
        begin = int(horizon * (1 - DECAY)) // step_tokens * step_tokens
        ticks = np.unique(np.linspace(begin, horizon, 24).astype(int) // step_tokens) * step_tokens
        ticks = ticks[ticks > begin]
        share = (ticks - begin) / (horizon - begin)
        high = float(law.loss(n, np.array(begin)) * 1.035 * run_noise)
        branch = (high * (1 - share) + loss * share) * np.exp(
            0.004 * rng.standard_normal(len(ticks))
        )
        log(f"decay-{horizon}", ticks, branch, 3e-3 * (1 - share))
        milestones.append({
            "tokens": horizon, "step": horizon // step_tokens, "flops": horizon * exact,
            "flops_paper": horizon * paper, "train_loss": loss * 0.99,
            "val_loss": float("nan") if problem.nan_loss else loss, "val_loss_std": 0.11,
            "val_blocks": 64, "val_bpb": loss / math.log(2) / BYTES_PER_TOKEN,
            "decayed": not problem.undecayed, "checkpoint": f"checkpoints/tokens={horizon}",
            "sha256": "ef" * 32,
        })  # fmt: skip

    text = "".join(json.dumps(row) + "\n" for row in metrics)
    if problem.torn:
        text += '{"segment": "trunk", "step": 99'
    (path / "metrics.jsonl").write_text(text)
    (path / "milestones.jsonl").write_text("".join(json.dumps(row) + "\n" for row in milestones))
    (path / "evals.jsonl").write_text("")


def _evaluate(path: Path, rng: np.random.Generator) -> None:
    """evals.jsonl of a run: accuracies of 1,000 questions at every milestone."""
    lines: list[str] = []
    for text in (path / "milestones.jsonl").read_text().splitlines():
        m = json.loads(text)
        for task, (chance, midpoint, slope) in TASKS.items():
            right = chance + (1 - chance) / (1 + math.exp(slope * (m["val_loss"] - midpoint)))
            lines.append(json.dumps({
                "task": task, "metric": "acc", "value": rng.binomial(1000, right) / 1000,
                "stderr": 0.016, "n": 1000, "tokens": m["tokens"], "flops": m["flops"],
                "checkpoint": m["checkpoint"], "settings": {"shots": 0},
            }))  # fmt: skip
    (path / "evals.jsonl").write_text("".join(line + "\n" for line in lines))


if __name__ == "__main__":
    write_sweep(
        Path(sys.argv[1]),
        problems={
            "tnl-d192-s0": Problem(state="diverged", reason="loss is NaN at step 412"),
            "cosformer2-d128-s0": Problem(state="running", drop_horizons=1, torn=True),
        },
    )
