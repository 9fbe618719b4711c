"""Rewrite a tuning table: the launch constants of every kernel, dtype and head dimension.

On a GPU each candidate is timed and the fastest kept (`linscale tune`, minutes). Without one, or
with `offline=True`, candidates are compiled for the architecture and the first, in order of
preference, that spills no register and fits shared memory is kept. Either way the result is a
small JSON file that is checked in; nothing is tuned while a model runs.

Preference: wide tiles (fewer rereads of the inputs), chunks of 64 tokens (the height of a Hopper
tensor-core instruction), four warps, two stages of prefetch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from models.kernels.triton import scalar_launch
from models.kernels.triton.common import (
    ARCHS,
    HEAD,
    HEAD_T,
    MODE_NAMES,
    NONE,
    TUNING,
    architecture,
    assume_architecture,
    trial,
)
from models.kernels.triton.offline import SHARED_LIMIT, compile_launch, record

DIMS = (16, 32, 64, 128, 256)
FUNCTIONS = {
    "states": "boundary_states",
    "output": "output",
    "gradients": "gradients",
    "decay": "decay_gradient",
}
"""Kernels of the scalar family: name in the table -> name of the kernel function."""


def candidates(kernel: str, bits: int, dim: int) -> Iterator[dict[str, int]]:
    """Launch constants worth trying, best guess first."""

    def constants(warps: int, stages: int, **tiles: int) -> dict[str, int]:
        return {**tiles, "num_warps": warps, "num_stages": stages}

    if kernel == "states":
        for side, chunk, warps, stages in ((64, 64, 4, 2), (32, 64, 4, 2), (32, 32, 4, 1)):
            side = min(side, dim)
            yield constants(warps, stages, BK=side, BV=side, C=chunk)
    elif kernel == "decay":
        for rows, columns, warps in ((64, 64, 8), (32, 32, 8), (32, 32, 16), (16, 16, 16)):
            yield constants(warps, 1, BK=min(rows, dim), BV=min(columns, dim))
    else:
        width = "BV" if kernel == "output" else "BT"
        wide = ((64, 64, 4, 2), (64, 64, 8, 2), (32, 64, 4, 2), (32, 64, 8, 2), (16, 64, 4, 2))
        narrow = ((32, 32, 4, 2), (16, 32, 4, 2), (16, 32, 8, 1), (16, 16, 4, 1), (16, 16, 8, 1))
        for tile, chunk, warps, stages in (*(wide if bits == 16 else ()), *narrow):
            yield constants(warps, stages, **{width: min(tile, dim)}, C=chunk)


def call(mode: int, dtype: torch.dtype, dim: int, device: str, tokens: int) -> Callable[[], None]:
    """Forward and backward in the form that uses every kernel: both states, sequences cut."""

    def new(*shape: int, kind: torch.dtype = dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=kind, device=device)

    q, k, v, do = (new(1, tokens, 16, dim) for _ in range(4))
    state, dstate = (new(1, 16, dim, dim, kind=torch.float32) for _ in range(2))
    shape = {NONE: None, HEAD: (16,), HEAD_T: (1, tokens, 16)}[mode]
    decay = None if shape is None else new(*shape, kind=torch.float32) - 0.05

    def run() -> None:
        _, _, states = scalar_launch.forward(q, k, v, decay, state, segment=512)
        scalar_launch.backward(q, k, v, decay, state, None, states, do, dstate, segment=512)

    return run


def keys() -> Iterator[tuple[str, str, int, torch.dtype, int]]:
    """(key, kernel, mode, dtype, dimension) of every entry. Entries without a mode serve all modes
    and are tuned on the one that needs most registers; the tensor-core kernels of models have
    their own for the modes of models."""
    for dtype in (torch.bfloat16, torch.float32):
        bits = 16 if dtype == torch.bfloat16 else 32
        for kernel in FUNCTIONS:
            for dim in DIMS:
                yield f"{kernel}/{bits}/{dim}", kernel, HEAD_T, dtype, dim
    for kernel in ("output", "gradients"):
        for dim in (64, 128, 256):
            for mode in (NONE, HEAD):
                key = f"{kernel}/{MODE_NAMES[mode]}/16/{dim}"
                yield key, kernel, mode, torch.bfloat16, dim


def _fits(kernel: str, constants: dict[str, int], run: Callable[[], None], arch: str) -> bool:
    with trial("scalar", kernel, constants), record() as launches:
        run()
    chosen = [x for x in launches if x.kernel == FUNCTIONS[kernel]]
    for launch in chosen:
        evidence = compile_launch(launch, arch)
        if evidence.spilled or evidence.shared > SHARED_LIMIT[arch]:
            return False
    return True


def _milliseconds(kernel: str, constants: dict[str, int], run: Callable[[], None]) -> float:
    """Median time of forward and backward with one kernel's constants changed."""
    from triton.testing import do_bench

    with trial("scalar", kernel, constants):
        return float(do_bench(run, return_mode="median"))  # pyright: ignore[reportArgumentType]


def tune(
    arch: str | None = None,
    *,
    offline: bool = False,
    output: Path | None = None,
    report: Callable[[str], None] = print,
) -> Path:
    """Tune the scalar kernels and write their table.

    Args:
        arch: one of `ARCHS`; None is this machine's GPU. Naming one implies `offline`.
        offline: choose by compiler evidence alone.
        output: file to write; None replaces the checked-in table.
        report: called with one line per entry.

    Raises:
        ValueError: no GPU and no architecture given, or an unknown one.
    """
    if arch is None and not torch.cuda.is_available():
        raise ValueError(
            f"tune needs a GPU, or arch (one of {', '.join(ARCHS)}) to choose by compiling only."
        )
    if arch is not None and arch not in ARCHS:
        raise ValueError(f"arch={arch!r}: choose one of {', '.join(ARCHS)}.")
    offline = offline or arch is not None
    arch = arch or architecture()
    entries: dict[str, dict[str, int]] = {}
    with assume_architecture(arch):
        for key, kernel, mode, dtype, dim in keys():
            bits = 16 if dtype == torch.bfloat16 else 32
            shapes = call(mode, dtype, dim, "meta", 2048)
            fitting = (c for c in candidates(kernel, bits, dim) if _fits(kernel, c, shapes, arch))
            if offline:
                choice = next(fitting, None)
            else:
                run = call(mode, dtype, dim, "cuda", 8192)
                timed = [(_milliseconds(kernel, c, run), i, c) for i, c in enumerate(fitting)]
                choice = min(timed)[2] if timed else None
            if choice is None:
                raise RuntimeError(f"{arch} {key}: no candidate compiles without spilling.")
            entries[key] = choice
            report(f"{arch} {key} {choice}")
    path = output or TUNING / f"scalar.{arch}.json"
    lines = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in entries.items())
    path.write_text("{\n" + lines + "\n}\n")
    return path
