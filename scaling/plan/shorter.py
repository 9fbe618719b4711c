"""A run that may be taken only up to one of its horizons: what an adaptive sweep chooses from.

    forms(run) -> one run for each horizon, each longer than the one before; the last is the run
    candidates(runs, device) -> a row per horizon of each run, with its FLOPs

A run whose trunk does not know where it ends (`RunConfig.trunk_id`) is at each of its horizons what
a run of that budget would be, and the longer goes on from the trunk of the shorter
(`scaling.record.trunk`), so that stopping early loses nothing.
"""

from __future__ import annotations

from typing import Any

from models.config import ConfigError
from scaling.config.run import RunConfig
from scaling.plan.plan import rung
from scaling.system.devices import Device


def forms(run: RunConfig) -> list[RunConfig | None]:
    """The run up to each of its horizons, in their order; None where no such run can be had."""
    horizons = sorted({*run.budget.horizons, run.budget.tokens})
    resumable = run.trunk_id is not None and run.budget.keep_trunk
    return [
        run if tokens == horizons[-1] else _up_to(run, horizons[: i + 1]) if resumable else None
        for i, tokens in enumerate(horizons)
    ]


def _up_to(run: RunConfig, horizons: list[int]) -> RunConfig | None:
    listed = ",".join(map(str, horizons))
    try:
        return run.override([f"budget.tokens={horizons[-1]}", f"budget.horizons={listed}"])
    except ConfigError:  # shorter than its warm-up, for one
        return None


def candidates(
    runs: list[RunConfig], device: Device
) -> tuple[list[dict[str, Any]], dict[str, RunConfig]]:
    """What can be chosen.

    Returns:
        A row per horizon of each run: unit (the run of the experiment), run_id (of the run that
        ends there, "" for none), arch, size, size_seed (as run records name it), n_params, tokens,
        flops (of the point) and cost (of the run that ends there), in FLOPs; and the runs by id.
    """
    rows: list[dict[str, Any]] = []
    by_id: dict[str, RunConfig] = {}
    for run in runs:
        whole = rung(run, device)
        for form, tokens in zip(forms(run), whole.horizons, strict=True):
            cost = 0.0
            if form is not None:
                by_id[form.run_id] = form
                cost = rung(form, device).flops
            rows.append({
                "unit": run.run_id, "run_id": form.run_id if form else "", "arch": whole.arch,
                "size": whole.size, "size_seed": f"{whole.size} seed {whole.seed}",
                "n_params": float(whole.params_exact), "tokens": float(tokens),
                "flops": tokens * whole.flops_per_token, "cost": float(cost),
            })  # fmt: skip
    return rows, by_id
