"""What every Triton kernel of the house shares: decay arithmetic, packed sequences, tuning tables.

Decays are handled in base 2 and every exponent is a sum of non-positive terms, so nothing can
overflow. Inside a chunk the running sum G of log2 decays is kept as two float32 numbers,

    G_i = hi_i + lo_i,   hi: multiples of 1/16 (sums are exact),   lo: remainders within 1/32,

because a difference G_i - G_j of plain float32 sums loses its digits after one strong decay
earlier in the chunk. One step is floored at 2^`FLOOR` (below float32's smallest number, so it
still equals an exact zero); -inf is therefore a legal decay and its gradient is zero.

Tuning tables are `tuning/<family>.<arch>.json`: a flat object from a key to the constants of one
launch (`num_warps`, `num_stages` and the kernel's own constexprs). `tuned` looks up, in order,

    kernel/mode/bits/D, or kernel/general/bits/D (see `tuned`)      kernel/bits/D
    (with LINSCALE_KERNEL_WARPS=N first warpsN/ before either, where the row has more warps)

where D is the larger of K and V rounded up to a power of two (at least 16), and bits is 16 (bf16,
fp16) or 32. Nothing is keyed on the sequence length or the batch, and nothing is timed at run time;
`linscale tune` rewrites a table on the machine it runs on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.kernels.call import Call
from models.kernels.delta.call import DeltaCall

LOG2E = tl.constexpr(1.4426950408889634)
FLOOR = tl.constexpr(-160.0)

NONE, HEAD, HEAD_T = 0, 1, 2
"""Decay modes of the scalar kernels: none, one a head, one a token and head."""

MAX_HEAD_DIM = 256
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
TUNING = Path(__file__).parent / "tuning"
ARCHS = ("sm_80", "sm_90", "sm_100", "gfx942")


@triton.jit
def log2_decay(decay):
    """A log decay in nats as (hi, lo) in bits: floored, hi a multiple of 1/16, lo the remainder."""
    bits = tl.maximum(decay.to(tl.float32) * LOG2E, FLOOR)
    hi = tl.floor(bits * 16.0 + 0.5) * 0.0625
    return hi, bits - hi


@triton.jit
def turns(theta):
    """Angle in radians a step as a 32-bit fraction of a turn, the unit of `rotation`.

    position * turns wraps around exactly, so phases keep 2^-32 of a turn times the position at any
    position, where a float32 angle would lose a digit for every factor of ten.
    """
    fraction = theta.to(tl.float64) * 0.15915494309189535  # 1 / (2 pi)
    fraction = fraction - tl.floor(fraction)
    return (fraction * 4294967296.0 + 0.5).to(tl.int64).to(tl.int32)


@triton.jit
def rotation(angle):
    """Cosine and sine of a 32-bit angle: quadrant from the top bits, Taylor series within it."""
    quadrant = ((angle >> 29) + 1) >> 1
    x = (angle - (quadrant << 30)).to(tl.float32) * 1.4629180792671596e-09  # 2 pi / 2^32
    y = x * x
    sin = x * (1 - y * (1 / 6 - y * (1 / 120 - y * (1 / 5040 - y * (1 / 362880)))))
    cos = 1 - y * (1 / 2 - y * (1 / 24 - y * (1 / 720 - y * (1 / 40320))))
    odd = (quadrant & 1) != 0
    c = tl.where(odd, -sin, cos)
    s = tl.where(odd, cos, sin)
    back = (quadrant & 2) != 0
    return tl.where(back, -c, c), tl.where(back, -s, s)


@triton.jit
def locate(entry, cu_seqlens, tokens, sequences, segment, PACKED: tl.constexpr):
    """Where segment number `entry` of a batch lies; every sequence has at least one segment.

    Rows of a batch are cut into segments of `segment` tokens one after the other. Packed sequences
    have lengths that only the device knows: the grid has tokens // segment + sequences entries,
    an upper bound, and the entries left over get a sequence number >= `sequences`.

    Returns:
        n: sequence; index: segment within it; start: first token of the sequence in its row;
        length: tokens of the sequence.
    """
    if PACKED:
        n = entry * 0
        first = entry * 0
        total = entry * 0
        for base in range(0, sequences, 64):
            i = base + tl.arange(0, 64)
            real = i < sequences
            begin = tl.load(cu_seqlens + i, mask=real, other=0).to(tl.int32)
            end = tl.load(cu_seqlens + i + 1, mask=real, other=0).to(tl.int32)
            pieces = tl.where(real, tl.maximum(tl.cdiv(end - begin, segment), 1), 0)
            ends = total + tl.cumsum(pieces, 0)
            before = real & (ends <= entry)
            n += tl.sum(before.to(tl.int32), 0)
            first = tl.maximum(first, tl.max(tl.where(before, ends, 0), 0))
            total += tl.sum(pieces, 0)
        real_n = n < sequences
        start = tl.load(cu_seqlens + n, mask=real_n, other=0).to(tl.int32)
        length = tl.load(cu_seqlens + n + 1, mask=real_n, other=0).to(tl.int32) - start
        index = entry - first
    else:
        pieces = tl.maximum(tl.cdiv(tokens, segment), 1)
        n = entry // pieces
        index = entry % pieces
        start = entry * 0
        length = entry * 0 + tokens
    return n, index, start, length


@triton.jit
def whole_sequence(n, h, cu_seqlens, tokens, PACKED: tl.constexpr):
    """Where sequence n lies, for a program that walks all of it.

    Args:
        n: sequence.
        h: any int64 number of the program.

    Returns:
        batch: row; begin: first token in it, both int64; length: tokens.
    """
    if PACKED:
        begin = tl.load(cu_seqlens + n).to(tl.int64)
        length = (tl.load(cu_seqlens + n + 1) - begin).to(tl.int32)
        batch = h * 0
    else:
        begin = h * 0
        length = tokens
        batch = n.to(tl.int64)
    return batch, begin, length


@triton.jit
def first_entry(n, cu_seqlens, tokens, segment, PACKED: tl.constexpr):
    """Number of the first segment of sequence n in the order of `locate`."""
    if PACKED:
        entry = n * 0
        for base in range(0, n, 64):
            i = base + tl.arange(0, 64)
            real = i < n
            begin = tl.load(cu_seqlens + i, mask=real, other=0).to(tl.int32)
            end = tl.load(cu_seqlens + i + 1, mask=real, other=0).to(tl.int32)
            pieces = tl.maximum(tl.cdiv(end - begin, segment), 1)
            entry += tl.sum(tl.where(real, pieces, 0), 0)
    else:
        entry = n * tl.maximum(tl.cdiv(tokens, segment), 1)
    return entry


def segment_entries(tokens: int, sequences: int, segment: int, packed: bool) -> int:
    """Grid bound of `locate`: exact for a plain batch, an upper bound for packed sequences."""
    if packed:
        return tokens // segment + sequences
    return sequences * max(-(-tokens // segment), 1)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter (TRITON_INTERPRET=1 when triton was imported)."""
    return not isinstance(locate, triton.runtime.JITFunction)


