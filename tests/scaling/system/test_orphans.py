"""What a killed process leaves behind is told by the kernel, and holds the claim until it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scaling.system.claims import claim
from scaling.system.orphans import die_with_parent

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")

CHAIN = """
import os, signal, subprocess, sys, time
from pathlib import Path
from scaling.system.claims import claim, hand_on
from scaling.system.orphans import die_with_parent

folder, me = Path(sys.argv[1]), os.getpid()
held = claim(folder)
with hand_on():
    child = subprocess.Popen(
        ["bash", "-c", "trap 'touch told; while ! [ -e saved ]; do sleep 0.02; done; exit' TERM; "
         "touch ready; while :; do sleep 0.02; done"],
        cwd=folder,
        preexec_fn=lambda: die_with_parent(me, signal.SIGTERM),
        close_fds=False,
    )
child.wait()
"""


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)


def test_a_run_is_held_until_the_last_of_its_processes_has_saved(tmp_path: Path) -> None:
    trainer = subprocess.Popen([sys.executable, "-c", CHAIN, str(tmp_path)])
    wait_for((tmp_path / "ready").exists, "the child")
    trainer.kill()
    trainer.wait()
    wait_for((tmp_path / "told").exists, "the child to be told")
    assert claim(tmp_path) is None
    (tmp_path / "saved").touch()
    wait_for(lambda: (held := claim(tmp_path)) and (held.release(), True), "the claim to be free")


def test_a_parent_that_is_gone_already_counts_as_dying_now() -> None:
    never = 2**22 + 1  # above the kernel's largest process id
    child = os.fork()
    if child == 0:
        die_with_parent(never, signal.SIGKILL)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
