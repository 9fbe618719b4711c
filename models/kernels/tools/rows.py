"""Rows of the tuning tables, and the launch constants worth trying for each.

A row `kernel/bits/dim` serves all modes of a kernel that have no row `kernel/mode/bits/dim` of
their own, and with packed sequences and head dimensions that are masked or unequal, unless there is
a row `kernel/general/bits/dim` for these; which rows there are is what the checked-in tables say.

Families: "scalar" (no decay, per-head and per-token decays), "phase" (cosFormer2's rotation, kept
in the scalar table), "vector" (per-channel decay and HGRN2's gate) and "delta" (the delta rule).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from models.kernels.triton.common import table

DIMS = (16, 32, 64, 128, 256)
DELTA = ("delta", "delta_head", "delta_channel")
KERNELS = {
    "scalar": {
        "states": ("boundary_states", None, ("none", "head", "head_t")),
        "output": ("output", None, ("none", "head", "head_t")),
        "gradients": ("gradients", None, ("none", "head", "head_t")),
        "decay": ("decay_gradient", None, ("head_t",)),
        "slope": ("slope_gradient", None, ("head",)),
    },
    "phase": {
        "phase_read": ("phase_read", None, ("phase",)),
        "phase_inputs": ("phase_inputs", None, ("phase",)),
    },
    "vector": {
        "scan": ("scan_states", False, ("vector", "gate")),
        "scan_reverse": ("scan_states", True, ("vector", "gate")),
        "read": ("read_states", False, ("vector", "gate")),
        "read_reverse": ("read_states", True, ("vector", "gate")),
        "gradients": ("gradients", None, ("vector", "gate")),
    },
    "delta": {
        "pairs": ("delta_pairs", None, DELTA),
        "scan": ("delta_scan", None, DELTA),
        "errors": ("delta_errors", None, DELTA),
        "reverse": ("delta_reverse", None, DELTA),
        "gradients": ("delta_gradients", None, DELTA),
    },
}
"""Family -> name in the tables -> kernel function, direction (None for both) and modes."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row of a table."""

    family: str
    """Table it is in: "scalar", "vector" or "delta"."""
    key: str
    """Its key in the table."""
    kernel: str
    """Name of the kernel in the table."""
    function: str
    """Name of the kernel function."""
    reverse: bool | None
    """Direction that the entry is for; None for both."""
    modes: tuple[str, ...]
    """Modes it must fit, and is timed in."""
    dtype: torch.dtype
    """Dtype of the inputs."""
    dim: int
    """Head dimension, keys and values."""
    warps: int = 0
    """Most warps of a candidate; 0 for any number."""
    general: bool
    """Whether it is for packed sequences, and head dimensions up to `dim` that need masks or
    differ."""


def limited(entry: Entry, arch: str, warps: int) -> Entry | None:
    """The row that LINSCALE_KERNEL_WARPS takes in an entry's place; None where it needs none."""
    if table(entry.family, arch)[entry.key]["num_warps"] <= warps:
        return None
    return replace(entry, key=f"warps{warps}/{entry.key}", warps=warps)


def entries(families: Sequence[str], arch: str, dims: Sequence[int] = DIMS) -> Iterator[Entry]:
    """Every row of an architecture's tables: those of several modes, then the modes' own."""
    for family in families:
        name = "scalar" if family == "phase" else family
        rows = table(name, arch)
        for dtype, bits in ((torch.bfloat16, 16), (torch.float32, 32)):
            for dim in dims:
                for kernel, (function, reverse, modes) in KERNELS[family].items():
                    own = {mode: f"{kernel}/{mode}/{bits}/{dim}" for mode in modes}
                    shared = tuple(mode for mode in modes if own[mode] not in rows)
                    keys = {f"{kernel}/{bits}/{dim}": shared or modes}
                    keys |= {key: (mode,) for mode, key in own.items() if key in rows}
                    general = f"{kernel}/general/{bits}/{dim}"
                    keys |= {general: modes} if general in rows else {}
                    for key, served in keys.items():
                        yield Entry(
                            family=name, key=key, kernel=kernel, function=function,
                            reverse=reverse, modes=served, dtype=dtype, dim=dim,
                            general=key == general,
                        )  # fmt: skip


