"""Laws and models of a finished sweep, for commands that count what a loss costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from analysis.fit.law_fit import LawFit
    from analysis.io.sweep import Sweep
    from models.config import ModelConfig
    from scaling.config.run import RunConfig


class Question(NamedTuple):
    """Which loss is to be reached, and by which laws."""

    laws: dict[str, LawFit]
    """By architecture."""
    loss: float
    baseline: str


def question(
    read: Sweep, loss: float | None, baseline: str | None, bootstrap: int, seed: int, *,
    accounting: bool = True,
) -> Question:  # fmt: skip
    """A law for every architecture, and the loss: None is the lowest that every one has reached."""
    from analysis.fit.fitting import fit_law
    from analysis.io.frames import groups, numbers, where
    from analysis.judge.compare import baseline_of

    points = read.require_points()
    own = {name: where(points, arch=name) for name in groups(points, "arch")}
    laws = {
        name: fit_law("chinchilla", part, clusters=read.unit, accounting=accounting,
                      bootstrap=bootstrap, seed=seed)
        for name, part in own.items()
    }  # fmt: skip
    if loss is None:
        loss = max(float(numbers(part, "loss").min()) for part in own.values())
    return Question(laws, loss, baseline_of(list(own), baseline))


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
