"""Whether this machine's compiler makes right kernels: measured once, before a model relies on it.

Compilers of GPU code have made kernels with several products wrong without a word (`KNOWN`). So a
mode's first forward pass on a CUDA device runs one small case of it, forward and backward in
bfloat16, against float64 on the CPU (`chunked`, which the tests hold to the recurrence). The
verdict is kept in `folder()` under the mode, the device, the versions and the kernels' sources, and
asked for again when one of them changes. Every process reads it; those that start together on a
machine without one all make it.

Not looked at: other head dimensions and dtypes than the case's, packed sequences, and the kernels
of decoding and of the loss.

LINSCALE_KERNEL_CHECK=off leaves it out. LINSCALE_KERNEL_WARPS=4 launches no kernel with more warps
(`triton.common.tuned`), TRITON_PTXAS_PATH names another assembler: both are remedies to try.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from models.kernels import launch
from models.kernels.call import Call
from models.kernels.delta.call import DeltaCall
from models.kernels.lrpe import lrpe

LIMIT = 2e-2
"""Largest RMS ratio of an output or gradient to be called right: between the rounding of bfloat16
and what a wrong tile does. No device has been met to try it on."""
TOKENS, HEADS, DIM = 640, 2, 128
"""Of each case: sequences long enough to be cut, the head dimension that runs have."""
Version = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known, or reported in public, of a range of versions."""

    what: str
    archs: tuple[str, ...]
    """Tuning tables of the devices it is about."""
    tool: str
    """`triton` or `ptxas`."""
    first: Version
    end: Version
    """The first version that is free of it."""
    remedy: str


KNOWN = (
    Known(
        what="the compiler ends in an assertion of its own on gradients of learned decays (H,)",
        archs=("sm_100",), tool="triton", first=(3, 6), end=(3, 8),
        remedy="install Triton 3.8 or later",
    ),
    Known(
        what="reported: wrong gradients of gated kernels with 8 warps",
        archs=("sm_90",), tool="triton", first=(3, 4), end=(3, 7, 1),
        remedy="set LINSCALE_KERNEL_WARPS=4, or install Triton 3.7.1 or later",
    ),
    Known(
        what="reported: wrong results of kernels with several matrix products",
        archs=("sm_90",), tool="ptxas", first=(12, 8), end=(13, 1),
        remedy="set TRITON_PTXAS_PATH, and for Triton 3.9 TRITON_PTXAS_BLACKWELL_PATH, to the "
        "ptxas of CUDA 12.6, or of 13.1 or later",
    ),
)  # fmt: skip
"""Versions to be wary of. Whether they do harm here is for the check to say."""


class KernelError(RuntimeError):
    """Kernels that this machine's compiler makes are wrong; the message names the remedy."""


def known(arch: str, versions: dict[str, str]) -> list[Known]:
    """The entries of `KNOWN` that are about a device and versions {"triton": ..., "ptxas": ...}."""
    found: list[Known] = []
    for one in KNOWN:
        version = _numbers(versions.get(one.tool, ""))
        if arch in one.archs and version and one.first <= version < one.end:
            found.append(one)
    return found


def _numbers(version: str) -> Version:
    """The leading numbers of a version: 3.6.0+git is (3, 6, 0)."""
    parts: list[int] = []
    for part in version.split("+")[0].split("."):
        if not part.isdigit():
            break
        parts.append(int(part))
    return tuple(parts)


def versions(device: torch.device) -> dict[str, str]:
    """What a verdict holds for: device, compilers, the kernels' own sources and options."""
    import triton

    from models.kernels.triton.common import architecture

    sources = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*")):
        if path.suffix in (".py", ".json"):
            sources.update(path.read_bytes())
    return {
        "device": torch.cuda.get_device_name(device),
        "arch": architecture(device),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "ptxas": _assembler(device),
        "warps": os.environ.get("LINSCALE_KERNEL_WARPS", ""),
        "sources": sources.hexdigest(),
    }


def _assembler(device: torch.device) -> str:
    """Version of the assembler that Triton runs for a device; empty where it has none (AMD)."""
    if torch.version.hip is not None:
        return ""
    from triton.backends.nvidia.compiler import get_ptxas

    major, minor = torch.cuda.get_device_capability(device)
    return str(get_ptxas(10 * major + minor).version)


def folder() -> Path:
    """Where verdicts are kept: `linscale/kernels` in XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "linscale" / "kernels"


def ensure(device: torch.device, mode: str) -> None:
    """Nothing where a mode's kernels are right on a CUDA device: asked once a process.

    Raises:
        KernelError: they are not; the message names the error, versions and remedies.
    """
    if os.environ.get("LINSCALE_KERNEL_CHECK") == "off":
        return
    if not torch.cuda.is_current_stream_capturing():  # a graph can hold no check
        _ensure(device, mode)


@cache
def _ensure(device: torch.device, mode: str) -> None:
    found = versions(device)
    name = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]
    path = folder() / f"{name}-{mode}.json"
    try:
        verdict = json.loads(path.read_text())["errors"]
    except (OSError, ValueError, KeyError):
        verdict = errors(device, modes=(mode,))
        _keep(path, {"versions": found, "errors": verdict})
    judge(verdict, found)


def judge(verdict: dict[str, float], found: dict[str, str]) -> None:
    """Raise KernelError unless the errors of all modes are within `LIMIT`."""
    wrong = {mode: error for mode, error in verdict.items() if not error <= LIMIT}
    if not wrong:
        return
    entries = known(found["arch"], found)
    remedies = "; ".join(f"{one.what}: {one.remedy}" for one in entries) or (
        "set LINSCALE_KERNEL_WARPS=4, or TRITON_PTXAS_PATH to another CUDA's ptxas, or install "
        "another Triton"
    )
    raise KernelError(
        f"kernels compiled on this machine ({found['device']}, Triton {found['triton']}, ptxas "
        f"{found['ptxas']}) differ from float64 by "
        + ", ".join(f"{error:.2g} ({mode})" for mode, error in wrong.items())
        + f", more than {LIMIT}. {remedies}. LINSCALE_KERNEL_CHECK=off runs them regardless."
    )


def _keep(path: Path, content: dict[str, object]) -> None:
    """Write a verdict whole or not at all; a folder that cannot be written costs a new check."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(json.dumps(content, indent=1))
        os.replace(file.name, path)
    except OSError:
        return


