"""Passes metrics.jsonl on to a logger from a thread of its own, as fast as the logger takes it.

The thread reads the file, so that nothing is kept in memory and nothing is lost: a logger that
fails is tried again after a while that doubles, and gets what it missed. What it has got is noted
in `<run>/logged-NAME.json`, from where a later session, or `linscale log-to`, goes on. A logger
that hangs holds up the end of a session for `END_SECONDS`, and nothing else.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linscale.errors import LinscaleError
from linscale.texts import clean
from scaling.record.record import RunRecord
from scaling.system.claims import ClaimLost
from scaling.system.files import DiskError, read_json, write_json
from scaling.training.loggers import check_installed, make, pass_on

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

log = logging.getLogger("linscale")

END_SECONDS = 10.0
"""For the last lines, at the end of a session."""
RETRY_SECONDS = (1.0, 60.0)
"""Before the first and before later attempts, at most."""
NOTE_EVERY = 100
"""Lines after which what was sent is noted."""

ENDS = {"done": "success", "diverged": "failed", "failed": "failed"}
"""State of a run -> what Lightning's loggers call it; others are `KILLED`, as MLflow has it."""

Place = tuple[int, int, int]
"""Segment, step, and whether it is the validation line, of a line of metrics.jsonl."""


class Sender:
    """Sends the lines of a run's metrics.jsonl that a logger does not have yet."""

    def __init__(self, name: str, record: RunRecord) -> None:
        self._name, self._record = name, record
        self._notes = record.path / f"logged-{name}.json"
        notes = read_json(self._notes)
        sent, known = notes.get("sent"), notes.get("run_id")
        self.sent: Place = tuple(sent) if isinstance(sent, list) and len(sent) == 3 else (-1, 0, 0)
        self._known = known if isinstance(known, str) else None
        self._described = notes.get("described") is True
        self._logger: Logger | None = None
        self._read: tuple[int, int] = (0, 0)
        """File number and bytes of metrics.jsonl that are dealt with."""

    def send(self) -> None:
        """Send what is new. Raises whatever the logger raises; nothing is lost by that."""
        logger = self._logger = self._logger or make(self._name, self._record, self._known)
        if not self._described:
            logger.log_hyperparams(self._record.config.to_json())
            self._described = True
            if self._name == "mlflow":
                self._known = str(logger.version)
            self._note()
        try:
            for number, (line, end) in enumerate(self._new_lines(), start=1):
                place = self._place(line)
                if place is not None and place > self.sent:
                    pass_on(logger, line)
                    self.sent = place
                self._read = (self._read[0], end)
                if number % NOTE_EVERY == 0:
                    self._note()
            logger.save()
        finally:
            self._note()

    def finish(self, status: str) -> None:
        """How the run ended, for the logger."""
        if self._logger is not None:
            self._logger.finalize(status)

    @property
    def missing(self) -> int:
        """Lines that the logger does not have."""
        self._read = (0, 0)
        places = [self._place(line) for line, _ in self._new_lines()]
        return sum(place is not None and place > self.sent for place in places)

    def _new_lines(self) -> list[tuple[dict[str, Any], int]]:
        """Whole lines beyond what was read, each with its end in the file.

        A file that was replaced is read from its beginning. Lines that were cut off come again with
        the same numbers, and are not sent again; but after a rewind they are others.
        """
        path = self._record.path / "metrics.jsonl"
        try:
            with path.open("rb") as file:
                number = _number(path)
                replaced = self._read[0] not in (0, number)
                start = self._read[1] if self._read[0] == number else 0
                file.seek(start)
                content = file.read()
        except OSError:
            return []
        self._read = (number, start)
        found: list[tuple[dict[str, Any], int]] = []
        for raw in content.splitlines(keepends=True):
            if not raw.endswith(b"\n"):
                break
            start += len(raw)
            with suppress(ValueError):
                found.append((json.loads(raw), start))
        if replaced and self._record.config.divergence.policy == "rewind":
            last = self._place(found[-1][0]) if found else None
            self.sent = min(self.sent, last or (-1, 0, 0))
        return found

    def _place(self, line: Any) -> Place | None:
        try:
            segment, step = self._record.position(line)
            return segment, step, int(line["split"] == "validation")
        except (StopIteration, KeyError, TypeError):
            return None

    def _note(self) -> None:
        notes = {"sent": list(self.sent), "run_id": self._known, "described": self._described}
        with suppress(DiskError):
            write_json(self._notes, notes)


