"""Work on a thread, one piece at a time, whose errors are not lost.

A checkpoint is written while training goes on: the calling thread copies the tensors, the thread
here hashes, writes and flushes them. Whoever needs the result, or the next piece of work, waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future


class Background:
    """Runs one function at a time."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin `work` once the work before it has ended.

        Raises:
            BaseException: what the work before it has raised.
        """
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(work,), name="checkpoint")
        self._thread.start()  # not a daemon: the interpreter waits for it

    def wait(self) -> None:
        """Return when nothing is under way.

        Raises:
            BaseException: what the work has raised; once.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error


def begin(work: Callable[[], None]) -> Future[None]:
    """Begin work on a thread that nobody has to wait for: it ends with the process.

    Returns:
        Its end, which any thread may wait for, and which raises what the work has raised.
    """
    end: Future[None] = Future()

    def run() -> None:
        try:
            work()
        except BaseException as error:
            end.set_exception(error)
        else:
            end.set_result(None)

    threading.Thread(target=run, name="begun", daemon=True).start()
    return end
