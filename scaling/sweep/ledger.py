"""What an adaptive sweep has decided, and on which data: `adaptive.jsonl` in its folder.

    {"kind": "settings", "settings": {...}, "candidates": [...]}      what was asked, of what
    {"kind": "decision", "number": 1, "state": {...}, "points": [...], "decision": {...}}

A decision is a function of the last settings before it, of its `state` and of its `points`, all of
which are written down at full precision: the same lines give the same decisions. Asking for other
targets or another budget adds a line of settings; what was spent before still counts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linscale.errors import LinscaleError
from linscale.json_reader import parse_lines
from scaling.system.files import append_line, replacing, sync

FILE = "adaptive.jsonl"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One decision with all that it rests on."""

    number: int
    settings: dict[str, Any]
    candidates: list[dict[str, Any]]
    state: dict[str, Any]
    points: list[dict[str, Any]]
    decision: dict[str, Any]

    @property
    def runs(self) -> list[str]:
        """That were to be trained."""
        return list(self.decision["runs"])


class Ledger:
    """The decisions of a sweep."""

    def __init__(self, sweep_dir: Path) -> None:
        """
        Raises:
            LinscaleError: the file is damaged.
        """
        self.path = sweep_dir / FILE
        self.entries: list[Entry] = []
        self._asked: tuple[dict[str, Any], list[dict[str, Any]]] | None = None
        if not self.path.exists():
            return
        lines, torn = parse_lines(self.path.read_bytes())
        if torn:  # killed while it was written: the decision was not acted on
            with replacing(self.path) as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
        try:
            for line in lines:
                self._take(line)
        except (KeyError, TypeError) as error:
            raise LinscaleError(
                f"{self.path}: is damaged ({error!r}); restore it, or move it away to begin the "
                "decisions anew."
            ) from error

    @property
    def spent(self) -> float:
        """FLOPs of all runs that were chosen."""
        return sum(float(entry.decision["cost"]) for entry in self.entries)

    def ask(self, settings: dict[str, Any], candidates: list[dict[str, Any]]) -> None:
        """What decisions from now on answer; written where it is new."""
        asked = json.loads(json.dumps([settings, candidates]))
        if self._asked is None or [*self._asked] != asked:
            self._write({"kind": "settings", "settings": settings, "candidates": candidates})

    def decide(
        self, state: dict[str, Any], points: list[dict[str, Any]], decision: dict[str, Any]
    ) -> Entry:
        """Write a decision down, durably, before it is acted on."""
        self._write({"kind": "decision", "number": len(self.entries) + 1, "state": state,
                     "points": points, "decision": decision})  # fmt: skip
        return self.entries[-1]

    def _write(self, line: dict[str, Any]) -> None:
        append_line(self.path, json.dumps(line, allow_nan=False))
        sync(self.path)
        self._take(json.loads(json.dumps(line)))

    def _take(self, line: dict[str, Any]) -> None:
        if line["kind"] == "settings":
            self._asked = line["settings"], line["candidates"]
            return
        if self._asked is None:
            raise KeyError("settings")
        settings, candidates = self._asked
        self.entries.append(
            Entry(
                number=line["number"],
                settings=settings,
                candidates=candidates,
                state=line["state"],
                points=line["points"],
                decision=line["decision"],
            )
        )
