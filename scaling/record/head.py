"""The head of a run: config.json and status.json, as whoever looks at a run reads them.

config.json holds the RunConfig and three labels of its own: `schema`, `run_id`, `sweep`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from linscale.errors import LinscaleError
from linscale.json_reader import COUNT, as_number
from scaling.config.run import RunConfig
from scaling.system.files import read_json

SCHEMA = 1
State = Literal["planned", "running", "done", "diverged", "stopped", "failed", "preempted"]
ENDED: tuple[State, ...] = ("done", "diverged", "stopped")
"""States of runs that are not trained any further: with all their milestones, without a result, or
stopped early (`scaling.record.early`)."""
_LABELS = ("schema", "run_id", "sweep")


class RecordError(LinscaleError):
    """A run directory that cannot be read or belongs to another run."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """What a directory says of the run in it, as plain JSON. A file that is missing or torn says
    nothing."""

    path: Path
    """The directory."""
    labels: dict[str, Any]
    """`schema`, `run_id` and `sweep` of config.json, as far as it has them."""
    config: dict[str, Any]
    """The rest of config.json: values of a RunConfig, or of a foreign model."""
    status: dict[str, Any]
    """status.json."""

    @property
    def run_id(self) -> str | None:
        """The run's name; None where the directory is not a run's."""
        return self.labels.get("run_id")

    @property
    def state(self) -> State:
        """The state of the run; `planned` where none is recorded."""
        found = self.status.get("state")
        return next((state for state in get_args(State) if state == found), "planned")

    @property
    def reason(self) -> str:
        """Why the run is in its state, for people; empty when there is nothing to say."""
        return str(self.status.get("reason", ""))

    @property
    def tokens(self) -> int:
        """Trained tokens over all segments; 0 where no number of them is recorded."""
        number = as_number(self.status.get("tokens"))
        return int(number) if 0 <= number <= COUNT else 0

    def run_config(self) -> RunConfig:
        """The configuration of the run.

        Raises:
            RecordError: config.json is missing or cannot be read.
            ConfigError: a field that cannot be understood.
        """
        return _build(self.path / "config.json", self.config)


def read_head(run_dir: Path) -> Head:
    """The head of the run in a directory."""
    labels, config = _split(read_json(run_dir / "config.json"))
    return Head(
        path=run_dir, labels=labels, config=config, status=read_json(run_dir / "status.json")
    )


def read_config(path: Path) -> RunConfig:
    """The configuration in a file, with or without labels.

    Raises:
        RecordError: the file is missing or cannot be read.
        ConfigError: a field that cannot be understood.
    """
    return _build(path, _split(read_json(path))[1])


def label(config: RunConfig, run_dir: Path) -> dict[str, Any]:
    """The content of config.json."""
    labels = (SCHEMA, run_dir.name, run_dir.parent.name)
    return dict(zip(_LABELS, labels, strict=True)) | config.to_json()


def _build(path: Path, values: dict[str, Any]) -> RunConfig:
    if not values:
        raise RecordError(
            f"{path}: is missing or not a JSON object; restore it, or delete {path.parent} and "
            "start the run again."
        )
    return RunConfig.from_json(values)


def _split(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Labels, and the rest."""
    labels = {name: values.pop(name) for name in _LABELS if name in values}
    return labels, values
