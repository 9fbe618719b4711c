"""Who trains a run: a lock that dies with its holder, and a heartbeat for those who look on.

A process that trains a run holds `<run>/claim`:

1. An exclusive `flock` on the file. The kernel frees it when the holder ends, however it ends, so
   on one machine a claim is never stale and a stopped process cannot be robbed of its run. What the
   holder starts within `hand_on` (torchrun, `scaling.training.parallel`) holds it as well; other
   processes that it forks, such as those that load data, do not.
2. In it, as JSON: host, process and time, for `linscale status`.
3. Its modification time, renewed every few seconds: the heartbeat. Where file locks do not reach
   other machines (some network file systems), a claim of another host holds as long as its
   heartbeat changes, and is taken over when whoever wants it has seen no change for a minute by a
   clock of its own: clocks of two hosts are never compared, since one may be hours ahead. A holder
   whose heartbeat failed (a stopped process, a network that was gone) looks before its next step
   whether the claim is still its own, and else leaves the run at once, without a word in its record
   (`ClaimLost`). What it was writing meanwhile on another thread looks as well, before it shows
   (`watch`).

The file stays when a claim is given up, empty: removing it would let two processes lock two files
of the same name.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from scaling.system.files import disk_errors

CLAIM = "claim"
HEARTBEAT_SECONDS = 5.0
"""Between two renewals of a claim."""
STALE_SECONDS = 60.0
"""Without a change of its heartbeat, after which the claim of another host counts no more."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The process that has claimed a run."""

    hostname: str
    pid: int
    since: float
    """When, in seconds of the epoch."""


class ClaimLost(BaseException):
    """Another process has taken the run over.

    No `Exception`: nothing on its way may handle it by writing to a run that is another's now.
    """


class StopEvent(Protocol):
    """What a caller passes to ask for a stop: a threading or multiprocessing Event will do."""

    def is_set(self) -> bool: ...


class Claim:
    """A claimed run; give it up with `release` or by leaving the `with` block."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._released = threading.Event()
        self._lost = False
        self._me = Holder(hostname=socket.gethostname(), pid=os.getpid(), since=time.time())
        self._beaten = time.monotonic()
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(asdict(self._me)).encode(), 0)
        self._heart = threading.Thread(target=self._beat, name="claim heartbeat", daemon=True)
        self._heart.start()
        _held.add(self)

    def _beat(self) -> None:
        while not (self._released.wait(HEARTBEAT_SECONDS) or self._lost):
            with suppress(OSError):  # a file server that is away; `check` has the last word
                self._renew()

    def _renew(self) -> bool:
        """Show that the holder lives; False when the claim is another's."""
        self._lost = self._lost or _content(self._descriptor) != self._me
        if not self._lost:
            os.utime(self._descriptor)
            self._beaten = time.monotonic()
        return not self._lost

    def check(self) -> None:
        """Make sure, after a heartbeat that did not come in time, that the run is still claimed.

        Raises:
            ClaimLost: it is another's.
        """
        late = time.monotonic() - self._beaten > 2 * HEARTBEAT_SECONDS
        if self._lost or (late and not self._renew()):
            raise ClaimLost

    def watching(self, stop: StopEvent) -> StopEvent:
        """`stop`, with a `check` whenever it is asked."""
        return _Watched(self, stop)

    def release(self) -> None:
        """Let others claim the run; again does nothing."""
        if not self._released.is_set():
            self._released.set()
            self._heart.join()
            _held.discard(self)
            if not self._lost and _content(self._descriptor) == self._me:
                os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)

    def _drop(self) -> None:
        """In a forked process: the claim is the parent's, and ends with it."""
        self._released = threading.Event()  # the lock of the old one may be held for ever
        self._released.set()
        os.close(self._descriptor)

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class _Watched:
    """A stop event that checks a claim first."""

    def __init__(self, claim: Claim, stop: StopEvent) -> None:
        self._claim, self._stop = claim, stop

    def is_set(self) -> bool:
        self._claim.check()
        return self._stop.is_set()


def claim(run_dir: Path, silent: int | None = None) -> Claim | None:
    """Claim a run; None when another process has it. The directory is made where it is missing.

    A claim of another host is watched from the first call in this process on.

    Args:
        run_dir: of the run.
        silent: a `heartbeat` that the caller knows to have not changed for `STALE_SECONDS`.

    Raises:
        DiskError: the claim cannot be written.
    """
    path = run_dir / CLAIM
    with disk_errors(path):
        run_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if _lock(descriptor) and not _held_by_another_host(descriptor, silent):
                return Claim(descriptor)
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None


