"""Rewrite the tuning tables: the launch constants of every kernel, dtype and head dimension.

On a GPU each candidate (`rows`) that compiles and fits shared memory is timed (`measuring`), those
that spill registers too, and the fastest kept (`linscale tune`). Offline, candidates are compiled
for the architecture and the first that spills nothing, in order of preference, is kept; where every
candidate spills, the one that spills least. What the kept one spills is recorded under the table's
key "spills". A table is written after each of its rows, so that a run that is cut short keeps what
it has. Nothing is tuned while a model runs.

Preference: what the table holds already (compiling cannot tell which of two that do not spill is
the faster, so a second offline run changes nothing); then wide tiles (fewer rereads of the inputs),
chunks of 64 tokens (the height of a Hopper tensor-core instruction), few warps, two stages of
prefetch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

from models.kernels.tools.measuring import judged, seconds
from models.kernels.tools.offline import SHARED_LIMIT
from models.kernels.tools.rows import DIMS, KERNELS, Entry, candidates, entries, limited
from models.kernels.triton.common import ARCHS, TUNING, architecture, assume_architecture, table


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
        families: of "scalar", "phase", "vector", "delta".
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
