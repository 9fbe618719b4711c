"""Rewrite the tuning tables: the launch constants of every kernel, dtype and head dimension.

On a GPU each candidate that spills no register and fits shared memory is timed and the fastest
kept (`linscale tune`, minutes). Offline, candidates are compiled for the architecture and the
first such one, in order of preference, is kept. Where every candidate spills, the one that spills
least is kept and its bytes are recorded under the table's key "spills". Entries that this module
does not produce stay as they are; nothing is tuned while a model runs.

Preference: wide tiles (fewer rereads of the inputs), chunks of 64 tokens (the height of a Hopper
tensor-core instruction), few warps, two stages of prefetch.

Families: "scalar" (no decay, per-head and per-token decays), "phase" (cosFormer2's rotation, kept
in the scalar table) and "vector" (per-channel decay and HGRN2's gate).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from models.kernels.triton import phase_launch, scalar_launch, vector_launch
from models.kernels.triton.common import (
    ARCHS,
    TUNING,
    architecture,
    assume_architecture,
    table,
    trial,
)
from models.kernels.triton.offline import SHARED_LIMIT, compile_launch, record

DIMS = (16, 32, 64, 128, 256)
MODES = {
    "states": ("boundary_states", ("head_t",)),
    "output": ("output", ("head_t", "none", "head")),
    "gradients": ("gradients", ("head_t", "none", "head")),
    "decay": ("decay_gradient", ("head_t",)),
    "phase_read": ("phase_read", ("phase",)),
    "phase_inputs": ("phase_inputs", ("phase",)),
}
"""Scalar table: name -> kernel function and modes. The first mode, the one that needs most
registers, makes the entry of all modes; others have their own at 16 bits from dimension 64 on."""
VECTOR = {
    "scan": ("scan_states", False),
    "scan_reverse": ("scan_states", True),
    "read": ("read_states", False),
    "read_reverse": ("read_states", True),
    "gradients": ("gradients", None),
}
"""Vector table: name -> kernel function and direction. One entry serves both modes."""

Run = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row of a table."""

    family: str
    """Table it is in: "scalar" or "vector"."""
    key: str
    """Its key in the table."""
    kernel: str
    """Name of the kernel in the table."""
    function: str
    """Name of the kernel function."""
    reverse: bool | None
    """Direction that the entry is for; None for both."""
    modes: tuple[str, ...]
    """Modes it must fit; timed on the last."""
    dtype: torch.dtype
    """Dtype of the inputs."""
    dim: int
    """Head dimension, keys and values."""


def entries(families: tuple[str, ...]) -> Iterator[Entry]:
    """Every row that `tune` produces."""
    for dtype, bits in ((torch.bfloat16, 16), (torch.float32, 32)):
        for dim in DIMS:
            for kernel, (function, modes) in MODES.items():
                if ("phase" if modes[0] == "phase" else "scalar") not in families:
                    continue
                for mode in modes:
                    if mode != modes[0] and (bits == 32 or dim < 64):
                        continue
                    own = "" if mode == modes[0] else f"{mode}/"
                    yield Entry(
                        family="scalar", key=f"{kernel}/{own}{bits}/{dim}", kernel=kernel,
                        function=function, reverse=None, modes=(mode,), dtype=dtype, dim=dim,
                    )  # fmt: skip
            if "vector" in families:
                for kernel, (function, reverse) in VECTOR.items():
                    yield Entry(
                        family="vector", key=f"{kernel}/{bits}/{dim}", kernel=kernel,
                        function=function, reverse=reverse, modes=("vector", "gate"),
                        dtype=dtype, dim=dim,
                    )  # fmt: skip


def candidates(entry: Entry) -> Iterator[dict[str, int]]:
    """Launch constants worth trying, best guess first, without repetitions."""
    dim, wide = entry.dim, entry.dtype != torch.float32
    if entry.family == "vector":
        tiles = ((64, 128, 8), (32, 128, 8), (64, 64, 4), (32, 64, 8), (32, 32, 8), (16, 32, 8))
        names = ("BK", "BV", "num_warps")
        rest = {"BT": 64, "num_stages": 1}
    elif entry.kernel == "states":
        tiles = ((64, 64, 64, 4, 2), (32, 32, 64, 4, 2), (32, 32, 32, 4, 1), (16, 16, 32, 4, 1))
        names, rest = ("BK", "BV", "C", "num_warps", "num_stages"), {}
    elif entry.kernel == "decay":
        tiles = ((64, 64, 8), (32, 32, 8), (32, 32, 16), (16, 16, 8), (16, 16, 16))
        names, rest = ("BK", "BV", "num_warps"), {"num_stages": 1}
    else:
        tiles = (
            (64, 64, 4, 2), (64, 64, 8, 2), (32, 64, 4, 2), (32, 64, 4, 1), (32, 64, 8, 2),
            (16, 64, 4, 2), (16, 64, 8, 2), (16, 64, 4, 1), (32, 32, 4, 2), (16, 32, 4, 2),
            (16, 32, 8, 1), (16, 16, 4, 1), (16, 16, 8, 1),
        )  # fmt: skip
        tiles = tiles if wide else tiles[8:]
        width = "BV" if entry.kernel in ("output", "phase_read") else "BT"
        names, rest = (width, "C", "num_warps", "num_stages"), {}
    seen = []
    for tile in tiles:
        constants = dict(zip(names, tile, strict=True)) | rest
        for side in {"BK", "BV", "BT"} & set(names):
            constants[side] = min(constants[side], dim)
        if constants not in seen:
            seen.append(constants)
            yield constants


