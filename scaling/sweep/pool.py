"""The local pool: worker processes, and who trains what next.

The pool hands runs to `scaling.sweep.worker` processes, in the order given. A worker that dies is
replaced and its run goes on from its last checkpoint; so is one whose heartbeat stops. A run that
kills its worker again and again without getting further has failed. A run that another launch has
claimed is looked at again every few seconds, and taken over if it is given up. The first interrupt
lets every run save at its next step, the second kills.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linscale.code_search import child_environment, python_command
from linscale.errors import LinscaleError
from scaling.record.head import ENDED, read_head
from scaling.record.record import RunRecord
from scaling.sweep.display import SweepDisplay
from scaling.sweep.task import Task, waits_for
from scaling.system.claims import Holder, claim, heartbeat, holder
from scaling.system.orphans import KERNEL_TELLS

MOST_DEATHS = 3
"""Workers that a run may kill without getting further."""
RETRY_SECONDS = 2.0
"""Between two looks at a run that another launch has claimed."""
GROUP_SECONDS = 60.0
"""How long processes that a dead worker started may take to end."""
SILENT_SECONDS = 300.0
"""Without a heartbeat of its claim, after which a worker is taken for one that hangs."""
TICK_SECONDS = 0.2


@dataclass(kw_only=True)
class _Slot:
    """A place for one worker process."""

    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[str] | None = None
    reader: threading.Thread | None = None
    ready: bool = False
    task: Task | None = None
    failed_starts: int = 0


class Pool:
    """Runs the tasks of a sweep in worker processes."""

    def __init__(
        self,
        tasks: list[Task],
        sweep_dir: Path,
        environments: list[dict[str, str]],
        train: str,
        display: SweepDisplay,
    ) -> None:
        """
        Args:
            tasks: the runs, in the order in which they are begun; their state is kept up to date.
            sweep_dir: directory of the sweep.
            environments: one worker each, with these variables on top of our own.
            train: `MODULE:FUNCTION` that trains one run.
            display: shows what happens.
        """
        self._tasks = tasks
        self._sweep_dir, self._train, self._display = sweep_dir, train, display
        self._slots = [
            _Slot(environment=extra, log=sweep_dir / f"worker-{i}.log")
            for i, extra in enumerate(environments)
        ]
        self._answers: queue.SimpleQueue[tuple[_Slot, int, dict[str, Any]]] = queue.SimpleQueue()
        self._interrupts = 0

    def run(self) -> None:
        """Until every task is final, or an interrupt has been obeyed.

        Raises:
            LinscaleError: workers end before they can take a run.
        """
        asked = False
        with self._signals():
            try:
                while self._busy():
                    if self._interrupts and not asked:
                        asked = True
                        self._display.say(
                            "stopping: every run saves at its next step; interrupt again to kill"
                        )
                        for slot in self._slots:
                            self._send(slot, {"stop": True})
                    if self._interrupts > 1:
                        break
                    if not asked:
                        self._look_elsewhere()
                        self._fill()
                    self._listen(TICK_SECONDS)
                    self._kill_silent()
                    self._reap()
                    self._display.refresh()
            finally:
                self._end_workers()

    def _busy(self) -> bool:
        if self._interrupts:
            return any(slot.process is not None for slot in self._slots)
        return not all(task.final for task in self._tasks)

    def _look_elsewhere(self) -> None:
        """Runs that another launch had: ended, still held, or free for us."""
        for task in self._tasks:
            if task.state != "elsewhere" or time.monotonic() < task.retry_at:
                continue
            task.retry_at = time.monotonic() + RETRY_SECONDS
            run_dir = self._sweep_dir / task.run_id
            held = holder(run_dir, glance=False)
            if held is not None:
                self._tell(task, held)
            else:
                task.silent = heartbeat(run_dir)
                head = read_head(run_dir)
                if head.state in (*ENDED, "failed"):
                    self._finish(task, head.state, head.reason)
                else:
                    task.state = "waiting"

    def _tell(self, task: Task, held: Holder) -> None:
        """Say once whom a run waits for."""
        if not task.told:
            task.told = True
            self._display.say(waits_for(task, held))

    def _fill(self) -> None:
        """Give free workers the next run, and start workers that are missing."""
        waiting = deque(task for task in self._tasks if task.state == "waiting")
        for slot in self._slots:
            if slot.ready and waiting:
                task = waiting.popleft()
                slot.task, slot.ready, task.state = task, False, "running"
                task.beat = -1
                self._send(slot, {"run": task.config.to_json(), "silent": task.silent})
        starting = sum(s.process is not None and s.task is None for s in self._slots)
        for slot in self._slots:
            if slot.process is None and len(waiting) > starting:
                self._start(slot)
                starting += 1

    def _start(self, slot: _Slot) -> None:
        with slot.log.open("ab") as log:
            slot.process = subprocess.Popen(
                python_command("scaling.sweep.worker", str(self._sweep_dir), self._train),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=child_environment(slot.environment),
                start_new_session=True,  # an interrupt at the terminal is the pool's to handle
            )
        slot.ready = False
        slot.reader = threading.Thread(target=self._read, args=(slot, slot.process), daemon=True)
        slot.reader.start()

    def _read(self, slot: _Slot, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines, suppress(ValueError):
            for line in lines:
                self._answers.put((slot, process.pid, json.loads(line)))

    def _send(self, slot: _Slot, message: dict[str, Any]) -> None:
        """To a worker; one that has died is found by `_reap`."""
        if slot.process is not None and slot.process.stdin is not None:
            with suppress(BrokenPipeError):
                slot.process.stdin.write(json.dumps(message) + "\n")
                slot.process.stdin.flush()

    def _listen(self, seconds: float) -> None:
        """Handle the answers that have come, waiting so long for the first."""
        while True:
            try:
                slot, pid, message = self._answers.get(seconds > 0, seconds)
            except queue.Empty:
                return
            seconds = 0
            if slot.process is None or slot.process.pid != pid:
                continue
            if "ready" in message:
                slot.ready, slot.failed_starts = True, 0
            elif slot.task is not None:
                task, slot.task = slot.task, None
                self._take_answer(task, message["state"], message["reason"])

    def _take_answer(self, task: Task, state: str, reason: str) -> None:
        if state == "busy":
            task.state, task.retry_at = "elsewhere", time.monotonic() + RETRY_SECONDS
        elif state == "preempted" and not self._interrupts:
            task.state = "waiting"  # somebody stopped the worker, not the sweep
        else:
            self._finish(task, state, reason or read_head(self._sweep_dir / task.run_id).reason)

    def _finish(self, task: Task, state: str, reason: str) -> None:
        task.state, task.reason = state, reason
        self._display.show_end(task)

    def _kill_silent(self) -> None:
        """Kill workers whose claim is not renewed any more: they are stopped, or hang.

        Those of a launch that has died are among them: they could not see it die.
        """
        now = time.monotonic()  # which stands still while the machine sleeps
        for task in self._tasks:
            if task.state not in ("running", "elsewhere"):
                continue
            beat = heartbeat(self._sweep_dir / task.run_id)
            if beat != task.beat:
                task.beat, task.beat_seen = beat, now
            elif now - task.beat_seen > SILENT_SECONDS:
                task.beat_seen = now
                pid = self._worker(task)
                if pid is not None:
                    self._display.say(
                        f"{task.run_id}: no heartbeat of its worker (process {pid}) for "
                        f"{SILENT_SECONDS:.0f} seconds; it is killed"
                    )
                    with suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, signal.SIGKILL)

    def _worker(self, task: Task) -> int | None:
        """The worker that has a run, of this pool or of another one on this machine.

        A process that holds a run without being a worker is not ours to judge: somebody may have
        stopped it at a terminal. Workers lead sessions of their own.
        """
        for slot in self._slots:
            if slot.task is task and slot.process is not None:
                return slot.process.pid
        held = holder(self._sweep_dir / task.run_id)
        if held is None or held.hostname != socket.gethostname():
            return None
        with suppress(ProcessLookupError):
            return held.pid if os.getsid(held.pid) == held.pid else None
        return None

    def _reap(self) -> None:
        """Deal with workers that have ended."""
        for slot in self._slots:
            process = slot.process
            if process is None or process.poll() is None:
                continue
            assert slot.reader is not None
            slot.reader.join(1.0)  # its last answer counts
            self._listen(0)
            self._close(slot)
            task, slot.task = slot.task, None
            if task is not None:
                self._take_death(task, process.returncode)
            elif not slot.ready and not self._interrupts:
                slot.failed_starts += 1
                if slot.failed_starts >= MOST_DEATHS:
                    raise LinscaleError(
                        f"the workers of the pool end before they can train (exit status "
                        f"{process.returncode}); {slot.log} ends with: {_last_line(slot.log)}"
                    )

    def _take_death(self, task: Task, status: int) -> None:
        """A worker ended in the middle of a run."""
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        tokens = read_head(self._sweep_dir / task.run_id).tokens
        task.deaths = task.deaths + 1 if tokens <= task.reached else 1
        task.reached = max(task.reached, tokens)
        if self._interrupts:
            task.state = "waiting"
        elif task.deaths < MOST_DEATHS:
            task.state = "waiting"
            self._display.say(f"{task.run_id}: its worker ended ({how}); another one continues")
        else:
            reason = (
                f"its worker ended {task.deaths} times in a row ({how}) without getting further; "
                "if memory ran out, lower parallel.micro_batch_sequences or --jobs"
            )
            held = claim(self._sweep_dir / task.run_id)
            if held is not None:
                with held, suppress(LinscaleError):
                    RunRecord(task.config, self._sweep_dir).write_status("failed", reason=reason)
            self._finish(task, "failed", reason)

    def _end_workers(self) -> None:
        """Close the workers' standard input, which ends idle ones; kill what does not end."""
        deadline = time.monotonic() + (10.0 if self._interrupts <= 1 else 0.0)
        for slot in self._slots:
            if slot.process is not None and slot.process.stdin is not None:
                with suppress(BrokenPipeError):
                    slot.process.stdin.close()
        for slot in self._slots:
            if slot.process is not None:
                with suppress(subprocess.TimeoutExpired):
                    slot.process.wait(max(0.0, deadline - time.monotonic()))
                self._close(slot)

    def _close(self, slot: _Slot) -> None:
        """Forget a worker, killing it if it is alive, and end the processes that it started."""
        assert slot.process is not None
        if slot.process.poll() is None:
            slot.process.kill()
            slot.process.wait()
        _end_group(slot.process.pid)
        if slot.process.stdin is not None:
            with suppress(BrokenPipeError):
                slot.process.stdin.close()
        slot.process = None

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Count interrupts instead of dying of them; those that nohup ignores stay ignored."""

        def count(*_: object) -> None:
            self._interrupts += 1

        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {n: signal.getsignal(n) for n in numbers}
        before = {n: handler for n, handler in before.items() if handler is not signal.SIG_IGN}
        for number in before:
            signal.signal(number, count)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _end_group(leader: int) -> None:
    """Wait for what is left of a dead worker's session, and end what stays: ranks of a run on
    several devices save and end, and until they have, nobody else may train that run."""
    deadline = time.monotonic() + GROUP_SECONDS
    with suppress(ProcessLookupError):
        if not KERNEL_TELLS:
            # Where the kernel does, a second signal would break off what torchrun does on it.
            os.killpg(leader, signal.SIGTERM)
        while time.monotonic() < deadline:
            os.killpg(leader, 0)
            time.sleep(0.05)
        os.killpg(leader, signal.SIGKILL)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "nothing"
