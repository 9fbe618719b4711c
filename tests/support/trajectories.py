"""Runs whose loss over tokens is known: the multi-power law, summed step by step as it is printed.

Luo et al. (arXiv 2503.12811), with S(t) in tokens times the share of the peak rate:

    L(t) = E + A (N / 1e5)^-a + B (S / 1e6)^-b - K (N / 1e5)^kappa sum_i (u_(i-1) - u_i) G_i(t)
    G_i(t) = 1 - (1 + c / 1e6 u_i^-gamma (sum of u from step i to t))^-beta
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.io.frames import rows
from analysis.io.sweep import Sweep

TRUE = {"E": 0.8, "A": 0.3, "a": 0.3, "B": 0.5, "b": 0.45, "K": 0.12, "c": 15.0, "beta": 1.2,
        "gamma": 0.5, "kappa": 0.1}  # fmt: skip
STEP = 10_000
PEAK = 5e-3


def losses(n: float, shares: list[float]) -> list[float]:
    """Loss after each step of `STEP` tokens at these shares of the peak rate."""
    p, told, weighted = TRUE, [], 0.0
    sums = [0.0]
    for u in shares:
        sums.append(sums[-1] + u * STEP)
    for t in range(1, len(shares) + 1):
        weighted = sums[t]
        won = 0.0
        for i in range(1, t):
            fall = shares[i - 1] - shares[i]
            if fall > 0:
                since = weighted - sums[i]
                won += fall * (
                    1 - (1 + p["c"] / 1e6 * shares[i] ** -p["gamma"] * since) ** -p["beta"]
                )
        told.append(
            p["E"]
            + p["A"] * (n / 1e5) ** -p["a"]
            + p["B"] * (weighted / 1e6) ** -p["b"]
            - p["K"] * (n / 1e5) ** p["kappa"] * won
        )
    return told


def decayed(steps: int) -> list[float]:
    """Shares of a run of so many steps, the last fifth of which is a linear decay to 0."""
    start = steps - steps // 5
    return [1.0] * start + [1 - (i + 0.5) / (steps - start) for i in range(steps - start)]


def cosine(steps: int) -> list[float]:
    """Shares of a cosine to 0 over so many steps."""
    return [(1 + np.cos(np.pi * (i + 0.5) / steps)) / 2 for i in range(steps)]


@dataclass
class Run:
    """One run on a WSD trunk."""

    n: float
    steps: int
    done: bool = True
    spoil: Callable[[float, float], float] = lambda share, loss: loss
    """From the share of the trunk and its loss to the loss that is logged."""


def sweep_of(runs: list[Run], noise: float = 0.005, seed: int = 0) -> Sweep:
    """A sweep of one architecture; each run decays at a half of its steps and at its end."""
    rng = np.random.default_rng(seed)
    lines, points, described = [], [], []
    for number, run in enumerate(runs):
        run_id = f"llama-n{number}-0123abcd"
        keys = {"run_id": run_id, "arch": "llama", "size": f"n{number}", "seed": 0,
                "n_params": run.n}  # fmt: skip
        horizons = (run.steps // 2, run.steps)
        end = run.steps - run.steps // 5

        def log(segment: str, split: str, step: int, share: float, loss: float) -> None:
            lines.append(
                keys  # noqa: B023 - called at once
                | {"segment": segment, "split": split, "step": step, "tokens": step * STEP,
                   "flops": 6.0 * run.n * step * STEP, "lr": share * PEAK, "loss": loss}  # noqa: B023
            )  # fmt: skip

        for step, loss in enumerate(losses(run.n, [1.0] * end), start=1):
            noisy = run.spoil(step / end, loss) * np.exp(noise * rng.normal())
            log("trunk", "train", step, 1.0, noisy)
        for horizon in horizons if run.done else ():
            shares = decayed(horizon)
            told = losses(run.n, shares)
            segment = f"decay-{horizon * STEP}"
            for step in range(horizon - horizon // 5 + 1, horizon + 1):
                noisy = told[step - 1] * np.exp(noise * rng.normal())
                log(segment, "train", step, shares[step - 1], noisy)
            log(segment, "validation", horizon, shares[-1], told[-1])
            points.append(keys | {"tokens": horizon * STEP, "loss": told[-1],
                                  "flops": 6.0 * run.n * horizon * STEP})  # fmt: skip
        described.append(
            keys
            | {"state": "done" if run.done else "running", "schedule": "wsd",
               "decay_fraction": 0.2, "final_lr_ratio": 0.0, "batch_tokens": STEP,
               "flops_per_token": 6.0 * run.n,
               "horizons": tuple(h * STEP for h in horizons)}
        )  # fmt: skip
    curves, ended = pd.DataFrame(lines), {d["run_id"] for d in described if d["state"] == "done"}
    finished = curves["run_id"].isin(list(ended))
    return Sweep(
        name="simulated",
        runs=pd.DataFrame(described),
        points=pd.DataFrame(points),
        curves=rows(curves, finished).reset_index(drop=True),
        live=rows(curves, ~finished).reset_index(drop=True),
        exclusions=pd.DataFrame(columns=["run_id", "tokens", "reason"]),
        conventions="simulated",
    )