def check_inputs(call: Call) -> None:
    """Validate what all modes share.

    Raises:
        ValueError: device, dtype or shape outside what the kernels support.
    """
    q, k, v, decay, initial_state, cu_seqlens, position_offset = call
    # Tensors without memory ("meta") record launches to be compiled offline.
    if q.device.type not in ("cuda", "meta") and not interpreted():
        raise ValueError(
            f"Triton kernels need tensors on a GPU, got {q.device}; on a CPU call "
            "models.kernels.linear_attention, which picks the PyTorch form."
        )
    if q.dtype not in DTYPES or k.dtype != q.dtype or v.dtype != q.dtype:
        raise ValueError(
            f"q, k, v have dtypes {q.dtype}, {k.dtype}, {v.dtype}: the Triton kernels take one of "
            "bfloat16, float16 or float32 for all three; cast them, or move to the CPU for float64."
        )
    if q.ndim != 4 or q.shape != k.shape or v.ndim != 4 or v.shape[:3] != q.shape[:3]:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}: expected (B, T, H, K), "
            "(B, T, H, K) and (B, T, H, V)."
        )
    batch, _, heads, key_dim = q.shape
    value_dim = v.shape[-1]
    if not (1 <= key_dim <= MAX_HEAD_DIM and 1 <= value_dim <= MAX_HEAD_DIM):
        raise ValueError(
            f"head dimensions K={key_dim}, V={value_dim}: the kernels support 1 to {MAX_HEAD_DIM}; "
            "use more heads."
        )
    if cu_seqlens is not None and (
        batch != 1 or cu_seqlens.ndim != 1 or cu_seqlens.device != q.device
    ):
        raise ValueError(
            f"cu_seqlens of shape {tuple(cu_seqlens.shape)} on {cu_seqlens.device} with batch "
            f"{batch}: packed sequences need B = 1 and a 1-D offset tensor on {q.device}."
        )
    shapes = {
        "head": (heads,),
        "head_t": tuple(q.shape[:3]),
        "vector": tuple(q.shape),
        "gate": tuple(q.shape[2:]),
        "phase": tuple(q.shape[2:]),
    }
    if decay is not None and tuple(decay.shape) != shapes[call.mode]:
        name = {"gate": "lower_bound", "phase": "theta"}.get(call.mode, "decay")
        raise ValueError(
            f"{name} has shape {tuple(decay.shape)}: with q of shape {tuple(q.shape)} it must be "
            f"{shapes[call.mode]}."
        )
    if initial_state is not None and initial_state.shape != call.state_shape:
        raise ValueError(
            f"initial_state has shape {tuple(initial_state.shape)}, expected (N, H, K, V) = "
            f"{call.state_shape}."
        )
    if position_offset is not None and position_offset.numel() not in (1, call.sequences):
        raise ValueError(
            f"position_offset has {position_offset.numel()} elements: give one, or one for each of "
            f"the {call.sequences} sequences."
        )


