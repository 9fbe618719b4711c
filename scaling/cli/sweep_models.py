"""The models that a finished sweep trained, for commands that count what they cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analysis.io.sweep import Sweep
    from models.config import ModelConfig
    from scaling.config.run import RunConfig


def runs_of(sweep: Path, read: Sweep) -> dict[str, dict[int, RunConfig]]:
    """One run of every size, by architecture and N as the laws count it."""
    from analysis.io.sweep_files import unpacked
    from scaling.record.head import read_config

    found: dict[str, dict[int, RunConfig]] = {}
    with unpacked(sweep) as folder:
        for run in read.runs.to_dict("records"):
            config = read_config(folder / str(run["run_id"]) / "config.json")
            found.setdefault(str(run["arch"]), {})[int(run["n_params"])] = config
    return found


def models_of(sweep: Path, read: Sweep) -> dict[str, dict[int, ModelConfig]]:
    """Model configurations of every architecture, by their N."""
    return {
        arch: {n: config.model for n, config in runs.items()}
        for arch, runs in runs_of(sweep, read).items()
    }
