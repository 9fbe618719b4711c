"""What is written takes the place of what was there as a whole, whenever the writer is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from analysis.io.staging import staged, write_whole

WRITER = """
import sys, time
from pathlib import Path
from analysis.io.staging import staged
with staged(Path(sys.argv[1])) as folder:
    (folder / "figures").mkdir()
    for number in range(40):
        with (folder / "figures" / f"{number}.png").open("w") as file:
            for _ in range(50):
                file.write(sys.argv[2] * 100)
        time.sleep(0.002)
    (folder / "index.html").write_text(sys.argv[2] * 5000)
"""


def contents(out: Path) -> dict[str, set[str]]:
    return {
        p.relative_to(out).as_posix(): {*p.read_text()}
        for p in out.rglob("*")
        if p.is_file() and ".staged-" not in str(p)
    }


def test_a_block_that_ends_well_replaces_and_one_that_does_not_leaves_all(tmp_path: Path) -> None:
    out = tmp_path / "report"
    with staged(out) as folder:
        (folder / "index.html").write_text("old")
        (folder / "a").mkdir()
        (folder / "a" / "1.csv").write_text("old")
    (out / "mine.txt").write_text("notes")

    def broken_off() -> None:
        with staged(out) as folder:
            (folder / "index.html").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_off()
    assert contents(out) == {"index.html": {*"old"}, "a/1.csv": {*"old"}, "mine.txt": {*"notes"}}
    assert {p.name for p in out.iterdir()} == {"index.html", "a", "mine.txt"}


@pytest.mark.slow
def test_killed_at_any_moment_no_file_is_torn(tmp_path: Path) -> None:
    out = tmp_path / "report"
    subprocess.run([sys.executable, "-c", WRITER, str(out), "o"], check=True)
    old = contents(out)
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", WRITER, str(tmp_path / "timed"), "n"], check=True)
    whole = time.monotonic() - started
    for share in range(14):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(out), "n"])
        time.sleep(whole * (share + 1) / 16)
        process.send_signal(signal.SIGKILL)
        process.wait()
        now = contents(out)
        assert now.keys() == old.keys()
        assert all(letters in ({"o"}, {"n"}) for letters in now.values())
    with staged(out):
        pass
    assert not list(out.glob(".staged-*"))  # those of the dead are gone


def test_one_file(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "law.json"
    write_whole(path, "one")
    write_whole(path, "two")
    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["law.json"]
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    elsewhere = tmp_path / "elsewhere.json"
    elsewhere.write_text("x")
    link = tmp_path / "link.json"
    link.symlink_to(elsewhere)
    write_whole(link, "through")
    assert link.is_symlink()
    assert elsewhere.read_text() == "through"