def strides(tensor: Tensor | None, ndim: int) -> tuple[int, ...]:
    """Strides in elements, or zeros for an absent tensor."""
    return (0,) * ndim if tensor is None else tensor.stride()


def block(dim: int) -> int:
    """Tile width that holds a head dimension: the next power of two, at least 16."""
    return max(16, 1 << (dim - 1).bit_length())


_assumed: str | None = None


@contextmanager
def assume_architecture(arch: str) -> Iterator[None]:
    """Use the tuning table of `arch` whatever the machine, to compile for it without having it."""
    global _assumed
    before, _assumed = _assumed, arch
    try:
        yield
    finally:
        _assumed = before


def architecture(device: torch.device | None = None) -> str:
    """Tuning table of a device: `sm_80` (also consumer cards), `sm_90`, `sm_100` or `gfx942`.

    The interpreter uses sm_90's, so that its tests run the constants that ship.
    """
    return _assumed or _architecture(device)


@cache
def _architecture(device: torch.device | None) -> str:
    if not torch.cuda.is_available():
        return "sm_90"
    if torch.version.hip is not None:
        return "gfx942"
    major = torch.cuda.get_device_capability(_on_gpu(device))[0]
    # Consumer Blackwell (12.x) has Ada's shared memory, so it takes Ampere's small tiles.
    return {9: "sm_90", 10: "sm_100"}.get(major, "sm_80")


@cache
def multiprocessors(device: torch.device | None = None) -> int:
    """Streaming multiprocessors (compute units) of a device; 132 without one."""
    if not torch.cuda.is_available():
        return 132
    return torch.cuda.get_device_properties(_on_gpu(device)).multi_processor_count


def _on_gpu(device: torch.device | None) -> torch.device | None:
    """The device, or for tensors without memory (and the interpreter's) the current GPU."""
    return device if device is not None and device.type == "cuda" else None


@cache
def table(family: str, arch: str) -> dict[str, dict[str, int]]:
    """The checked-in constants of a kernel family ("scalar", "vector") on one architecture."""
    return json.loads((TUNING / f"{family}.{arch}.json").read_text())


_trials: dict[str, dict[str, int]] = {}


@contextmanager
def trial(family: str, kernel: str, constants: dict[str, int]) -> Iterator[None]:
    """Launch `kernel` with these constants instead of the table's, to measure or compile them."""
    _trials[f"{family}/{kernel}"] = constants
    try:
        yield
    finally:
        del _trials[f"{family}/{kernel}"]


def tuned(family: str, kernel: str, call: Call | DeltaCall, arch: str) -> dict[str, int]:
    """Constants of one launch by the module docstring's lookup rule.

    A mode's own row is for batches of rows and equal head dimensions that fill their tiles. The
    general one is for the rest: packed sequences, masks and unequal sides take registers.

    Raises:
        KeyError: the table has no entry, a defect of the table (a test covers every key).
    """
    if f"{family}/{kernel}" in _trials:
        return _trials[f"{family}/{kernel}"]
    key_dim, value_dim = call.q.shape[3], call.v.shape[3]
    bits = 16 if call.q.dtype.itemsize == 2 else 32
    dim = block(max(key_dim, value_dim))
    form = call.mode if key_dim == value_dim == dim and not call.packed else "general"
    entries = table(family, arch)
    keys = (f"{kernel}/{form}/{bits}/{dim}", f"{kernel}/{bits}/{dim}")
    for key in keys:
        if key in entries:
            return _within_warps(entries, key)
    raise KeyError(f"{family}.{arch}.json has none of {', '.join(keys)}; run linscale tune.")


def _within_warps(entries: dict[str, dict[str, int]], key: str) -> dict[str, int]:
    """The row `key`, or with LINSCALE_KERNEL_WARPS=N, where it has more warps than that, the row
    warpsN/`key`; without one the row itself with N warps, right but slow."""
    limit, row = os.environ.get("LINSCALE_KERNEL_WARPS", ""), entries[key]
    if not limit.isdigit() or row["num_warps"] <= int(limit):
        return row
    return entries.get(f"warps{limit}/{key}", row | {"num_warps": int(limit)})


def dot_precision(dtype: torch.dtype, arch: str) -> str:
    """`input_precision` of `tl.dot`: float32 operands keep float32 accuracy on tensor cores."""
    exact = dtype != torch.float32 or interpreted() or arch.startswith("gfx")
    return "ieee" if exact else "tf32x3"
