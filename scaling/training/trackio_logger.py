"""trackio behind Lightning's interface for loggers: project = sweep, run name = run id.

Metrics go to a database on this machine (TRACKIO_DIR, or trackio's own folder) and are looked at
with `trackio show`; nothing leaves the machine.
"""

from __future__ import annotations

import importlib
import sys
from contextlib import redirect_stdout
from typing import Any

from lightning.pytorch.loggers import Logger


class TrackioLogger(Logger):
    """One run; a run that is resumed stays one."""

    def __init__(self, project: str, name: str) -> None:
        """
        Args:
            project: that the run belongs to.
            name: of the run, its key in the project.
        """
        super().__init__()
        self._project, self._name = project, name
        self._config: dict[str, Any] = {}
        self._run: Any = None

    @property
    def name(self) -> str:
        """The project."""
        return self._project

    @property
    def version(self) -> str:
        """The run."""
        return self._name

    def log_hyperparams(self, params: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """Kept for the beginning: trackio takes a configuration with the run."""
        self._config = dict(params)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write values at a step."""
        self._begun().log(metrics, step=step)

    def finalize(self, status: str) -> None:
        """Wait until everything is in the database."""
        if self._run is not None:
            with redirect_stdout(sys.stderr):
                self._run.finish()
            self._run = None

    def _begun(self) -> Any:
        if self._run is None:
            trackio = importlib.import_module("trackio")
            with redirect_stdout(sys.stderr):  # standard output is the pool's
                self._run = trackio.init(
                    project=self._project, name=self._name, config=self._config, resume="allow",
                    embed=False, auto_log_cpu=False, auto_log_gpu=False,
                )  # fmt: skip
        return self._run
