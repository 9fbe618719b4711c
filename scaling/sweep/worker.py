"""A worker of the local pool: one long-lived process that trains the runs it is handed.

    python -m scaling.sweep.worker SWEEP_DIR MODULE:FUNCTION

Lines of JSON go both ways. The pool writes {"run": config} or {"stop": true} to standard input; the
worker answers {"ready": true} when it is free and {"state": ..., "reason": ...} when a run ends.

A worker keeps nothing that matters: killed at any moment, its claim is freed by the kernel and the
run goes on in another process. When its standard input ends, the pool is gone; the worker saves the
run under way at the next step and ends too. SIGTERM and SIGUSR1 do the same.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any

from linscale.code_search import search_also
from linscale.errors import LinscaleError
from linscale.os_errors import sentence
from scaling.config.run import RunConfig
from scaling.system.claims import ClaimLost, claim

GRACE_SECONDS = 120.0
"""How long a worker without a pool may take to save before it ends regardless."""

TrainFunction = Callable[..., str]
"""`scaling.training.train.train`, or what stands in for it in tests."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an attempt at a run ended."""

    state: str
    """`done`, `diverged`, `preempted`, `failed`, or `busy`: another process has it."""
    reason: str = ""


def attempt(
    config: RunConfig,
    sweep_dir: Path,
    train: TrainFunction,
    stop: threading.Event,
    progress: bool = False,
    silent: int | None = None,
) -> Outcome:
    """Claim a run and train it; whatever goes wrong is an outcome and never an exception.

    `silent`: as in `scaling.system.claims.claim`.
    """
    try:
        held = claim(sweep_dir / config.run_id, silent)
        if held is None:
            return Outcome(state="busy")
        with held:
            watched = held.watching(stop)
            return Outcome(state=train(config, sweep_dir, stop_event=watched, progress=progress))
    except ClaimLost:
        return Outcome(state="busy")
    except LinscaleError as error:
        return Outcome(state="failed", reason=str(error))
    except Exception as error:
        words = sentence(error) if isinstance(error, OSError) else None
        if words is None:
            traceback.print_exc()
        return Outcome(state="failed", reason=words or f"{type(error).__name__}: {error}")


def find(name: str) -> TrainFunction:
    """The function that `MODULE:FUNCTION` names."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def main() -> None:
    """Serve the pool at the other end of standard input and output."""
    search_also()
    sweep_dir, train = Path(sys.argv[1]), find(sys.argv[2])
    # What libraries print must not end up between the answers, nor child processes read orders.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    incoming = os.fdopen(os.dup(0), "rb", buffering=0)  # unbuffered: no lock to hold at exit
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    orders: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    stop = threading.Event()

    def end(*_: object) -> None:
        stop.set()
        orders.put(None)

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, end)
    threading.Thread(target=_listen, args=(incoming, orders, end), daemon=True).start()

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")

    try:
        while not stop.is_set():
            answer({"ready": True})
            order = orders.get()
            if order is None or stop.is_set():
                break
            config, silent = RunConfig.from_json(order["run"]), order.get("silent")
            outcome = attempt(config, sweep_dir, train, stop, silent=silent)
            answer(asdict(outcome))
    except BrokenPipeError:
        os._exit(1)  # the pool is gone: there is nobody to answer, at exit neither


def _listen(
    incoming: RawIOBase,
    orders: queue.SimpleQueue[dict[str, Any] | None],
    end: Callable[[], None],
) -> None:
    """Take orders until they end, which they do when the pool dies."""
    for line in incoming:
        order = json.loads(line)
        if "stop" in order:
            end()
        else:
            orders.put(order)
    end()
    # A step that hangs would outlive the pool; the process must not.
    timer = threading.Timer(GRACE_SECONDS, os._exit, (1,))
    timer.daemon = True
    timer.start()


if __name__ == "__main__":
    main()