def candidates(entry: Entry) -> Iterator[dict[str, int]]:
    """Launch constants worth trying, best guess first, without repetitions."""
    dim, wide = entry.dim, entry.dtype != torch.float32
    if entry.family == "vector":
        tiles = (
            (64, 128, 8), (32, 128, 8), (64, 64, 4), (32, 64, 8), (32, 32, 8), (16, 64, 8),
            (16, 32, 8), (16, 16, 8), (32, 64, 4), (32, 32, 4), (16, 64, 4), (16, 32, 4),
            (16, 16, 4),
        )  # fmt: skip
        tiles = (*((*tile, 1) for tile in tiles), (64, 64, 4, 2), (32, 64, 4, 3), (64, 64, 8, 3))
        names = ("BK", "BV", "num_warps", "num_stages")
        rest = {"BT": 64}
    elif entry.family == "delta":
        # A program of the passes over tiles holds all key channels of some value channels.
        most = 64 if dim <= 128 else 32
        sides = [side for side in (64, 32, 16) if side <= (most if wide else most // 2)]
        warps = ((8, 1), (8, 2), (4, 1), (4, 2))
        if entry.kernel in ("scan", "errors", "reverse"):
            names = ("BV", "num_warps", "num_stages")
            tiles = tuple((side, *rest) for side in sides for rest in warps)
        elif entry.kernel == "pairs":
            names = ("BK", "num_warps", "num_stages")
            tiles = tuple((side, *rest) for side in (32, 64, 16) for rest in warps)
        else:
            names = ("BK", "BV", "num_warps", "num_stages")
            squares = ((32, 32), (64, 64), (32, 64), (16, 32), (16, 16))
            tiles = tuple((*square, *rest) for square in squares for rest in warps)
        rest = {}
    elif entry.kernel == "states":
        tiles = (
            (64, 64, 64, 4, 2), (32, 32, 64, 4, 2), (32, 32, 32, 4, 1), (16, 16, 32, 4, 1),
            (64, 64, 64, 4, 3), (64, 64, 128, 4, 2), (64, 64, 128, 8, 3), (32, 64, 128, 4, 3),
        )  # fmt: skip
        names, rest = ("BK", "BV", "C", "num_warps", "num_stages"), {}
    elif entry.kernel == "decay":
        tiles = (
            (64, 64, 8), (32, 32, 8), (32, 32, 16), (16, 16, 8), (16, 16, 16), (32, 32, 4),
            (16, 16, 4),
        )  # fmt: skip
        names, rest = ("BK", "BV", "num_warps"), {"num_stages": 1}
    else:
        tiles = (
            (64, 64, 4, 2), (64, 64, 8, 2), (32, 64, 4, 2), (32, 64, 4, 1), (32, 64, 8, 2),
            (16, 64, 4, 2), (16, 64, 8, 2), (16, 64, 4, 1), (16, 64, 8, 1), (32, 32, 4, 2),
            (16, 32, 4, 2), (16, 32, 8, 1), (16, 16, 4, 1), (16, 16, 8, 1),
        )  # fmt: skip
        more = (
            (64, 64, 4, 3), (64, 64, 8, 3), (32, 64, 4, 3), (64, 128, 4, 2), (64, 128, 8, 2),
            (64, 128, 8, 3), (128, 64, 8, 2), (128, 64, 8, 3), (128, 128, 8, 2), (32, 128, 4, 3),
        )  # fmt: skip
        tiles = (*tiles, *more) if wide else tiles[9:]
        width = "BT" if entry.kernel in ("gradients", "phase_inputs") else "BV"
        names, rest = (width, "C", "num_warps", "num_stages"), {}
    seen = []
    for tile in tiles:
        constants = dict(zip(names, tile, strict=True)) | rest
        for side in {"BK", "BV", "BT"} & set(names):
            constants[side] = min(constants[side], dim)
        if entry.warps and constants["num_warps"] > entry.warps:
            continue
        if constants not in seen:
            seen.append(constants)
            yield constants
