"""Rewrite the tuning tables: the launch constants of every kernel, dtype and head dimension.

On a GPU each candidate that spills no register and fits shared memory is timed and the fastest
kept (`linscale tune`). Offline, candidates are compiled for the architecture and the first such
one, in order of preference, is kept. Where every candidate spills, the one that spills least is
kept and its bytes are recorded under the table's key "spills". A table is written after each of
its rows, so that a run that is cut short keeps what it has. Nothing is tuned while a model runs.

Preference: what the table holds already (compiling cannot tell which of two that do not spill is
the faster, so a second offline run changes nothing); then wide tiles (fewer rereads of the inputs),
chunks of 64 tokens (the height of a Hopper tensor-core instruction), few warps, two stages of
prefetch.

A row `kernel/bits/dim` serves all modes of a kernel that have no row `kernel/mode/bits/dim` of
their own, and with packed sequences and head dimensions that are masked or unequal, unless there is
a row `kernel/general/bits/dim` for these; which rows there are is what the checked-in tables say.

Families: "scalar" (no decay, per-head and per-token decays), "phase" (cosFormer2's rotation, kept
in the scalar table) and "vector" (per-channel decay and HGRN2's gate).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import product
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from models.kernels import launch
from models.kernels.call import Call
from models.kernels.tools.offline import SHARED_LIMIT, Launch, compile_launch, record
from models.kernels.triton.common import (
    ARCHS,
    TUNING,
    architecture,
    assume_architecture,
    table,
    trial,
)

DIMS = (16, 32, 64, 128, 256)
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
}
"""Family -> name in the tables -> kernel function, direction (None for both) and modes."""

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
    general: bool
    """Whether it is for packed sequences, and head dimensions up to `dim` that need masks or
    differ."""


def entries(families: Sequence[str], arch: str, dims: Sequence[int] = DIMS) -> Iterator[Entry]:
    """Every row of an architecture's tables: those of several modes, then the modes' own."""
    for family in families:
        name = "vector" if family == "vector" else "scalar"
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
            (16, 32, 8), (16, 16, 8),
        )  # fmt: skip
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
            (16, 64, 4, 2), (16, 64, 8, 2), (16, 64, 4, 1), (16, 64, 8, 1), (32, 32, 4, 2),
            (16, 32, 4, 2), (16, 32, 8, 1), (16, 16, 4, 1), (16, 16, 8, 1),
        )  # fmt: skip
        tiles = tiles if wide else tiles[9:]
        width = "BT" if entry.kernel in ("gradients", "phase_inputs") else "BV"
        names, rest = (width, "C", "num_warps", "num_stages"), {}
    seen = []
    for tile in tiles:
        constants = dict(zip(names, tile, strict=True)) | rest
        for side in {"BK", "BV", "BT"} & set(names):
            constants[side] = min(constants[side], dim)
        if constants not in seen:
            seen.append(constants)
            yield constants


def sample(
    mode: str,
    dtype: torch.dtype,
    key_dim: int,
    value_dim: int,
    device: str,
    tokens: int,
    packed: bool = False,
) -> tuple[Call, torch.Tensor, torch.Tensor]:
    """Arguments of a mode, with an initial state, and gradients of o and of the final state."""
    sequences = 3 if packed else 1

    def new(*shape: int, kind: torch.dtype = dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=kind, device=device)

    q, k = (new(1, tokens, 16, key_dim) for _ in range(2))
    v, do = (new(1, tokens, 16, value_dim) for _ in range(2))
    rows = 2 * key_dim if mode == "phase" else key_dim
    state, dstate = (new(sequences, 16, rows, value_dim, kind=torch.float32) for _ in range(2))
    cu = new(sequences + 1, kind=torch.int32) if packed else None
    shapes = {"head": (16,), "head_t": (1, tokens, 16), "vector": tuple(q.shape)}
    shapes |= dict.fromkeys(("gate", "phase"), (16, key_dim))
    decay = None
    if mode in shapes:
        decay = new(*shapes[mode], kind=dtype if mode == "vector" else torch.float32) - 0.05
    offset = new(1, kind=torch.int64) if mode == "phase" else None
    return Call(q, k, v, decay, state, cu, offset), do, dstate


def call(
    mode: str,
    dtype: torch.dtype,
    key_dim: int,
    value_dim: int,
    device: str,
    tokens: int,
    packed: bool = False,
    segment: int | None = 512,
) -> Run:
    """Forward and backward in a form that uses every kernel: both states, sequences cut (unless
    `segment` is None and they are short)."""
    arguments, do, dstate = sample(mode, dtype, key_dim, value_dim, device, tokens, packed)
    module = import_module(f"models.kernels.{launch.KERNELS[mode].triton}")
    cut = {} if mode in ("vector", "gate") else {"segment": segment}

    def run() -> None:
        kept = module.forward(arguments, **cut)[2]
        module.backward(arguments, kept, do, dstate, **cut)

    return run


def launches(entry: Entry, arch: str) -> Iterator[Launch]:
    """The launches of an entry's kernel, in every mode it serves."""
    dim = entry.dim
    shapes = [(dim, dim, entry.general)]
    if entry.general:
        shapes.append((dim - dim // 16, dim * 9 // 16, True))
    for mode, shape in product(entry.modes, shapes):
        run = call(mode, entry.dtype, shape[0], shape[1], "meta", 2048, shape[2])
        with assume_architecture(arch), record() as recorded:
            run()
        for one in recorded:
            reverse = one.constants.get("REVERSE")
            if one.kernel == entry.function and entry.reverse in (None, reverse):
                yield one


def spilled(entry: Entry, constants: dict[str, int], arch: str) -> int | None:
    """Most bytes that a launch of the entry's kernel spills; None when shared memory is short."""
    most = 0
    with trial(entry.family, entry.kernel, constants):
        for one in launches(entry, arch):
            evidence = compile_launch(one, arch)
            if evidence.shared > SHARED_LIMIT[arch]:
                return None
            most = max(most, evidence.spilled)
    return most


def _send(connection: Connection, arguments: tuple[Entry, dict[str, int], str]) -> None:
    connection.send(spilled(*arguments))


def judged(entry: Entry, constants: dict[str, int], arch: str) -> int | None:
    """`spilled` from a process of its own, because compilers fail and even abort: None then, and
    what they say is printed."""
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(send, (entry, constants, arch)))
    process.start()
    send.close()
    try:
        return receive.recv()
    except EOFError:
        return None
    finally:
        process.join()


def attempts(entry: Entry, arch: str, offline: bool) -> list[tuple[dict[str, int], int]]:
    """Constants that compile and fit shared memory, and the bytes they spill; the present ones
    first; offline no further than the first that do not spill."""
    present = table(entry.family, arch).get(entry.key)
    first = [] if present is None else [present]
    tried: list[tuple[dict[str, int], int]] = []
    for constants in [*first, *(c for c in candidates(entry) if c != present)]:
        spills = judged(entry, constants, arch)
        if spills is not None:
            tried.append((constants, spills))
        if offline and spills == 0:
            break
    return tried


def choose(
    entry: Entry, arch: str, tried: list[tuple[dict[str, int], int]]
) -> tuple[dict[str, int], int]:
    """Constants of an entry and the bytes they spill: of those that spill least, the fastest.

    Raises:
        RuntimeError: nothing compiled and fitted shared memory.
    """
    if not tried:
        raise RuntimeError(
            f"{arch} {entry.key}: no candidate compiles and fits {SHARED_LIMIT[arch]} bytes."
        )
    least = min(spills for _, spills in tried)
    best = [constants for constants, spills in tried if spills == least]
    if least or len(best) == 1:
        return best[0], least
    from triton.testing import do_bench

    run = call(entry.modes[-1], entry.dtype, entry.dim, entry.dim, "cuda", 8192, entry.general)
    times: list[float] = []
    for constants in best:
        with trial(entry.family, entry.kernel, constants):
            times.append(float(do_bench(run, return_mode="median")))  # pyright: ignore
    return best[times.index(min(times))], 0


def tune(
    arch: str | None = None,
    *,
    offline: bool = False,
    families: Sequence[str] = tuple(KERNELS),
    dims: Sequence[int] = DIMS,
    output: Path | None = None,
    jobs: int = 1,
    report: Callable[[str], None] = print,
) -> list[Path]:
    """Tune the kernels of some families and write their tables; returns the files written.

    Args:
        arch: one of `ARCHS`; None is this machine's GPU. Naming one implies `offline`.
        offline: choose by compiler evidence alone.
        families: of "scalar", "phase", "vector".
        dims: head dimensions, of `DIMS`.
        output: folder to write to; None replaces the checked-in tables.
        jobs: processes that compile at a time.
        report: called with one line per entry.

    Raises:
        ValueError: no GPU and no architecture given, or an unknown architecture, family or
            dimension.
    """
    if arch is None and not torch.cuda.is_available():
        raise ValueError(
            "tune needs a GPU. Without one, name an architecture to choose by compiling alone, "
            f"--offline --arch {' | '.join(ARCHS)}."
        )
    if arch is not None and arch not in ARCHS:
        raise ValueError(f"arch={arch!r}: choose one of {', '.join(ARCHS)}.")
    for family in families:
        if family not in KERNELS:
            raise ValueError(f"families={family!r}: choose from {', '.join(KERNELS)}.")
    for dim in dims:
        if dim not in DIMS:
            raise ValueError(f"dims={dim}: choose from {', '.join(map(str, DIMS))}.")
    if jobs < 1:
        raise ValueError(f"jobs={jobs}: at least one process compiles.")
    offline = offline or arch is not None
    arch = arch or architecture()
    todo = list(entries(families, arch, dims))
    tables: dict[str, dict[str, dict[str, int]]] = {}
    written: dict[str, Path] = {}
    with ThreadPoolExecutor(jobs) as threads, assume_architecture(arch):
        compiled = threads.map(partial(attempts, arch=arch, offline=offline), todo)
        if not offline:
            report(f"{arch}: compiling the candidates of {len(todo)} rows")
            compiled = list(compiled)  # timing wants the processor for itself
        for entry, tried in zip(todo, compiled, strict=True):
            constants, spills = choose(entry, arch, tried)
            # A copy: `table` is cached, and launches read it while this one changes.
            rows = tables.setdefault(entry.family, dict(table(entry.family, arch)))
            recorded = {k: n for k, n in rows.pop("spills", {}).items() if k != entry.key}
            rows[entry.key] = constants
            if spills:
                recorded[entry.key] = spills
            if recorded:
                rows["spills"] = recorded
            path = written[entry.family] = (output or TUNING) / f"{entry.family}.{arch}.json"
            lines = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in rows.items())
            path.write_text("{\n" + lines + "\n}\n")
            report(f"{arch} {entry.key} {constants}{f' spills {spills} bytes' if spills else ''}")
    return list(written.values())
