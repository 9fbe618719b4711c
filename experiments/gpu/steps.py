"""The pieces of `python -m experiments.gpu`, in their order."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PARTS = ("first", "check", "speed", "train", "tune", "serve", "ladder")
MINUTES = 8
"""No piece may take longer."""
SIZES = ("70M", "410M", "1B")
ROOT = Path(__file__).resolve().parents[2]


def from_source(**changes: str) -> dict[str, str]:
    """The environment of a process that imports this source tree before all else."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | changes | {"PYTHONPATH": os.pathsep.join(paths)}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One process."""

    part: str
    name: str
    """Unique; what is written under, and what a second run leaves out when it has ended well."""
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    minutes: float = MINUTES
    resumable: bool = False
    """Cut short it goes on where it was: it is then started again."""


def steps(out: Path, sizes: tuple[str, ...] = SIZES) -> Iterator[Step]:
    """All pieces; what they write lies in `out`."""
    python = (sys.executable, "-W", "default")
    ours = (*python, "-m", "experiments.gpu.first")
    yield Step(part="first", name="versions", command=(*ours, "versions"), minutes=2)
    yield Step(part="first", name="operations", command=(*ours, "operations"))
    yield Step(part="first", name="repeats", command=(*ours, "repeats"))
    for tool in ("memcheck", "racecheck"):
        if sanitizer := shutil.which("compute-sanitizer"):
            checked = (sanitizer, "--tool", tool, "--error-exitcode", "3", *ours, "small")
            yield Step(part="first", name=tool, command=checked)
    for name, path in assemblers().items():
        yield Step(
            part="first", name=f"operations with {name}", command=(*ours, "operations"),
            environment={
                "TRITON_PTXAS_PATH": path, "TRITON_PTXAS_BLACKWELL_PATH": path,
                "TRITON_CACHE_DIR": str(out / f"cache-{name}"),
            },
        )  # fmt: skip

    yield Step(
        part="check", name="check", command=(*python, "-m", "experiments.gpu.check", str(out)),
        resumable=True,
    )  # fmt: skip

    bench = (*python, "-m", "experiments.benchmarks.kernels_gpu", "--resume")
    yield Step(
        part="speed", name="kernels", resumable=True,
        command=(*bench, "--part", "standard", "--output", str(out / "kernels.md")),
    )  # fmt: skip

    training = (*python, "-m", "experiments.gpu.training")
    yield Step(
        part="train", name="models", resumable=True,
        command=(*bench, "--part", "train", "--sizes", ",".join(sizes),
                 "--output", str(out / "models.md")),
    )  # fmt: skip
    for size in sizes:
        for what in ("profile", "compiled"):
            yield Step(
                part="train", name=f"{what} {size}", command=(*training, what, size, str(out))
            )
    yield Step(part="train", name="resume", command=(*training, "resume", sizes[0], str(out)))

    yield Step(
        part="tune", name="tune", resumable=True,
        command=(*python, "-m", "experiments.gpu.slow_rows", str(out)),
    )  # fmt: skip

    yield Step(
        part="serve", name="decoding", resumable=True,
        command=(*bench, "--part", "decode", "--output", str(out / "decoding.md")),
    )  # fmt: skip
    yield Step(
        part="serve", name="serving",
        command=(*python, "-m", "experiments.gpu.serving", sizes[0]),
    )  # fmt: skip

    ladder = (*python, "-m", "experiments.gpu.ladder")
    for what in ("rungs", "forecast", "rung"):
        yield Step(
            part="ladder", name=f"ladder {what}", command=(*ladder, what, str(out)),
            resumable=what != "forecast",
        )  # fmt: skip


def assemblers() -> dict[str, str]:
    """Assemblers on this machine besides the one that Triton takes: its other one, CUDA's."""
    found: dict[str, str] = {}
    try:
        import triton
    except ImportError:
        return found
    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    cuda = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / "ptxas"
    for name, path in (
        ("triton-ptxas", bundled / "ptxas"),
        ("triton-ptxas-blackwell", bundled / "ptxas-blackwell"),
        ("cuda-ptxas", cuda),
    ):  # fmt: skip
        if path.exists():
            found[name] = str(path)
    return found
