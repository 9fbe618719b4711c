"""The lock files name what pyproject.toml asks for, with hashes, and CI installs nothing else."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from dependencies import install, update
from dependencies.lock import (
    BUILD,
    CUDA,
    LOCK,
    TORCH,
    TORCH_CPU,
    Locked,
    LockError,
    read,
    write,
)

ROOT = Path(__file__).resolve().parents[2]
ENTRIES = {entry.name: entry for entry in (*read(LOCK), *read(TORCH)) if entry.is_here()}


def asked(extra: str) -> list[Requirement]:
    """What an extra asks for, those that it names included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: list[Requirement] = []
    for each in map(Requirement, project["optional-dependencies"][extra]):
        inner = [part for name in each.extras for part in asked(name)]
        found += inner if each.name == "linscale" else [each]
    return [*found, *map(Requirement, project["dependencies"])]


@pytest.mark.parametrize(
    "requirement", sorted({*asked("dev"), *asked("gguf")}, key=str), ids=lambda r: r.name
)
def test_what_is_asked_for_is_locked(requirement: Requirement) -> None:
    if requirement.marker is None or requirement.marker.evaluate():
        assert requirement.specifier.contains(ENTRIES[canonicalize_name(requirement.name)].version)


def test_this_environment_has_the_locked_versions() -> None:
    """Of everything that is installed here and in the lock; builds differ, versions do not."""
    found = {canonicalize_name(each.metadata["Name"]): each.version for each in distributions()}
    other = {
        name: (found[name], entry.version)
        for name, entry in ENTRIES.items()
        if name in found and Version(Version(found[name]).public) != Version(entry.version)
    }
    assert not other


def test_builders_come_first_and_are_the_same() -> None:
    assert {entry.name for entry in read(BUILD)} == set(update.BUILDERS)
    assert set(read(BUILD)) <= set(read(LOCK))


def test_the_cuda_build_finds_all_that_it_needs() -> None:
    """One Triton, NVIDIA's libraries, and nothing of both but there."""
    names = {entry.name for entry in read(CUDA)}
    assert {"triton", "nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-nccl-cu13"} <= names
    assert not [entry for entry in read(LOCK) if update.is_cuda(entry)]


def test_no_other_place_installs_packages() -> None:
    """CI and make setup stand on the same files."""
    texts = [(ROOT / name).read_text() for name in ("Makefile", ".ci/run")]
    assert not any("pip install" in text for text in texts)
    assert "dependencies/install.py" in texts[0]
    assert "make test" in texts[1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("numpy>=2 --hash=sha256:" + "0" * 64, "is not NAME==VERSION"),
        ("numpy==2.0", "numpy has no SHA-256"),
        ("numpy==2.0 --hash=sha256:00", "no SHA-256 or a bad one"),
        ("-e .", "is not NAME==VERSION"),
    ],
)
def test_an_entry_that_proves_nothing_is_refused(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "lock.txt").write_text(line + "\n")
    with pytest.raises(LockError, match=re.escape(message)):
        read(tmp_path / "lock.txt")


def wheel(folder: Path, text: str) -> str:
    """A package `tiny` 1.0 in a folder; its SHA-256."""
    folder.mkdir(exist_ok=True)
    path = folder / "tiny-1.0-py3-none-any.whl"
    info = "tiny-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("tiny.py", text)
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_pip_takes_what_is_locked_and_nothing_else(tmp_path: Path) -> None:
    tiny = Locked("tiny", "1.0", "", (wheel(tmp_path / "right", "1"),))
    write(tmp_path / "lock.txt", "One.", [tiny])
    wheel(tmp_path / "evil", "2")
    for name in ("right", "evil"):
        done = subprocess.run(
            [sys.executable, "-m", "pip", "--isolated", *install.HASHED, str(tmp_path / "lock.txt"),
             "--no-index", "--find-links", str(tmp_path / name), "--target",
             str(tmp_path / f"{name}-out")],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode == 0) == (name == "right"), done.stderr
        assert ("DO NOT MATCH THE HASHES" in done.stderr) == (name == "evil")


def test_the_two_builds_of_torch_are_of_one_version() -> None:
    (public,), (cpu,) = read(TORCH), read(TORCH_CPU)
    assert cpu.version == f"{public.version}+cpu"
    assert not set(cpu.hashes) & set(public.hashes)


@pytest.mark.parametrize(
    ("said", "code", "expected"),
    [
        ("", 0, ["torch-cpu.txt"]),
        ("ERROR: No matching distribution found for torch==2.13.0+cpu", 1,
         ["torch-cpu.txt", "torch.txt"]),
        ("THESE PACKAGES DO NOT MATCH THE HASHES", 1, ["torch-cpu.txt", "stopped"]),
    ],
)  # fmt: skip
def test_the_public_build_is_taken_only_where_there_is_no_cpu_build(
    said: str, code: int, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        taken.append(Path(command[-1]).name)
        failed = code if taken[-1] == "torch-cpu.txt" else 0
        return subprocess.CompletedProcess(command, failed, stderr=said)

    monkeypatch.setattr(install.subprocess, "run", run)
    try:
        install.install_torch()
    except SystemExit:
        taken.append("stopped")
    assert taken == expected


def test_the_cuda_build_is_told_by_what_it_requires(monkeypatch: pytest.MonkeyPatch) -> None:
    for required, expected in (
        (["sympy", "cuda-toolkit==13"], True),
        (["sympy"], False),
        (None, False),
    ):
        monkeypatch.setattr(install, "requires", lambda name, required=required: required)
        assert install.has_cuda_build() is expected