class Follower:
    """A `Sender` on a thread."""

    def __init__(self, name: str, record: RunRecord) -> None:
        self._name, self._record = name, record
        self._sender = Sender(name, record)
        self._new, self._caught_up = threading.Event(), threading.Event()
        self._status: str | None = None
        self._deadline = float("inf")
        self._thread: threading.Thread | None = None

    def hear(self, line: dict[str, Any]) -> None:
        """There is a new line."""
        self._new.set()
        self._begin()

    def end(self, status: str) -> None:
        """No line comes any more.

        Args:
            status: how the run ended, for `Sender.finish`; "" where it is another process's now.
        """
        self._status, self._deadline = status, time.monotonic() + END_SECONDS
        self._new.set()
        if status:
            self._begin()

    def wait(self) -> None:
        """Return when the logger has everything, or its time is over."""
        if self._thread is None:
            return
        self._thread.join(max(0.0, self._deadline - time.monotonic()) if self._status else 0.0)
        if self._status and not self._caught_up.is_set():
            self._say(
                f"loggers={self._name}: not all metrics have arrived; they are in metrics.jsonl, "
                f"and `linscale log-to {self._name} {self._record.path}` sends them"
            )

    def _begin(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    def _run(self) -> None:
        pause, told = RETRY_SECONDS[0], False
        while True:
            self._new.wait()
            self._new.clear()
            status = self._status  # before sending: what is sent then is all
            if status == "":
                return
            try:
                self._sender.send()
                if status is not None:
                    self._sender.finish(status)
                    self._caught_up.set()
                    return
                if told:
                    self._say(f"loggers={self._name}: works again, and has got what it missed")
                pause, told = RETRY_SECONDS[0], False
            except (
                BaseException
            ) as error:  # a tracker must never end a run, not by SystemExit either
                if not told:
                    what = clean(f"{type(error).__name__}: {error}", 200)
                    self._say(
                        f"loggers={self._name}: does not work now ({what}); the run goes on, and "
                        "what is missed is sent later"
                    )
                told = True
                if time.monotonic() + pause > self._deadline:
                    return
                self._new.wait(pause) if status is None else time.sleep(pause)
                self._new.set()
                pause = min(2 * pause, RETRY_SECONDS[1])

    def _say(self, text: str) -> None:
        log.warning(text)
        with suppress(DiskError):
            self._record.log(text)


@contextmanager
def attach(record: RunRecord) -> Iterator[None]:
    """Within the block, the loggers that the run's configuration names hear its metrics.

    Raises:
        LinscaleError: the package of one is not installed.
    """
    check_installed(record.config.loggers)
    followers = [Follower(name, record) for name in record.config.loggers]
    record.listeners = [follower.hear for follower in followers]
    status = "failed"
    try:
        yield
        status = ENDS.get(record.state, "KILLED")
    except (KeyboardInterrupt, ClaimLost) as error:
        status = "" if isinstance(error, ClaimLost) else "KILLED"
        raise
    finally:
        record.listeners = []
        _end(followers, status)


def _end(followers: list[Follower], status: str) -> None:
    """Give every logger a while for the last lines; none of a run that is another's now."""
    for follower in followers:
        follower.end(status)
    for follower in followers:
        follower.wait()


def log_to(name: str, record: RunRecord) -> int:
    """Send a logger all lines of a run that it lacks, now; returns how many.

    Raises:
        LinscaleError: it is not installed, or does not take them.
    """
    check_installed([name])
    sender = Sender(name, record)
    missing = sender.missing
    sender = Sender(name, record)
    try:
        sender.send()
        state = record.state
        if state != "planned":  # `running` too: who sends has the claim, so that the run is dead
            sender.finish(ENDS.get(state, "KILLED"))
    except Exception as error:
        raise LinscaleError(
            f"loggers={name}: does not take the metrics of {record.path.name} "
            f"({clean(f'{type(error).__name__}: {error}', 200)}); give the command again when it "
            "does: it goes on where it was."
        ) from error
    return missing


def _number(path: Path) -> int:
    """The file's number on its disk: another one when it was replaced."""
    return path.stat().st_ino
