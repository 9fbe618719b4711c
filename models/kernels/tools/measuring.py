"""Measure candidates for a row of the tuning tables: by time on a device, or by compiling.

Timed is the row's kernel alone, on random data, in every mode that the row serves, at the shapes of
`SHAPES`; of these the geometric mean counts. Compiling, which needs no GPU, tells what a candidate
spills and whether it fits shared memory.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from itertools import product
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from models.kernels import launch
from models.kernels.call import Call
from models.kernels.delta.call import DeltaCall
from models.kernels.tools.offline import SHARED_LIMIT, Launch, compile_launch, record
from models.kernels.tools.rows import Entry
from models.kernels.triton.common import assume_architecture, interpreted, trial

SHAPES = ((1, 8192, 8), (8, 8192, 16))
"""Sequences, tokens and heads that candidates are timed at: a small model's micro-batch of one,
where sequences are cut to fill the GPU, and one that fills it."""

Run = Callable[[], None]


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
) -> tuple[Call | DeltaCall, Tensor, Tensor]:
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
    elif mode not in ("none", "delta"):
        shapes = {"head": (heads,), "head_t": q.shape[:3], "vector": q.shape}
        shapes |= {"delta_head": q.shape[:3], "delta_channel": q.shape}
        shape = shapes[mode]
        decay = -0.1 * uniform(*shape, kind=dtype if len(shape) == 4 else torch.float32)
    if mode.startswith("delta"):
        k = torch.nn.functional.normalize(k, dim=-1)
        beta = uniform(batch, tokens, heads, kind=dtype)
        return DeltaCall(q, k, v, beta, decay, state, cu), do, dstate
    offset = None
    if mode == "phase":
        offset = torch.zeros(1, dtype=torch.int64, device=device)
    return Call(q, k, v, decay, state, cu, offset), do, dstate


def runner(arguments: tuple[Call | DeltaCall, Tensor, Tensor], segment: int | None = 512) -> Run:
    """Forward and backward of what `sample` gives; unless `segment` is None and they are short,
    sequences are cut, which takes every kernel of the mode."""
    one, do, dstate = arguments
    module = import_module(f"models.kernels.{launch.KERNELS[one.mode].triton}")
    cuts = one.mode in ("none", "head", "head_t", "phase")
    cut = {"segment": segment} if cuts else {}

    def run() -> None:
        kept = module.forward(one, **cut)[2]
        module.backward(one, kept, do, dstate, **cut)

    return run


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
            launched = launched or repeated(entry, runner(arguments))
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
        run = runner(sample(mode, entry.dtype, shape[0], shape[1], "meta", 2048, shape[2]))
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
