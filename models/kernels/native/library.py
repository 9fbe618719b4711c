"""The compiled kernels: built once on a machine by its C++ compiler, and loaded.

`LINSCALE_CPU_KERNELS` says what runs on the CPU: `native` (this library, or an error that says what
it lacks), `torch` (the chunked form in PyTorch), or `auto`, the default: `native` where a compiler
is found, else `torch`. Which one it was stands in a run's `environment.json`.

The library is kept in `linscale/kernels` of the user's cache under the hash of its sources, the
compiler and the processor, so that machines that share a home do not meet one another's.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from models.kernels.selfcheck import folder

FOLDER = Path(__file__).parent
SOURCES = [str(FOLDER / name) for name in ("attention.cpp", "delta.cpp", "recurrence.cpp")]
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fPIC", "-shared", "-pthread")
CHOICES = ("auto", "native", "torch")
VARIABLE = "LINSCALE_CPU_KERNELS"


class NativeError(RuntimeError):
    """The compiled kernels were asked for and cannot be had; the message says why."""


def loaded() -> ctypes.CDLL | None:
    """The library, or None where PyTorch's form is to run.

    Raises:
        NativeError: `native` was asked for and cannot be built, or the choice is none.
    """
    choice = os.environ.get(VARIABLE, "auto")
    if choice not in CHOICES:
        raise NativeError(f"{VARIABLE}={choice!r}: it must be one of {', '.join(CHOICES)}.")
    if choice == "torch":
        return None
    found, reason = _built()
    if found is None and choice == "native":
        raise NativeError(f"{VARIABLE}=native, but {reason}. `auto` runs PyTorch's form instead.")
    return found


def describe() -> str:
    """What runs on the CPU, in words: `native`, or `torch` and why."""
    if os.environ.get(VARIABLE, "auto") == "torch":
        return f"torch ({VARIABLE}=torch)"
    found, reason = _built()
    return "native" if found is not None else f"torch ({reason})"


@cache
def _built() -> tuple[ctypes.CDLL | None, str]:
    """The library, or None and why there is none."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        return None, "no C++ compiler is found: install g++ or clang++, or set CXX"
    try:
        path = folder() / f"cpu-{_fingerprint(compiler)}.so"
        if not path.exists():
            _build(compiler, path)
        return ctypes.CDLL(str(path)), ""
    except subprocess.CalledProcessError as error:
        last = (error.stderr or "").strip().splitlines()[-1:] or ["no message"]
        return None, f"{compiler} fails: {last[0]}"
    except OSError as error:
        return None, f"the kernels cannot be built: {error}"


def _fingerprint(compiler: str) -> str:
    """Of the sources, the compiler's file and the processor: nothing is started for it."""
    path = os.path.realpath(shutil.which(compiler) or compiler)
    status = os.stat(path)
    found = hashlib.sha256()
    for source in sorted([*FOLDER.glob("*.cpp"), *FOLDER.glob("*.h")]):
        found.update(source.read_bytes())
    identity = (FLAGS, path, status.st_size, status.st_mtime_ns, _processor())
    found.update(repr(identity).encode())
    return found.hexdigest()[:16]


def _processor() -> str:
    """Name and abilities of the processor, as far as the system tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.node()}"
    kept = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(kept)}))


def _build(compiler: str, path: Path) -> None:
    """Compile beside the place and move there: whole or not at all, whoever else builds it. However
    long that takes: ranks of one run must not differ in what they run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        made = Path(work) / path.name
        subprocess.run(
            [compiler, *FLAGS, "-o", str(made), *SOURCES],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        os.replace(made, path)