def outwait(run_dir: Path) -> Claim | None:
    """As `claim`, but a claim of another host is watched here, for a minute at most, until it shows
    life or has been silent long enough."""
    before = heartbeat(run_dir)
    while (held := claim(run_dir)) is None:
        by = holder(run_dir, glance=False)
        ours = by is not None and by.hostname in (socket.gethostname(), "")
        if ours or heartbeat(run_dir) != before:
            return None
        time.sleep(0.2)
    return held


_held: set[Claim] = set()
_handing_on = False


@contextmanager
def hand_on() -> Iterator[None]:
    """Processes started in the block, without closing descriptors, hold our claims until they end.

    Other forked processes let go of them at once.
    """
    global _handing_on
    _handing_on = True
    descriptors = [claim._descriptor for claim in _held]
    for descriptor in descriptors:
        os.set_inheritable(descriptor, True)
    try:
        yield
    finally:
        _handing_on = False
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)


def _release_in_child() -> None:
    if not _handing_on:
        for claim in _held:
            claim._drop()
    _held.clear()


os.register_at_fork(after_in_child=_release_in_child)


def watch(run_dir: Path) -> Callable[[], None]:
    """A check that nobody has claimed a run since this call; it raises `ClaimLost` if so.

    It reads the claim's file, so that ranks, whose claim is their worker's, can ask as well.
    """
    before = _read_holder(run_dir)

    def check() -> None:
        if _read_holder(run_dir) != before:
            raise ClaimLost

    return check


def _read_holder(run_dir: Path) -> Holder | None:
    try:
        descriptor = os.open(run_dir / CLAIM, os.O_RDONLY)
    except OSError:
        return None
    try:
        return _content(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Take the lock; a file without content is only being looked at (`holder`), so try again."""
    for _ in range(20):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if _content(descriptor) is not None:
                return False
            time.sleep(0.005)
    return False


def holder(run_dir: Path, *, glance: bool = True) -> Holder | None:
    """The process that holds a run now, None when nobody does.

    Args:
        run_dir: of the run.
        glance: judge a claim of another host by the age of its heartbeat, as who looks once must,
            for people; else by whether this process has seen it change, as `claim` does.
    """
    try:
        descriptor = os.open(run_dir / CLAIM, os.O_RDONLY)
    except OSError:
        return None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            # A claim that is being written this moment has no content yet.
            return _content(descriptor) or Holder(hostname="", pid=0, since=time.time())
        held = _looks_alive(descriptor) if glance else _held_by_another_host(descriptor)
        return _content(descriptor) if held else None
    finally:
        os.close(descriptor)


def heartbeat(run_dir: Path) -> int:
    """When a run's claim was last renewed, in nanoseconds of the epoch; 0 if it never was."""
    try:
        return (run_dir / CLAIM).stat().st_mtime_ns
    except OSError:
        return 0


@contextmanager
def exclusive(path: Path, while_waiting: str = "") -> Iterator[None]:
    """Hold a lock file, made where it is missing; the kernel frees it when the process ends.

    Args:
        path: the lock file.
        while_waiting: said on standard error if another process holds it.

    Raises:
        DiskError: the lock file cannot be written.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if while_waiting:
                print(while_waiting, file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


_seen: dict[tuple[int, int], tuple[int, float]] = {}
"""File of a claim -> its last known heartbeat, and our clock when that was new to us."""


def _held_by_another_host(descriptor: int, silent: int | None = None) -> bool:
    """Whether a file that nobody has locked here is a live claim of another host."""
    if not _is_of_another_host(descriptor):
        return False
    stat = os.fstat(descriptor)
    if stat.st_mtime_ns == silent:
        return False
    file = (stat.st_dev, stat.st_ino)
    if _seen.get(file, (0, 0.0))[0] != stat.st_mtime_ns:
        _seen[file] = (stat.st_mtime_ns, time.monotonic())
    return time.monotonic() - _seen[file][1] < STALE_SECONDS


def _looks_alive(descriptor: int) -> bool:
    """The same at a glance, by the clocks of both hosts."""
    age = time.time() - os.fstat(descriptor).st_mtime
    return _is_of_another_host(descriptor) and abs(age) < STALE_SECONDS


def _is_of_another_host(descriptor: int) -> bool:
    claimed = _content(descriptor)
    return claimed is not None and claimed.hostname != socket.gethostname()


def _content(descriptor: int) -> Holder | None:
    try:
        return Holder(**json.loads(os.pread(descriptor, 4096, 0)))
    except (ValueError, TypeError):
        return None
