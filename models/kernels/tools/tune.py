"""Rewrite the tuning tables: the launch constants of every kernel, dtype and head dimension.

On a GPU each candidate that compiles and fits shared memory is timed, those that spill registers
too, and the fastest kept (`linscale tune`): the row's kernel alone, on random data, in every mode
that the row serves, at the shapes of `SHAPES`; of these the geometric mean counts. Offline,
candidates are compiled for the architecture and the first that spills nothing, in order of
preference, is kept; where every candidate spills, the one that spills least. What the kept one
spills is recorded under the table's key "spills". A table is written after each of its rows, so
that a run that is cut short keeps what it has. Nothing is tuned while a model runs.

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
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from itertools import product
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.kernels import launch
from models.kernels.call import Call
from models.kernels.tools.offline import SHARED_LIMIT, Launch, compile_launch, record
from models.kernels.triton.common import (
    ARCHS,
    TUNING,
    architecture,
    assume_architecture,
    interpreted,
    table,
    trial,
)

DIMS = (16, 32, 64, 128, 256)
SHAPES = ((1, 8192, 8), (8, 8192, 16))
"""Sequences, tokens and heads that candidates are timed at: a small model's micro-batch of one,
where sequences are cut to fill the GPU, and one that fills it."""
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
            (16, 32, 8), (16, 16, 8), (32, 64, 4), (32, 32, 4), (16, 64, 4), (16, 32, 4),
            (16, 16, 4),
        )  # fmt: skip
        tiles = (*((*tile, 1) for tile in tiles), (64, 64, 4, 2), (32, 64, 4, 3), (64, 64, 8, 3))
        names = ("BK", "BV", "num_warps", "num_stages")
        rest = {"BT": 64}
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


def sample(
    mode: str,
    dtype: torch.dtype,
    key_dim: int,
    value_dim: int,
    device: str,
    tokens: int,
    packed: bool = False,
    batch: int = 1,
    heads: int = 16,
) -> tuple[Call, Tensor, Tensor]:
    """Arguments of a mode, with an initial state, and gradients of o and of the final state: random
    ones, of which the decays are a model's; packed, three sequences in one row of all tokens."""
    if packed:
        batch, tokens = 1, batch * tokens
    sequences = 3 if packed else batch
    generator = None if device == "meta" else torch.Generator(device).manual_seed(0)

    def normal(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=kind, device=device).normal_(generator=generator)

    def uniform(*shape: int, kind: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=kind, device=device).uniform_(generator=generator)

    q = normal(batch, tokens, heads, key_dim) * key_dim**-0.5
    k = normal(batch, tokens, heads, key_dim)
    v, do = (normal(batch, tokens, heads, value_dim) for _ in range(2))
    rows = 2 * key_dim if mode == "phase" else key_dim
    state = normal(sequences, heads, rows, value_dim, kind=torch.float32)
    dstate = normal(sequences, heads, rows, value_dim, kind=torch.float32)
    cu = None
    if packed:
        bounds = [0, tokens // 5, tokens // 2, tokens]
        cu = torch.empty(4, dtype=torch.int32, device=device)
        if device != "meta":
            cu.copy_(torch.tensor(bounds))
    decay = None
    if mode in ("gate", "phase"):
        decay = 0.9 * uniform(heads, key_dim)
    elif mode != "none":
        shapes = {"head": (heads,), "head_t": q.shape[:3], "vector": q.shape}
        decay = -0.1 * uniform(*shapes[mode], kind=dtype if mode == "vector" else torch.float32)
    offset = None
    if mode == "phase":
        offset = torch.zeros(1, dtype=torch.int64, device=device)
    return Call(q, k, v, decay, state, cu, offset), do, dstate


def runner(arguments: tuple[Call, Tensor, Tensor], segment: int | None) -> Run:
    """Forward and backward of what `sample` gives."""
    one, do, dstate = arguments
    module = import_module(f"models.kernels.{launch.KERNELS[one.mode].triton}")
    cut = {} if one.mode in ("vector", "gate") else {"segment": segment}

    def run() -> None:
        kept = module.forward(one, **cut)[2]
        module.backward(one, kept, do, dstate, **cut)

    return run


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
    return runner(sample(mode, dtype, key_dim, value_dim, device, tokens, packed), segment)


def matches(entry: Entry, kernel: str, reverse: object) -> bool:
    """Whether a launch is one of the entry's."""
    return kernel == entry.function and entry.reverse in (None, reverse)


def repeated(entry: Entry, run: Run) -> list[Run]:
    """The launches of an entry's kernel within `run`, which runs once, as functions that make
    each of them again. They read and write the same memory as in `run`."""
    import triton.runtime.interpreter as interpreter
    from triton.runtime import JITFunction

    kind: Any = interpreter.InterpretedFunction if interpreted() else JITFunction
    original = kind.run
    found: list[Run] = []

    def both(self: Any, *args: Any, **kwargs: Any) -> Any:
        if matches(entry, self.fn.__name__, kwargs.get("REVERSE")):
            found.append(partial(original, self, *args, **kwargs))
        return original(self, *args, **kwargs)

    kind.run = both
    try:
        run()
    finally:
        kind.run = original
    return found


def seconds(entry: Entry, constants: dict[str, int], device: str = "cuda") -> float:
    """Geometric mean of the times of an entry's kernel, over its modes and `SHAPES`."""
    times: list[float] = []
    for mode, (batch, tokens, heads) in product(entry.modes, SHAPES):
        arguments = sample(
            mode, entry.dtype, entry.dim, entry.dim, device, tokens, entry.general, batch, heads
        )
        with trial(entry.family, entry.kernel, constants):
            launched = repeated(entry, runner(arguments, None))
            # What is launched only for cut sequences, where these shapes are not cut.
            launched = launched or repeated(entry, runner(arguments, 512))
            times.append(sum(milliseconds(one) for one in launched) / 1e3)
    return statistics.geometric_mean(times)


def milliseconds(run: Run) -> float:
    """Median time on the device."""
    from triton.testing import do_bench

    return float(do_bench(run, return_mode="median"))  # pyright: ignore[reportArgumentType]


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
            if matches(entry, one.kernel, one.constants.get("REVERSE")):
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
    entry: Entry, arch: str, tried: list[tuple[dict[str, int], int]], offline: bool
) -> tuple[dict[str, int], int]:
    """Constants of an entry and the bytes they spill: the fastest, or offline the first of those
    that spill least.

    Raises:
        RuntimeError: nothing compiled and fitted shared memory.
    """
    if not tried:
        raise RuntimeError(
            f"{arch} {entry.key}: no candidate compiles and fits {SHARED_LIMIT[arch]} bytes."
        )
    if offline or len(tried) == 1:
        least = min(spills for _, spills in tried)
        return next(one for one in tried if one[1] == least)
    times = [seconds(entry, constants) for constants, _ in tried]
    return tried[times.index(min(times))]


def tune(
    arch: str | None = None,
    *,
    offline: bool = False,
    families: Sequence[str] = tuple(KERNELS),
    dims: Sequence[int] = DIMS,
    output: Path | None = None,
    jobs: int = 1,
    warps: int = 0,
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
        warps: instead of the rows themselves, those that LINSCALE_KERNEL_WARPS=`warps` takes.
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
    if warps:
        todo = [one for entry in todo if (one := limited(entry, arch, warps)) is not None]
    tables: dict[str, dict[str, dict[str, int]]] = {}
    written: dict[str, Path] = {}
    with ThreadPoolExecutor(jobs) as threads, assume_architecture(arch):
        compiled = threads.map(partial(attempts, arch=arch, offline=offline), todo)
        if not offline:
            report(f"{arch}: compiling the candidates of {len(todo)} rows")
            compiled = list(compiled)  # timing wants the processor for itself
        for entry, tried in zip(todo, compiled, strict=True):
            constants, spills = choose(entry, arch, tried, offline)
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
