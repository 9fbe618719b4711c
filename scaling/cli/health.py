"""For `linscale status`: how far live runs are from the law of their learning curves."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

RENEW_SECONDS = 60.0
"""Between two fits while a sweep is watched."""


class Judge:
    """Fills in `health` in rows of `scaling.sweep.status.status_rows`."""

    def __init__(self, directory: Path) -> None:
        """
        Args:
            directory: of the sweep.
        """
        self._directory = directory
        self._found: dict[str, dict[str, Any]] = {}
        self._renewed: float | None = None

    def __call__(self, rows: list[dict[str, Any]]) -> None:
        """Fill in the rows; only where a run is live and another one done is there a law."""
        states = {row["state"] for row in rows}
        if not {"running", "done"} <= states:
            return
        now = time.monotonic()
        if self._renewed is None or now - self._renewed > RENEW_SECONDS:
            self._renewed, self._found = now, _health(self._directory)
        for row in rows:
            if row["state"] == "running":
                row["health"] = self._found.get(row["run_id"])


def _health(directory: Path) -> dict[str, dict[str, Any]]:
    from analysis.errors import AnalysisError
    from analysis.forecast.health import health
    from analysis.io.records import load_sweep

    try:
        sweep = load_sweep(directory)
    except AnalysisError:
        return {}  # what is wrong with the records, the table says
    return {run_id: found.as_dict() for run_id, found in health(sweep).items()}
