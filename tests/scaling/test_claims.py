"""Claims: one holder at a time, freed by death, and taken over from hosts that fell silent."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from scaling import claims
from scaling.claims import CLAIM, claim, exclusive, holder

HOLD = """
import sys, time
from pathlib import Path
from scaling.claims import claim
held = claim(Path(sys.argv[1]))
print("held" if held else "busy", flush=True)
sys.stdin.read()
"""


def process_holding(run_dir: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def other_host(run_dir: Path, age: float) -> None:
    """The claim of a process on another machine, whose lock is not seen here."""
    run_dir.mkdir(exist_ok=True)
    path = run_dir / CLAIM
    path.write_text(json.dumps({"hostname": "elsewhere", "pid": 1, "since": 0.0}))
    os.utime(path, (time.time() - age, time.time() - age))


def test_one_holder_at_a_time_and_it_is_named(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    held = claim(tmp_path)
    assert held is not None
    with held:
        assert claim(tmp_path) is None
        found = holder(tmp_path)
        assert found is not None
        assert (found.hostname, found.pid) == (socket.gethostname(), os.getpid())
    assert holder(tmp_path) is None
    again = claim(tmp_path)
    assert again is not None
    again.release()
    again.release()


def test_a_killed_holder_frees_its_claim(tmp_path: Path) -> None:
    process = process_holding(tmp_path)
    assert claim(tmp_path) is None
    found = holder(tmp_path)
    assert found is not None
    assert found.pid == process.pid
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert holder(tmp_path) is None
    held = claim(tmp_path)
    assert held is not None
    held.release()


def test_a_stopped_holder_keeps_its_claim(tmp_path: Path) -> None:
    process = process_holding(tmp_path)
    process.send_signal(signal.SIGSTOP)
    os.utime(tmp_path / CLAIM, (0, 0))  # its heart has not beaten for half a century
    assert claim(tmp_path) is None
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_another_host_holds_while_its_heart_beats(tmp_path: Path) -> None:
    other_host(tmp_path / "fresh", age=claims.STALE_SECONDS / 2)
    other_host(tmp_path / "stale", age=claims.STALE_SECONDS + 1)
    assert claim(tmp_path / "fresh") is None
    found = holder(tmp_path / "fresh")
    assert found is not None
    assert found.hostname == "elsewhere"
    assert holder(tmp_path / "stale") is None
    held = claim(tmp_path / "stale")
    assert held is not None
    held.release()
    assert holder(tmp_path / "stale") is None


def test_the_heart_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 0.01)
    held = claim(tmp_path)
    assert held is not None
    os.utime(tmp_path / CLAIM, (0, 0))
    deadline = time.monotonic() + 30
    while (tmp_path / CLAIM).stat().st_mtime < 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    held.release()


def test_many_threads_never_share_a_claim_and_looking_does_not_block(tmp_path: Path) -> None:
    inside, most, won = 0, 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most, won
        for _ in range(30):
            holder(tmp_path)
            held = claim(tmp_path)
            if held is None:
                continue
            with held:
                with guard:
                    inside, won = inside + 1, won + 1
                    most = max(most, inside)
                with guard:
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert won > 0


def test_exclusive_waits_for_its_turn(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with exclusive(tmp_path / "sub" / "lock"):
            order.append("second")

    with exclusive(tmp_path / "sub" / "lock", "nobody hears this"):
        thread = threading.Thread(target=second)
        thread.start()
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
