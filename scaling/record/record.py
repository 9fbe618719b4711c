"""The record of one run: a directory of plain files, the only thing that analysis reads.

    runs/<sweep>/<run_id>/
        config.json       the RunConfig, with "schema", "run_id" and "sweep"
        accounting.json   parameters by group, training FLOPs per token in both conventions, and
                          how the architecture is drawn
        tokenizer.json    the tokenizer, where it is a file (trained here or brought along)
        environment.json  git revisions, versions, machine, fingerprint of the data
        status.json       state, reason, progress and a heartbeat; replaced as a whole
        metrics.jsonl     one line a recorded step: loss, rate, gradient norm, speed
        milestones.jsonl  one line a horizon: validation loss and the checkpoint's SHA-256
        origin.json       the run whose trunk this one went on from, see scaling.record.trunk
        rewinds.jsonl     one line a return to a checkpoint after a loss spike, see
                          scaling.training.guard
        log.txt           the same for people
        checkpoints/      see scaling.record.checkpoints

JSON lines are only appended to. A run that resumes first drops the lines after the step that it
resumes from, so that the files of a run that was killed become those of one that was not. Training
tokens are the clock: `flops` of a line is tokens times the model's FLOPs per token, that is of the
path from initialisation, not of other branches.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from linscale.json_reader import as_list, parse_lines
from linscale.sealed import LINE_SEAL, is_whole, sealed
from models.accounting import Convention, summary
from models.config import ConfigError
from scaling.config.objectives import NEXT_TOKEN
from scaling.config.run import RunConfig
from scaling.config.schedule import Segment, segments
from scaling.data.json_tokenizer import FILES, KEPT
from scaling.data.tokenizers import JsonTokenizer, Tokenizer
from scaling.plan.costs import stages
from scaling.record.head import SCHEMA, RecordError, State, label, read_head
from scaling.system.files import (
    append_line,
    read_json,
    remove_leftovers,
    replacing,
    sync,
    write_json,
)

ORIGIN = "origin.json"
"""From which run the beginning of this one was taken over (`scaling.record.trunk`)."""
TOKENIZER = "tokenizer.json"
"""The tokenizer of a run, in its directory."""
TOKENIZER_CONFIG = "tokenizer_config.json"
"""Beside it: which token ends a document."""


def copy_files(folder: Path, to: Path) -> None:
    """Copy the files of a tokenizer as they are."""
    to.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if (folder / name).is_file():
            with replacing(to / name) as file:
                file.write((folder / name).read_bytes())


RECORDS = 500
"""About how many training lines metrics.jsonl gets on the longest path."""


def read_states(sweep_dir: Path) -> dict[str, State]:
    """run_id -> state, for every run directory of a sweep that has a readable status."""
    states: dict[str, State] = {}
    for path in sorted(Path(sweep_dir).glob("*/status.json")):
        head = read_head(path.parent)
        if "state" in head.status:
            states[path.parent.name] = head.state
    return states


class RunRecord:
    """Reads and writes the directory of one run. One process writes at a time."""

    def __init__(self, config: RunConfig, sweep_dir: Path) -> None:
        """Open the directory of a run, or create it.

        Raises:
            RecordError: the directory holds another run, or its config.json cannot be read.
            DiskError: it cannot be written.
        """
        self.config = config
        self.path = Path(sweep_dir) / config.run_id
        self.segments: tuple[Segment, ...] = segments(config)
        self.accounting: dict[str, Any] = {**summary(config.model, config.data.sequence_length)}
        if any(stage.objective != NEXT_TOKEN for stage in config.objectives):
            self.accounting["stages"] = stages(config)
        self.listeners: list[Callable[[dict[str, Any]], None]] = []
        """Told of every line of metrics.jsonl."""
        self._check_owner()

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def state(self) -> State:
        """State in status.json; `planned` when there is none or it cannot be read."""
        return read_head(self.path).state

    @property
    def reason(self) -> str:
        """Why the run is in its state, for people; empty when there is nothing to say."""
        return read_head(self.path).reason

    @property
    def environment(self) -> dict[str, Any]:
        """environment.json as the last session left it; empty before the first."""
        return read_json(self.path / "environment.json")

    @property
    def record_every(self) -> int:
        """Steps between two training lines; the last step of a segment has one as well."""
        return max(1, round(self.config.steps / RECORDS))

    def flops(self, tokens: int, convention: Convention = "exact") -> float:
        """Training FLOPs of the first `tokens` of the run's path."""
        first = min(tokens, self.config.prelude_steps * self.config.tokens_per_step)
        after = (tokens - first) * self.flops_per_token(False, convention)
        return first * self.flops_per_token(True, convention) + after

    def flops_per_token(self, prelude: bool, convention: Convention = "exact") -> float:
        """Training FLOPs of a token, before the run's schedule starts or after."""
        if stages := self.accounting.get("stages"):
            return stages[("transfer_" if prelude else "") + "flops_per_token"][convention]
        return self.accounting["flops_per_token"][convention]["total"]

    def create(self) -> None:
        """Write what is known before training: configuration and accounting."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.path)
        write_json(self.path / "config.json", label(self.config, self.path))
        write_json(self.path / "accounting.json", self.accounting)

    def write_environment(
        self, environment: dict[str, Any], data_change: dict[str, Any] | None = None
    ) -> None:
        """Replace environment.json: what the run was last continued on.

        Revisions of earlier sessions stay listed in `git_revisions`, so that a run which was not
        trained by one version of the code can be told; so do changes of its data, in
        `data_changes` (`scaling.record.data_identity`).
        """
        before = self.environment
        revision = environment["git_revision"], environment["git_dirty_sha256"]
        earlier = [r for r in as_list(before.get("git_revisions")) if isinstance(r, list)]
        revisions = [*earlier, *([] if list(revision) in earlier else [list(revision)])]
        changes = [*as_list(before.get("data_changes")), *([data_change] if data_change else [])]
        history = {"git_revisions": revisions} | ({"data_changes": changes} if changes else {})
        write_json(self.path / "environment.json", environment | history)

    def write_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Keep a tokenizer that is a file beside the weights that are of no use without it."""
        if isinstance(tokenizer, JsonTokenizer):
            # The end of a document first: beside a tokenizer.json that is there, it is complete.
            with replacing(self.path / TOKENIZER_CONFIG) as file:
                file.write(tokenizer.to_config().encode())
            with replacing(self.path / TOKENIZER) as file:
                file.write(tokenizer.to_json().encode())
            if tokenizer.folder is not None and tokenizer.folder != self.path / KEPT:
                copy_files(tokenizer.folder, self.path / KEPT)

    def write_status(
        self,
        state: State,
        *,
        reason: str = "",
        tokens: int | None = None,
        loss: float | None = None,
        tokens_per_second: float | None = None,
        eta_seconds: float | None = None,
        mfu: float | None = None,
        data_wait: float | None = None,
        memory_peak: int | None = None,
    ) -> None:
        """Replace status.json; tokens, loss and memory left out keep their last values.

        Args:
            tokens: trained tokens over all segments, decay branches included.
            loss: last training loss.
            mfu: model FLOPs utilisation.
            data_wait: share of the time that training waits for data.
            memory_peak: bytes, of rank 0 (`scaling.record.environment.memory_peak`).
        """
        before = read_json(self.path / "status.json")
        trained = sum(s.last - s.first for s in self.segments) * self.config.tokens_per_step
        write_json(
            self.path / "status.json",
            {
                "state": state,
                "reason": reason,
                "tokens": read_head(self.path).tokens if tokens is None else tokens,
                "tokens_total": trained,
                "loss": before.get("loss") if loss is None else loss,
                "tokens_per_second": tokens_per_second,
                "eta_seconds": eta_seconds,
                "mfu": mfu,
                "data_wait": data_wait,
                "memory_peak": before.get("memory_peak") if memory_peak is None else memory_peak,
                "updated": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "hostname": socket.gethostname(),
                "pid": os.getpid(),
            },
        )

    def log(self, text: str) -> None:
        """Append a dated line to log.txt."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
        append_line(self.path / "log.txt", f"{stamp}  {text}")

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Append to metrics.jsonl, and tell the listeners."""
        append_line(self.path / "metrics.jsonl", json.dumps(line, allow_nan=False))
        for listener in self.listeners:
            listener(line)

    def append_milestone(self, line: dict[str, Any]) -> None:
        """Append to milestones.jsonl, durably, with a hash of the line."""
        path = self.path / "milestones.jsonl"
        append_line(path, json.dumps(sealed(line, LINE_SEAL), allow_nan=False))
        sync(path)

    def append_rewind(self, line: dict[str, Any]) -> None:
        """Append to rewinds.jsonl, durably."""
        path = self.path / "rewinds.jsonl"
        append_line(path, json.dumps(line, allow_nan=False))
        sync(path)

    def rewinds(self) -> list[dict[str, Any]]:
        """The lines of rewinds.jsonl; `truncate` has cut off a torn one."""
        path = self.path / "rewinds.jsonl"
        return parse_lines(path.read_bytes())[0] if path.exists() else []

    def sync_metrics(self) -> None:
        """Make metrics.jsonl durable, so that a checkpoint never knows more than the metrics."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            sync(path)

    def truncate(self, index: int, step: int) -> None:
        """Drop lines written after `step` of segment number `index`, and a torn last line.

        Raises:
            RecordError: a line before that point cannot be read or is missing.
        """
        ends = {s.last: i for i, s in enumerate(self.segments) if s.milestone}
        metrics = _filter_lines(
            self.path / "metrics.jsonl", lambda line: self.position(line) <= (index, step)
        )
        milestones = _filter_lines(
            self.path / "milestones.jsonl",
            lambda line: is_whole(line, LINE_SEAL) and ends[line["step"]] < index,
        )
        _filter_lines(
            self.path / "rewinds.jsonl",
            lambda line: (line["segment"], line["to"]) <= (index, step),
        )
        last = self.position(metrics[-1]) if metrics else None
        if last != self._last_recorded(index, step):
            self._refuse_incomplete("metrics.jsonl", step)
        if len(milestones) != sum(s.milestone for s in self.segments[:index]):
            self._refuse_incomplete("milestones.jsonl", step)

    def position(self, line: dict[str, Any]) -> tuple[int, int]:
        """Segment number and step of a line of metrics.jsonl.

        Raises:
            StopIteration: it is of no segment of this run.
        """
        name, step = line["segment"], line["step"]
        parts = enumerate(self.segments)
        return next((i, step) for i, s in parts if s.name == name and s.first < step <= s.last)

    def _last_recorded(self, index: int, step: int) -> tuple[int, int] | None:
        """Position of the last line that is written up to `step` of segment `index`.

        Lines that were taken over from another run are where that one wrote them.
        """
        taken = read_json(self.path / ORIGIN).get("last")
        origin = (int(taken[0]), int(taken[1])) if taken and len(taken) == 2 else None
        own = self._last_by_interval(index, step)
        return origin if origin is not None and (own is None or own < origin) else own

    def _last_by_interval(self, index: int, step: int) -> tuple[int, int] | None:
        if index < len(self.segments):
            segment = self.segments[index]
            last = step if step == segment.last else step // self.record_every * self.record_every
            if last > segment.first:
                return index, last
        return (index - 1, self.segments[index - 1].last) if index else None

    def _refuse_incomplete(self, name: str, step: int) -> NoReturn:
        raise RecordError(
            f"{self.path / name}: ends before the checkpoint that the run goes on from (step "
            f"{step}). Lines were lost or removed; restore the file, or delete {self.path} to "
            "start this run again."
        )

    def _check_owner(self) -> None:
        path = self.path / "config.json"
        if not path.exists():
            return
        remedy = f"move {self.path} away, or give the sweep another directory with --out."
        head = read_head(self.path)
        schema = head.labels.get("schema")
        if schema != SCHEMA:
            raise RecordError(
                f"{path}: not a run configuration of schema {SCHEMA} (schema={schema!r}); {remedy}"
            )
        try:
            run_id = RunConfig.from_json(head.config).run_id
        except ConfigError as error:
            raise RecordError(f"{path}: {error} It belongs to another run; {remedy}") from error
        if run_id != self.path.name:
            raise RecordError(
                f"{path}: holds the configuration of {run_id}, not of {self.path.name}; {remedy}"
            )


def _filter_lines(path: Path, is_kept: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """Cut a file of JSON lines before the first line that is not kept; returns the kept ones."""
    if not path.exists():
        return []
    content = path.read_bytes()
    *lines, _ = content.split(b"\n")
    kept: list[dict[str, Any]] = []
    size = 0
    for number, line in enumerate(lines, start=1):
        value = _parse(line, is_kept)
        if value is None:
            if any(_parse(later, is_kept) for later in lines[number:]):
                raise RecordError(
                    f"{path}, line {number}: cannot be read, and later lines can. The file was "
                    "damaged or edited; restore it, or delete the run's directory to start again."
                )
            break
        kept.append(value)
        size += len(line) + 1
    if size < len(content):
        with replacing(path) as file:
            file.write(content[:size])
    return kept


def _parse(line: bytes, is_kept: Callable[[dict[str, Any]], bool]) -> dict[str, Any] | None:
    """The line's content if it can be read and is kept."""
    try:
        value = json.loads(line)
        return value if is_kept(value) else None
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration, RecursionError):
        return None
