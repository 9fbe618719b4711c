"""How fast runs were on a device: FLOP/s by architecture and size, to plan others by.

A small model reaches a smaller share of a device's peak than a large one, and architectures differ.
One short run of each architecture at two or three sizes tells both. Between the sizes that ran,
log FLOP/s is interpolated over log FLOPs a token; beyond them the nearest size's is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from models.config import ConfigError
from scaling.system.devices import Device

if TYPE_CHECKING:
    import pandas as pd

START = 3
"""First lines of a log that are left out: they hold the start of training."""
SHARES = (0.1, 0.9)
"""Quantiles of the lines of a log between which its speed is said to lie."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """FLOP/s of one device in training, `exact` convention."""

    flops: float
    """Median over the lines of the logs."""
    low: float
    high: float
    within: bool
    """The size lies between sizes that ran."""


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """Measured speeds of a device."""

    source: str
    """Where they are from, for people."""
    points: Mapping[str, np.ndarray]
    """Architecture -> (4, sizes): FLOPs a token in increasing order, then low, median and high
    FLOP/s of one device."""

    def of(self, arch: str, flops_per_token: float) -> Speed | None:
        """Speed of a model; None where its architecture did not run.

        Args:
            arch: architecture, or the pattern of a hybrid.
            flops_per_token: training FLOPs of a token, `exact` convention.
        """
        if arch not in self.points:
            return None
        costs, *speeds = np.log(self.points[arch])
        at, near = np.log(flops_per_token), 1e-9
        low, flops, high = (float(np.exp(np.interp(at, costs, s))) for s in speeds)
        within = bool(costs[0] - near <= at <= costs[-1] + near)
        return Speed(flops=flops, low=low, high=high, within=within)


def speeds(runs: pd.DataFrame, curves: pd.DataFrame, device: Device, source: str) -> Speeds:
    """Speeds of a sweep's finished runs.

    Args:
        runs: one row a run: `run_id`, `arch`, `flops_per_token_exact`, `device` as torch names it,
            and `devices`, how many it had.
        curves: lines of their logs: `run_id`, `split`, `tokens_per_second`.
        device: that is planned for.
        source: where the runs are from, for people.

    Raises:
        ConfigError: no run logged a speed, or all ran on other devices.
    """
    lines = curves[curves["split"] == "train"]
    lines = lines[lines.groupby("run_id", observed=True).cumcount() >= START]
    lines = lines[np.isfinite(lines["tokens_per_second"]) & (lines["tokens_per_second"] > 0)]
    facts = runs.set_index("run_id")[["arch", "flops_per_token_exact", "device", "devices"]]
    merged = facts.loc[lines["run_id"].astype(str)].reset_index(drop=True)
    merged["tokens_per_second"] = np.asarray(lines["tokens_per_second"])
    if merged.empty:
        raise ConfigError(
            f"--speeds {source}: no finished run with more than {START} lines of a log that have "
            "tokens_per_second; give a sweep whose runs ended."
        )
    fits = [name for name in merged["device"].unique() if _is(name, device)]
    if not fits:
        there = ", ".join(sorted({str(name) for name in merged["device"].unique()}))
        raise ConfigError(
            f"--speeds {source}: its runs ran on {there}, and the plan is for {device.name}; "
            "give --device, or runs on such a device."
        )
    merged = merged[merged["device"].isin(fits)]
    merged["speed"] = (
        merged["tokens_per_second"] * merged["flops_per_token_exact"] / merged["devices"]
    )
    points: dict[str, np.ndarray] = {}
    for arch, own in merged.groupby("arch"):
        by_size = own.groupby("flops_per_token_exact")["speed"]
        columns = [by_size.quantile(q) for q in (SHARES[0], 0.5, SHARES[1])]
        costs = columns[0].index.to_numpy()
        points[str(arch)] = np.stack([costs, *(c.to_numpy() for c in columns)])
    return Speeds(source=source, points=points)


def _is(name: object, device: Device) -> bool:
    """Whether torch's name of a device is that of the one planned for; h200 is not h100."""
    text = str(name).lower()
    if device.is_host:
        return text == "cpu"
    return device.name.split()[0].lower() in text
