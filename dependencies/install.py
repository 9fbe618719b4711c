"""`make setup`: install what the lock files name, and nothing else, each file checked by its hash.

Run by the Python of the virtual environment before anything is installed there, so it uses the
standard library alone.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

FOLDER = Path(__file__).parent
HASHED = ("install", "--quiet", "--require-hashes", "--no-deps", "--no-build-isolation",
          "--requirement")  # fmt: skip


def pip(*arguments: str) -> None:
    """Run pip quietly; ends the program where it fails."""
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def install(name: str) -> None:
    """Exactly one lock file. Dependencies are not looked for: the files name them all."""
    pip(*HASHED, str(FOLDER / name))


def install_torch() -> None:
    """The CPU build where there is one for this machine, else the public build."""
    command = [sys.executable, "-m", "pip", *HASHED, str(FOLDER / "torch-cpu.txt")]
    done = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
    if done.returncode == 0:
        return
    if "No matching distribution found for torch" not in done.stderr:
        sys.stderr.write(done.stderr)  # a build with another hash is no reason to take another one
        raise SystemExit(done.returncode)
    install("torch.txt")


def has_cuda_build() -> bool:
    """Whether the PyTorch that was installed wants NVIDIA's libraries."""
    try:
        return any(each.startswith(("nvidia-", "cuda-")) for each in requires("torch") or ())
    except PackageNotFoundError:
        return False


def main() -> None:
    """Install everything, and check that nothing that a package asks for is missing or other."""
    for name in ("build.txt", "lock.txt"):
        install(name)
    install_torch()
    if has_cuda_build():
        install("cuda.txt")
    pip("install", "--quiet", "--no-deps", "--no-build-isolation", "--editable", ".[dev,gguf]")
    pip("check")


if __name__ == "__main__":
    main()