def errors(
    device: torch.device,
    tokens: int = TOKENS,
    dim: int = DIM,
    dtype: torch.dtype = torch.bfloat16,
    modes: Iterable[str] | None = None,
) -> dict[str, float]:
    """Largest RMS ratio, over outputs and gradients, of modes (None: all); NaN counts as
    infinite."""
    with torch.device("cpu"):  # whatever the default: what is random is made on the CPU
        found = launch.KERNELS if modes is None else modes
        return {mode: _error(mode, device, tokens, dim, dtype) for mode in found}


def _error(mode: str, device: torch.device, tokens: int, dim: int, dtype: torch.dtype) -> float:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=generator).to(kind)

    q, k = normal(1, tokens, HEADS, dim) * dim**-0.5, normal(1, tokens, HEADS, dim)
    v, do = normal(1, tokens, HEADS, dim), normal(1, tokens, HEADS, dim)
    rows = 2 * dim if mode == "phase" else dim
    state, dstate = (normal(1, HEADS, rows, dim, kind=torch.float32) for _ in range(2))
    shapes = {"head": (HEADS,), "head_t": (1, tokens, HEADS), "vector": tuple(q.shape)}
    shapes |= dict.fromkeys(("gate", "phase"), (HEADS, dim))
    shapes |= {"delta_head": shapes["head_t"], "delta_channel": shapes["vector"]}
    decay = torch.rand(shapes[mode], generator=generator) if mode in shapes else None
    if decay is not None:
        decay = 0.9 * decay if mode in ("gate", "phase") else -0.1 * decay
    offset = torch.tensor([3]) if mode == "phase" else None
    call: Call | DeltaCall = Call(q, k, v, decay, state, None, offset)
    if mode.startswith("delta"):
        beta = torch.rand((1, tokens, HEADS), generator=generator).to(dtype)
        k = torch.nn.functional.normalize(k.float(), dim=-1).to(dtype)
        call = DeltaCall(q, k, v, beta, decay, state)
    expected, scales = _exact(call, do, dstate)
    given = type(call)(*(None if x is None else x.to(device) for x in call))  # pyright: ignore
    kernels = launch.choose(given, "cuda")
    o, final, kept = kernels.forward(given)
    found = (o, final, *kernels.backward(given, kept, do.to(device), dstate.to(device), True))
    worst = 0.0
    for x, y, scale in zip(found, expected, scales, strict=True):
        if x is None and y is None:
            continue
        assert x is not None
        assert y is not None
        ratio = float((x.double().cpu() - y).norm() / scale.norm())
        worst = max(worst, ratio if ratio == ratio else float("inf"))
    return worst


def _exact(
    call: Call | DeltaCall, do: Tensor, dstate: Tensor
) -> tuple[list[Tensor | None], list[Tensor]]:
    """Outputs and gradients in float64, and what their errors are measured by: themselves, but for
    slopes, whose gradient is a sum over tokens that may cancel, the sum of its absolute terms."""
    widened = (x.double() if x is not None and x.is_floating_point() else x for x in call)
    wide = type(call)(*widened)  # pyright: ignore
    mode, decay = call.mode, wide.decay
    run = wide
    if mode == "head":
        assert decay is not None
        run = wide._replace(decay=decay.expand(wide.q.shape[:3]).contiguous())
    positions = torch.arange(call.q.shape[1], dtype=torch.float64)
    if mode == "phase":
        assert decay is not None
        assert isinstance(call, Call)
        assert call.position_offset is not None
        positions = positions + call.position_offset
        q, k = (lrpe(x, decay, positions) for x in (wide.q, wide.k))
        run = Call(q, k, wide.v, None, wide.initial_state)
    kernels = launch.choose(run, "cpu")
    o, final, kept = kernels.forward(run)
    gradients = kernels.backward(run, kept, do.double(), dstate.double(), True)
    results = [o, final, *gradients]
    if mode == "phase":
        assert decay is not None
        dq, dk = gradients[:2]
        assert dq is not None
        assert dk is not None
        angle = positions[:, None, None] * decay
        turns: list[Tensor] = []
        for x, dx in ((wide.q, dq), (wide.k, dk)):
            first, second = dx.chunk(2, -1)
            turns.append(x * (second * angle.cos() - first * angle.sin()))
        results[5] = ((turns[0] + turns[1]) * positions[:, None, None]).sum((0, 1))
        halves = (x.chunk(2, -1) for x in (dq, dk))
        results[2:4] = (a * angle.cos() + b * angle.sin() for a, b in halves)
    scales = [torch.ones(1) if x is None else x for x in results]
    if mode == "head":
        ddecay = results[5]
        assert ddecay is not None
        results[5], scales[5] = ddecay.sum((0, 1)), ddecay.abs().sum((0, 1))
    return results, scales