def call(mode: str, dtype: torch.dtype, dim: int, device: str, tokens: int) -> Run:
    """Forward and backward in the form that uses every kernel: both states, sequences cut."""

    def new(*shape: int, kind: torch.dtype = dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=kind, device=device)

    q, k, v, do = (new(1, tokens, 16, dim) for _ in range(4))
    rows = 2 * dim if mode == "phase" else dim
    state, dstate = (new(1, 16, rows, dim, kind=torch.float32) for _ in range(2))
    vector = new(16, dim, kind=torch.float32)

    def phase() -> None:
        phase_launch.cosine_forward(q, k, v, vector, state, segment=512)
        phase_launch.cosine_backward(q, k, v, vector, state, None, 0, do, dstate, segment=512)

    def gate() -> None:
        states = vector_launch.hgrn2_forward(q, k, v, vector, state)[2]
        vector_launch.hgrn2_backward(q, k, v, vector, state, None, states, do, dstate)

    def channel() -> None:
        decay = new(1, tokens, 16, dim) - 0.05
        states = vector_launch.forward(q, k, v, decay, state)[2]
        vector_launch.backward(q, k, v, decay, state, None, states, do, dstate)

    def scalar() -> None:
        shape = {"none": None, "head": (16,), "head_t": (1, tokens, 16)}[mode]
        decay = None if shape is None else new(*shape, kind=torch.float32) - 0.05
        states = scalar_launch.forward(q, k, v, decay, state, segment=512)[2]
        scalar_launch.backward(q, k, v, decay, state, None, states, do, dstate, segment=512)

    return {"phase": phase, "gate": gate, "vector": channel}.get(mode, scalar)


def spilled(entry: Entry, constants: dict[str, int], arch: str) -> int | None:
    """Most bytes that a launch of the entry's kernel spills; None when shared memory is short."""
    most = 0
    for mode in entry.modes:
        run = call(mode, entry.dtype, entry.dim, "meta", 2048)
        with trial(entry.family, entry.kernel, constants), record() as launches:
            run()
        for launch in launches:
            reverse = launch.constants.get("REVERSE")
            if launch.kernel != entry.function or entry.reverse not in (None, reverse):
                continue
            evidence = compile_launch(launch, arch)
            if evidence.shared > SHARED_LIMIT[arch]:
                return None
            most = max(most, evidence.spilled)
    return most


def choose(entry: Entry, arch: str, offline: bool) -> tuple[dict[str, int], int]:
    """Constants of an entry and the bytes they spill.

    Raises:
        RuntimeError: no candidate fits shared memory.
    """
    fitting: list[dict[str, int]] = []
    least: tuple[int, dict[str, int]] | None = None
    for constants in candidates(entry):
        spills = spilled(entry, constants, arch)
        if spills == 0:
            if offline:
                return constants, 0
            fitting.append(constants)
        elif spills is not None and (least is None or spills < least[0]):
            least = spills, constants
    if fitting:
        from triton.testing import do_bench

        run = call(entry.modes[-1], entry.dtype, entry.dim, "cuda", 8192)
        times: list[float] = []
        for constants in fitting:
            with trial(entry.family, entry.kernel, constants):
                times.append(float(do_bench(run, return_mode="median")))  # pyright: ignore
        return fitting[times.index(min(times))], 0
    if least is None:
        raise RuntimeError(f"{arch} {entry.key}: no candidate fits {SHARED_LIMIT[arch]} bytes.")
    return least[1], least[0]


def tune(
    arch: str | None = None,
    *,
    offline: bool = False,
    families: tuple[str, ...] = ("scalar", "phase", "vector"),
    output: Path | None = None,
    report: Callable[[str], None] = print,
) -> list[Path]:
    """Tune the kernels of some families and write their tables; returns the files written.

    Args:
        arch: one of `ARCHS`; None is this machine's GPU. Naming one implies `offline`.
        offline: choose by compiler evidence alone.
        families: of "scalar", "phase", "vector".
        output: folder to write to; None replaces the checked-in tables.
        report: called with one line per entry.

    Raises:
        ValueError: no GPU and no architecture given, or an unknown architecture or family.
    """
    if arch is None and not torch.cuda.is_available():
        raise ValueError(
            "tune needs a GPU. Without one, name an architecture to choose by compiling alone, "
            f"--offline --arch {' | '.join(ARCHS)}."
        )
    if arch is not None and arch not in ARCHS:
        raise ValueError(f"arch={arch!r}: choose one of {', '.join(ARCHS)}.")
    for family in families:
        if family not in ("scalar", "phase", "vector"):
            raise ValueError(f"families={family!r}: choose from scalar, phase and vector.")
    offline = offline or arch is not None
    arch = arch or architecture()
    tables: dict[str, dict[str, dict[str, int]]] = {}
    with assume_architecture(arch):
        for entry in entries(families):
            # A copy: `table` is cached, and launches read it while this one changes.
            rows = tables.setdefault(entry.family, dict(table(entry.family, arch)))
            constants, spills = choose(entry, arch, offline)
            rows[entry.key] = constants
            recorded = {k: n for k, n in rows.pop("spills", {}).items() if k != entry.key}
            if spills:
                recorded[entry.key] = spills
            if recorded:
                rows["spills"] = recorded
            report(f"{arch} {entry.key} {constants}{f' spills {spills} bytes' if spills else ''}")
    written: list[Path] = []
    for family, rows in tables.items():
        path = (output or TUNING) / f"{family}.{arch}.json"
        lines = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in rows.items())
        path.write_text("{\n" + lines + "\n}\n")
        written.append(path)
    return written
