"""What tests of training compare: records without times, and a stop after so many steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scaling.config.run import RunConfig

TIMES = ("wall", "tokens_per_second", "mfu", "data_wait", "memory_peak")
"""What two equal runs do not have in common."""

Lines = list[dict[str, Any]]


def read_lines(path: Path) -> Lines:
    """The objects of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def lines(config: RunConfig, sweep: Path, name: str = "metrics.jsonl") -> Lines:
    """The lines of a record."""
    return read_lines(sweep / config.run_id / name)


def metrics(config: RunConfig, sweep: Path) -> Lines:
    """The lines of metrics.jsonl without times."""
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines(config, sweep)]


def result(config: RunConfig, sweep: Path) -> tuple[Lines, Lines]:
    """Metrics without times, and milestones as they are; equal for equal trajectories."""
    return metrics(config, sweep), lines(config, sweep, "milestones.jsonl")


class StopAfter:
    """A stop event that is set after so many steps."""

    def __init__(self, last: int) -> None:
        self.steps, self._last = 0, last

    def is_set(self) -> bool:
        """Asked once a step."""
        self.steps += 1
        return self.steps >= self._last
