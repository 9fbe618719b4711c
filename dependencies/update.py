"""`make lock`: write the lock files anew from pyproject.toml. Needs the package index.

Versions stay as they are where pyproject.toml allows them; `make lock UPGRADE=1` takes the newest
of everything, `make lock UPGRADE=numpy` of one package. Read the difference before you commit it.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dependencies.lock import BUILD, CUDA, FOLDER, LOCK, TORCH, TORCH_CPU, Locked, read, write

ROOT = FOLDER.parent
EXTRAS = ("dev", "gguf")
BUILDERS = ("setuptools",)
PLAIN = "triton>=3.6; sys_platform == 'linux'"
"""Stands over what PyTorch's CUDA build asks for: the CPU build leaves the version open."""


def resolve(source: Path, output: Path, *options: str) -> list[Locked]:
    """The closure of the requirements in a file, for all platforms; `output` gives the versions
    that are preferred."""
    command = [
        Path(sys.executable).with_name("uv"), "pip", "compile", "--universal", "--generate-hashes",
        "--no-annotate", "--no-header", "--no-config", "--quiet", "--python-version", "3.11",
        "--output-file", output, *options, source,
    ]  # fmt: skip
    subprocess.run(list(map(str, command)), check=True, cwd=ROOT)
    return read(output)


def is_cuda(entry: Locked) -> bool:
    """Whether only PyTorch's CUDA build needs it."""
    return entry.name.startswith(("nvidia-", "cuda-"))


def build_here(version: str, folder: Path) -> Locked:
    """The build of PyTorch that this machine's pip takes."""
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
         "--dest", str(folder), f"torch=={version}"],
        check=True,
    )  # fmt: skip
    (wheel,) = folder.glob("torch-*.whl")
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Locked("torch", wheel.name.split("-")[1].replace("%2B", "+"), "", (digest,))


def update(upgrade: Sequence[str] = ()) -> None:
    """Write the three files.

    Args:
        upgrade: options that say what need not stay as it is.
    """
    old = [entry for path in (LOCK, TORCH) if path.is_file() for entry in read(path)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        preferred = folder / "lock.txt"
        write(preferred, "", [*old, *filter(is_cuda, read(CUDA) if CUDA.is_file() else [])])
        over = folder / "override.txt"
        over.write_text(PLAIN + "\n")
        extras = [part for extra in EXTRAS for part in ("--extra", extra)]
        pyproject = ROOT / "pyproject.toml"
        found = resolve(pyproject, preferred, "--override", str(over), *extras, *upgrade)
        (torch,) = (entry for entry in found if entry.name == "torch")
        alone = folder / "torch.in"
        alone.write_text(f"torch=={torch.version}; sys_platform == 'linux'\n")
        cuda = resolve(alone, folder / "torch.txt")
        here = build_here(torch.version, folder)
    lock = [entry for entry in found if not is_cuda(entry) and entry != torch]
    write(TORCH, "PyTorch as the package index has it.", [torch])
    if here.version == f"{torch.version}+cpu":
        (before,) = read(TORCH_CPU) if TORCH_CPU.is_file() else (here,)
        kept = before.hashes if before.version == here.version else ()
        cpu = replace(here, hashes=tuple(sorted({*kept, *here.hashes})))
        write(TORCH_CPU, "PyTorch's CPU build.", [cpu])
    write(LOCK, "What the tests and the documentation need.", lock)
    write(BUILD, "What packages are built with.", [e for e in lock if e.name in BUILDERS])
    asked = [entry for entry in cuda if is_cuda(entry) or entry.name == "triton"]
    write(CUDA, "What PyTorch's CUDA build needs besides.", asked)
    changed = {(e.name, e.version) for e in (*lock, torch)} ^ {(e.name, e.version) for e in old}
    print(f"{len(lock)} packages; {len({name for name, _ in changed})} changed.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upgrade", default="", help="1 for everything, or a package's name")
    chosen = parser.parse_args().upgrade
    if chosen in ("", "1"):
        update(["--upgrade"] if chosen else [])
    else:
        update(["--upgrade-package", chosen])


if __name__ == "__main__":
    main()
