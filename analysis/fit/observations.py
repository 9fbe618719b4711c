"""The points of one fit, and the compute that goes with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.errors import FitWarning
from analysis.laws.compute_model import SIX_ND, ComputeModel, fit_compute_model
from analysis.units import Array

AXES = {
    "n": "N (parameters)", "d": "D (tokens)", "c": "C (FLOPs)", "u": "U (unique tokens)",
    "t": "total parameters", "p": "bits of the weights", "s": "share of a source",
}  # fmt: skip


@dataclass(frozen=True)
class Observations:
    """Clean points of one fit, arrays of one length m."""

    columns: dict[str, Array]
    """By role: "n", "d", "c", "u" as far as known; all positive."""
    loss: Array
    """Measured loss (m,), nats per token or any positive unit."""
    weight: Array
    """Weights (m,), mean 1."""
    cluster: NDArray[np.int64]
    """Index (m,) into `labels`: the run, or whatever was resampled."""
    labels: list[str]
    """Names of the clusters, sorted: fits with equal labels can be drawn in pairs."""
    names: dict[str, str]
    """Column names in the caller's table by role, "loss", "clusters" and "weights" too."""
    called: dict[str, str]
    """The same as messages name them: as in the file that the table comes from."""
    rows: list[Any]
    """Index labels of the caller's table (m,)."""
    exclusions: pd.DataFrame
    """Columns row, name, reason."""
    warnings: list[FitWarning] = field(default_factory=list[FitWarning])
    row_names: list[str] = field(default_factory=list[str])
    """What to call each point (m,): its run, and its row where a run has several."""
    places: list[int] = field(default_factory=list[int])
    """Positions of the rows in the caller's table (m,); empty for points read from a record."""

    @property
    def compute(self) -> Array:
        """C (m,): as given, else 6 N D, else NaN."""
        return compute_of(self.columns, len(self.loss))

    def take(self, keep: NDArray[np.bool_]) -> Observations:
        """The points selected by a boolean mask; clusters are renumbered."""
        labels, cluster = np.unique(np.array(self.labels)[self.cluster[keep]], return_inverse=True)
        return Observations(
            columns={k: v[keep] for k, v in self.columns.items()},
            loss=self.loss[keep],
            weight=self.weight[keep],
            cluster=cluster.astype(np.int64),
            labels=[str(v) for v in labels],
            names=self.names,
            called=self.called,
            rows=[r for r, k in zip(self.rows, keep, strict=True) if k],
            exclusions=self.exclusions,
            warnings=self.warnings,
            row_names=[r for r, k in zip(self.row_names, keep, strict=True) if k],
            places=[r for r, k in zip(self.places, keep, strict=True) if k] if self.places else [],
        )


def compute_of(columns: dict[str, Array], length: int) -> Array:
    """C of columns by role: given, else 6 N D, else NaN."""
    if "c" in columns:
        return columns["c"]
    if "n" in columns and "d" in columns:
        return 6.0 * columns["n"] * columns["d"]
    return np.full(length, np.nan)


def model_of(observations: Observations, *, accounting: bool = False) -> ComputeModel:
    """C = f(N) D of the points: through their C, else 6 N D.

    `accounting` says that C are exact counts of the runs' records.
    """
    columns, name = observations.columns, observations.names.get("c", "(")
    if not {"n", "d", "c"} <= columns.keys() or name.startswith("("):
        return SIX_ND
    per_token = columns["c"] / columns["d"]
    source = "accounting" if accounting else "column"
    return fit_compute_model(
        columns["n"], per_token, source=source, column=observations.called["c"]
    )
