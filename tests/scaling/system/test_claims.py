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
from typing import Any

import pytest

from models.config import toy_config
from scaling.config.run import BudgetConfig, RunConfig
from scaling.sweep.worker import attempt
from scaling.system import claims
from scaling.system.claims import CLAIM, claim, exclusive, holder

HOLD = """
import sys, time
from pathlib import Path
from scaling.system.claims import claim
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


def test_a_forked_process_holds_nothing(tmp_path: Path) -> None:
    """Such as one that loads data, which may outlive a killed trainer for seconds."""
    held = claim(tmp_path)
    assert held is not None
    waits, goes_on = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(goes_on)
        os.read(waits, 1)
        os._exit(0)
    held.release()
    again = claim(tmp_path)
    os.close(goes_on)
    os.waitpid(child, 0)
    os.close(waits)
    assert again is not None
    again.release()


@pytest.mark.parametrize("age", [-7200.0, 0.0, 7200.0])
def test_another_host_holds_while_its_heart_beats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age: float
) -> None:
    """Whatever its clock says: hours ahead it is not immortal, hours behind it is not robbed."""
    now = [100.0]
    monkeypatch.setattr(claims.time, "monotonic", lambda: now[0])
    other_host(tmp_path / "run", age)
    assert claim(tmp_path / "run") is None
    now[0] += claims.STALE_SECONDS - 1
    other_host(tmp_path / "run", age - 5)  # it beats
    assert claim(tmp_path / "run") is None
    now[0] += claims.STALE_SECONDS - 1
    found = holder(tmp_path / "run", glance=False)
    assert found is not None
    assert found.hostname == "elsewhere"
    now[0] += 2
    assert holder(tmp_path / "run", glance=False) is None
    held = claim(tmp_path / "run")
    assert held is not None
    held.release()
    assert holder(tmp_path / "run") is None


def test_a_caller_who_has_watched_says_so(tmp_path: Path) -> None:
    """A worker of a pool has not; its pool has."""
    other_host(tmp_path / "run", 0.0)
    beat = claims.heartbeat(tmp_path / "run")
    assert claim(tmp_path / "run", beat - 1) is None
    held = claim(tmp_path / "run", beat)
    assert held is not None
    held.release()


def test_who_looks_once_judges_by_the_clock(tmp_path: Path) -> None:
    for age, alive in ((30.0, True), (61.0, False), (-7200.0, False)):
        other_host(tmp_path / f"{age}", age)
        assert (holder(tmp_path / f"{age}") is not None) == alive


def test_outwaiting_another_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "STALE_SECONDS", 0.5)
    other_host(tmp_path / "dead", -7200.0)
    held = claims.outwait(tmp_path / "dead")
    assert held is not None
    held.release()
    monkeypatch.setattr(claims, "STALE_SECONDS", 60.0)
    other_host(tmp_path / "alive", 0.0)
    threading.Timer(0.3, other_host, (tmp_path / "alive", -5.0)).start()
    assert claims.outwait(tmp_path / "alive") is None


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


def robbed(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[claims.Claim, claims.Claim]:
    """Two holders, as on a file system whose locks do not reach other hosts: the second took the
    run over when the heartbeat of the first failed."""
    monkeypatch.setattr(claims, "_lock", lambda descriptor: True)
    first = claim(run_dir)
    assert first is not None
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    second = None
    while second is None:  # its heart may beat between the two
        second = claim(run_dir, claims.heartbeat(run_dir))
    return first, second


def test_a_robbed_holder_finds_out_before_its_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = robbed(tmp_path, monkeypatch)
    stop = first.watching(threading.Event())
    assert not stop.is_set()  # nothing to look for as long as its heart has beaten lately
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", -1.0)
    with pytest.raises(claims.ClaimLost):
        stop.is_set()
    assert not second.watching(threading.Event()).is_set()
    first.release()
    # Giving up what is lost takes nothing from the other.
    assert json.loads((tmp_path / CLAIM).read_text())["hostname"] == "elsewhere"
    second.release()


def test_the_heart_of_a_robbed_holder_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 0.01)
    first, second = robbed(tmp_path, monkeypatch)
    deadline = time.monotonic() + 30
    while first._heart.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(claims.ClaimLost):
        first.check()
    first.release()
    second.release()


def test_a_run_that_was_taken_over_is_left_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig(
        name="robbed",
        model=toy_config("tnl", 16, vocab_size=256),
        budget=BudgetConfig(tokens=8192),
    )

    def train(config: RunConfig, sweep_dir: Path, *, stop_event: Any, progress: bool) -> str:
        assert not stop_event.is_set()
        (sweep_dir / config.run_id / CLAIM).write_text(
            json.dumps({"hostname": "elsewhere", "pid": 1, "since": 0.0})
        )
        monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", -1.0)
        try:
            return "done" if stop_event.is_set() else "preempted"
        except Exception:  # what a trainer does about errors: write them down
            (sweep_dir / config.run_id / "status.json").write_text("{}")
            raise

    outcome = attempt(config, tmp_path, train, threading.Event())
    assert outcome.state == "busy"
    assert {p.name for p in (tmp_path / config.run_id).iterdir()} == {CLAIM}
