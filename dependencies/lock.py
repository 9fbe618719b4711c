"""The lock files: exact versions and hashes of everything that `make setup` installs.

    lock.txt     all that the tests and the documentation need, on every platform
    build.txt    of it what packages are built with, which must be there first
    torch.txt, torch-cpu.txt    PyTorch: its public build; the CPU build, where pip finds one
    cuda.txt     what PyTorch's CUDA build needs besides

PyTorch comes in builds of one version: for Linux the package index has the CUDA build, PyTorch's
own index and mirrors a CPU build (`2.13.0+cpu`). `make setup` takes the CPU build where pip is set
up to find one. The CUDA build alone needs NVIDIA's libraries, and one version of Triton, which are
installed where that build was taken (`install.py`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import Marker
from packaging.utils import canonicalize_name

FOLDER = Path(__file__).parent
LOCK, BUILD, CUDA = FOLDER / "lock.txt", FOLDER / "build.txt", FOLDER / "cuda.txt"
TORCH, TORCH_CPU = FOLDER / "torch.txt", FOLDER / "torch-cpu.txt"


@dataclass(frozen=True)
class Locked:
    """One package, as one entry of a lock file."""

    name: str
    version: str
    marker: str
    """Where it is installed, in the language of Python's packaging; empty: everywhere."""
    hashes: tuple[str, ...]
    """SHA-256 of each file of this version that may be installed."""

    def __str__(self) -> str:
        head = f"{self.name}=={self.version}" + (f" ; {self.marker}" if self.marker else "")
        return " \\\n".join([head, *(f"    --hash=sha256:{each}" for each in self.hashes)])

    def is_here(self) -> bool:
        """Whether this Python, on this platform, is to have it."""
        return not self.marker or Marker(self.marker).evaluate()


class LockError(ValueError):
    """A lock file that does not say what is to be installed."""


def read(path: Path) -> list[Locked]:
    """The entries of a lock file.

    Raises:
        LockError: an entry without exact version or without hash, which pip would refuse, too.
    """
    text = re.sub(r"^#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [_entry(line, path) for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def _entry(line: str, path: Path) -> Locked:
    head, *hashes = line.split(" --hash=")
    match = re.fullmatch(r"([\w.-]+)==([\w.!+]+)\s*(?:;\s*(.*?))?\s*", head)
    if match is None:
        raise LockError(f"{path}: {head.strip()!r} is not NAME==VERSION; run make lock")
    right = [each.strip().removeprefix("sha256:") for each in hashes]
    if not right or not all(re.fullmatch(r"[0-9a-f]{64}", each) for each in right):
        raise LockError(f"{path}: {match[1]} has no SHA-256 or a bad one; run make lock")
    return Locked(canonicalize_name(match[1]), match[2], match[3] or "", tuple(right))


def write(path: Path, comment: str, entries: list[Locked]) -> None:
    """Write a lock file, sorted by name."""
    ordered = sorted(entries, key=lambda entry: (entry.name, entry.version))
    lines = [f"# {comment} Written by make lock.", *map(str, ordered)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
