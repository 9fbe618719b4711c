"""What the machine refuses becomes a sentence, wherever a command or a worker meets it."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.quickstart import runs
from linscale import terminal
from linscale.os_errors import in_words, sentence
from linscale.paragraph import one_paragraph
from scaling.sweep.worker import attempt
from scaling.system.files import DiskError, disk_errors, write_json

CASES = [
    (errno.ENOSPC, "disk or quota is full"),
    (errno.EDQUOT, "disk or quota is full"),
    (errno.EROFS, "read-only"),
    (errno.EMFILE, "ulimit -n"),
    (errno.ENFILE, "too many files open"),
    (errno.EAGAIN, "ulimit -u"),
    (errno.EACCES, "permission denied"),
    (errno.EIO, "device reports an error"),
]


def raised(number: int) -> OSError:
    return OSError(number, os.strerror(number), "/some/file")


@pytest.mark.parametrize(("number", "words"), CASES)
def test_a_command_a_writer_and_a_worker_say_it(
    number: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended, one_paragraph():
        raise raised(number)
    assert ended.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("error: /some/file: ")
    assert words in said

    def train(*_: object, **__: object) -> str:
        raise raised(number)

    config = runs()[0]
    outcome = attempt(config, tmp_path, train, threading.Event())
    assert outcome.state == "failed"
    assert words in outcome.reason

    def refuse(*_: object) -> int:
        raise raised(number)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(DiskError) as caught:
        write_json(tmp_path / "status.json", {})
    assert words in str(caught.value)
    assert "[Errno" not in str(caught.value)


def test_a_disk_without_inodes_is_told_from_a_full_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "a" / "b"))
    asked: list[Path] = []

    def answer(path: Path) -> SimpleNamespace:
        asked.append(path)
        return SimpleNamespace(f_files=1000, f_favail=0)

    monkeypatch.setattr(os, "statvfs", answer)
    assert "no free inodes" in (sentence(error) or "")
    assert asked == [tmp_path]  # the nearest folder that is there


@pytest.mark.parametrize("number", [errno.ENOSPC, None])
def test_a_writer_adds_the_file_and_keeps_what_was_said(
    number: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of errors that name no file, with a number and without, as `ndarray.tofile` raises them."""
    asked: list[Path] = []

    def answer(path: Path) -> SimpleNamespace:
        asked.append(path)
        return SimpleNamespace(f_files=1000, f_favail=1)

    monkeypatch.setattr(os, "statvfs", answer)
    said = "4096 requested and 2048 written"
    with pytest.raises(DiskError) as caught, disk_errors(tmp_path / "shard.bin"):
        raise OSError(said) if number is None else OSError(number, "No space left on device")
    place = f"{tmp_path / 'shard.bin'}: cannot be written "
    assert str(caught.value).startswith(place + ("(the disk" if number else f"({said})"))
    assert asked == ([tmp_path] if number else [])
    assert str(caught.value.__cause__) == (
        said if number is None else "[Errno 28] No space left on device"
    )


def test_verbose_shows_where_it_arose(capsys: pytest.CaptureFixture[str]) -> None:
    for chosen in (terminal.VERBOSE, terminal.USUAL):
        terminal.set_level(chosen)
        try:
            with pytest.raises(SystemExit), one_paragraph():
                raise raised(errno.EROFS)
        finally:
            terminal.set_level(terminal.USUAL)
        assert ("Traceback" in capsys.readouterr().err) == (chosen == terminal.VERBOSE)


def test_what_is_no_matter_of_the_machine_stays_as_it_is() -> None:
    assert in_words(FileNotFoundError(errno.ENOENT, "No such file", "x")) is None
    assert in_words(ConnectionRefusedError(errno.ECONNREFUSED, "refused")) is None
    with pytest.raises(FileNotFoundError), one_paragraph():
        raise FileNotFoundError(errno.ENOENT, "No such file", "x")
