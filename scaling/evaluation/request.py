"""What one evaluation asks for, in a form that every process of it can read.

    <sweep>/evaluation/<digest>/request.json     tasks, settings, device
    <sweep>/evaluation/<digest>/<run_id>/claim   who evaluates the run (`scaling.system.claims`)
    <sweep>/evaluation/<digest>/<run_id>/log.txt what has been evaluated, a line each

The digest is of the request, so that the same command in a second terminal finds the same claims
and joins in, and another request does not wait for this one. Numbers go to each run's evals.jsonl;
the folder can be removed when no evaluation is running.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from scaling.evaluation import harness
from scaling.evaluation.settings import Settings
from scaling.evaluation.tasks import TASKS, label
from scaling.system.claims import exclusive
from scaling.system.files import disk_errors, read_json, write_json


@dataclass(frozen=True, kw_only=True)
class Request:
    """Tasks with their settings."""

    tasks: tuple[str, ...]
    settings: Settings
    device: str = "cpu"
    """Where the models run."""

    @cached_property
    def labels(self) -> dict[str, dict[str, Any]]:
        """Task -> the settings that are recorded with its numbers."""
        return {
            name: label(name, self.settings)
            if name in TASKS
            else harness.label(name, self.settings)
            for name in self.tasks
        }

    def write(self, sweep_dir: Path) -> Path:
        """The folder of this request in a sweep, made where it is missing."""
        values = {
            "tasks": list(self.tasks),
            "settings": self.settings.to_json(),
            "device": self.device,
        }
        text = json.dumps(values | {"labels": self.labels}, sort_keys=True)
        place = sweep_dir / "evaluation" / hashlib.sha256(text.encode()).hexdigest()[:8]
        with disk_errors(place):
            place.mkdir(parents=True, exist_ok=True)
        with exclusive(place / "request.lock"):  # a second terminal may ask for the same
            if not (place / "request.json").is_file():
                write_json(place / "request.json", values)
        return place

    @staticmethod
    def read(place: Path) -> Request:
        """The request of a folder."""
        values = read_json(place / "request.json")
        return Request(
            tasks=tuple(values["tasks"]),
            settings=Settings.from_json(values["settings"]),
            device=values["device"],
        )
