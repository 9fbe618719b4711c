"""What the compiler made of every kernel, without a GPU: `python -m models.kernels.tools.report`.

    1. Each operation runs forward and backward on tensors without memory; its launches are
       recorded (`tools.offline`).
    2. Each launch is compiled for each target: registers, spills, shared memory, instructions,
       barriers, tensor-core instructions; and how many blocks it has, how many a multiprocessor
       holds, and how often they fill the device (waves).
    3. Bytes: every tensor argument of a launch once, a token and head, beside the operation's
       floor, which is every input, output and gradient once. That is what crosses memory when the
       programs of one head share their reads in L2: a lower bound, the same for everyone.

flash-linear-attention's operations (if installed) go through the same three steps; its autotuned
kernels are compiled in the first of their configurations, so of its rows launches and bytes are
comparable and registers are an example. No time is measured here.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

TOKENS, HEADS = 8192, 96
"""The first of flash-linear-attention's six standard shapes; head dimension by argument."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """Forward and backward of one operation on meta tensors."""

    name: str
    forward: Callable[[], object]
    """Launches the forward kernels and returns what `backward` needs."""
    backward: Callable[[object], None]
    floor: tuple[int, int]
    """Least bytes a token and head, forward and backward."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One launch on one target."""

    operation: str
    direction: str
    kernel: str
    configuration: str
    target: str
    registers: int
    spilled: int
    shared: int
    instructions: int
    barriers: int
    blocks: int
    resident: int
    waves: float
    tensor_core: str
    moved: float


def _new(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def ours(dim: int, dtype: torch.dtype) -> Iterator[Operation]:
    """Every mode of `linear_attention`, decays without and with gradient, HGRN2's gate, the cosine
    form, a step of decoding, and the delta rule."""
    from models.kernels import launch
    from models.kernels.call import Call
    from models.kernels.delta.call import DeltaCall
    from models.kernels.triton import decode

    size = dtype.itemsize

    def new(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return _new(*shape, dtype=kind)

    def operation(
        name: str, decay: Tensor | None, learned: bool = True, delta: bool = False
    ) -> Operation:
        q, k, v, do = (new(1, TOKENS, HEADS, dim) for _ in range(4))
        offset = _new(1, dtype=torch.int64) if name == "cosine" else None
        call: Call | DeltaCall = Call(q, k, v, decay, None, None, offset)
        extra = 0  # bytes of decays, and betas, that every token has its own of
        if decay is not None and decay.ndim > 2:
            extra = decay.numel() // TOKENS // HEADS * decay.itemsize
        if delta:
            call = DeltaCall(q, k, v, new(1, TOKENS, HEADS), decay)
            extra += size
        kernels = launch.choose(call, "cuda")

        def backward(kept: object) -> None:
            states = kept[2]  # pyright: ignore[reportIndexIssue]
            kernels.backward(call, states, do, None, learned)

        floor = 4 * dim * size + extra, 7 * dim * size + (1 + learned) * extra
        return Operation(
            name=name, forward=lambda: kernels.forward(call), backward=backward, floor=floor
        )

    vector = new(HEADS, dim, kind=torch.float32)
    yield operation("no decay", None, False)
    yield operation("per head", new(HEADS, kind=torch.float32), False)
    yield operation("per head, learned", new(HEADS, kind=torch.float32))
    yield operation("per token", new(1, TOKENS, HEADS, kind=torch.float32))
    yield operation("per channel", new(1, TOKENS, HEADS, dim))
    yield operation("HGRN2 gate", vector)
    yield operation("cosine", vector)
    yield operation("delta rule", None, delta=True)
    yield operation("delta, per head", new(1, TOKENS, HEADS, kind=torch.float32), delta=True)
    yield operation("delta, per channel", new(1, TOKENS, HEADS, dim), delta=True)
    # One token of TOKENS sequences. The state is updated in place: counted once here and in the
    # floor, though it is read and written.
    token_q, token_k, token_v = (new(TOKENS, HEADS, dim) for _ in range(3))
    state = new(TOKENS, HEADS, dim, dim, kind=torch.float32)
    yield Operation(
        name="decode step",
        forward=lambda: decode.step(
            token_q, token_k, token_v, state, new(HEADS, kind=torch.float32)
        ),
        backward=lambda _: None,
        floor=(4 * dim * size + 4 * dim * dim, 0),
    )


def peers(dim: int, dtype: torch.dtype) -> Iterator[Operation]:
    """flash-linear-attention's counterparts; nothing when it is not installed."""
    try:
        from fla.ops.delta_rule import chunk_delta_rule
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule
        from fla.ops.gla import chunk_gla
        from fla.ops.kda import chunk_kda
        from fla.ops.linear_attn import chunk_linear_attn
        from fla.ops.simple_gla import chunk_simple_gla
    except ImportError:
        return

    def new(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return _new(*shape, dtype=kind).requires_grad_()

    def operation(name: str, function: Callable[..., object], floor: tuple[int, int]) -> Operation:
        def forward() -> object:
            output = function(*(new(1, TOKENS, HEADS, dim) for _ in range(3)))
            return output[0] if isinstance(output, tuple) else output

        def backward(kept: object) -> None:
            assert isinstance(kept, Tensor)
            kept.backward(torch.empty_like(kept))

        return Operation(name=name, forward=forward, backward=backward, floor=floor)

    unit = dim * dtype.itemsize
    slopes = _new(HEADS, dtype=torch.float32)
    gate = new(1, TOKENS, HEADS, dim)
    yield operation(
        "fla linear_attn",
        lambda q, k, v: chunk_linear_attn(q, k, v, normalize=False),  # pyright: ignore[reportCallIssue]
        (4 * unit, 7 * unit),
    )
    yield operation(
        "fla retention",
        lambda q, k, v: chunk_simple_gla(q, k, v, g_gamma=slopes),  # pyright: ignore[reportCallIssue]
        (4 * unit, 7 * unit),
    )
    yield operation(
        "fla gla",
        lambda q, k, v: chunk_gla(q, k, v, gate),  # pyright: ignore[reportCallIssue]
        (5 * unit, 9 * unit),
    )
    beta = new(1, TOKENS, HEADS)
    head = new(1, TOKENS, HEADS, kind=torch.float32)
    size = dtype.itemsize
    yield operation(
        "fla delta_rule",
        lambda q, k, v: chunk_delta_rule(q, k, v, beta=beta),  # pyright: ignore[reportCallIssue]
        (4 * unit + size, 7 * unit + 2 * size),
    )
    yield operation(
        "fla gated_delta_rule",
        lambda q, k, v: chunk_gated_delta_rule(q, k, v, g=head, beta=beta),  # pyright: ignore[reportCallIssue]
        (4 * unit + size + 4, 7 * unit + 2 * (size + 4)),
    )
    yield operation(
        "fla kda",
        lambda q, k, v: chunk_kda(q, k, v, g=gate, beta=beta),  # pyright: ignore[reportCallIssue]
        (5 * unit + size, 9 * unit + 2 * size),
    )


def rows(operation: Operation, target: str) -> Iterator[Row]:
    """Record, compile and read one operation's launches."""
    from models.kernels.tools.offline import compile_launch, record
    from models.kernels.triton.common import assume_architecture

    with assume_architecture(target), record() as launches:
        kept = operation.forward()
        forward = len(launches)
        operation.backward(kept)
    for i, launch in enumerate(launches):
        evidence = compile_launch(launch, target)
        counts = evidence.tensor_core.items()
        yield Row(
            operation=operation.name,
            direction="forward" if i < forward else "backward",
            kernel=launch.kernel,
            configuration=launch.configuration,
            target=target,
            registers=evidence.registers,
            spilled=evidence.spilled,
            shared=evidence.shared,
            instructions=evidence.instructions,
            barriers=evidence.barriers,
            blocks=launch.programs,
            resident=evidence.resident,
            waves=evidence.waves,
            tensor_core=" ".join(f"{n} {kind}" for kind, n in counts) or "none",
            moved=launch.moved / (TOKENS * HEADS),
        )


def summary(operation: Operation, found: list[Row]) -> tuple[str, ...]:
    """Launches and bytes against the floor of one operation."""
    cells: list[str] = [operation.name]
    for direction, floor in zip(("forward", "backward"), operation.floor, strict=True):
        chosen = [row for row in found if row.direction == direction]
        moved = sum(row.moved for row in chosen)
        share = f"{floor / moved:.0%}" if chosen else "-"
        cells += [str(len(chosen)), f"{moved:.0f}", str(floor), share]
    return tuple(cells)


ROW_HEADER = (
    "operation", "pass", "kernel", "configuration", "target", "registers", "spills", "shared",
    "instructions", "barriers", "blocks", "a multiprocessor", "waves", "tensor-core instructions",
    "bytes/token/head",
)  # fmt: skip
SUMMARY_HEADER = (
    "operation", "launches f", "bytes f", "floor f", "of floor f", "launches b", "bytes b",
    "floor b", "of floor b",
)  # fmt: skip


def cells(row: Row) -> tuple[str, ...]:
    """A row as text, in the order of `ROW_HEADER`."""
    return (
        row.operation, row.direction, row.kernel, row.configuration, row.target,
        str(row.registers), str(row.spilled), str(row.shared), str(row.instructions),
        str(row.barriers), str(row.blocks), str(row.resident), f"{row.waves:.2f}", row.tensor_core,
        f"{row.moved:.0f}",
    )  # fmt: skip


def markdown(header: tuple[str, ...], body: list[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = [header, ("---",) * len(header), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Command line: print the tables, and write them as Markdown with --output."""
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    parser = argparse.ArgumentParser(
        prog="python -m models.kernels.tools.report", description=__doc__
    )
    parser.add_argument("--targets", default="sm_80,sm_90,sm_100,gfx942", help="comma-separated")
    parser.add_argument("--dim", type=int, default=128, help="head dimension, keys and values")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    options = parser.parse_args(argv)

    import triton
    from rich.console import Console
    from rich.table import Table

    from models.kernels.tools.offline import TARGETS
    from models.kernels.triton.common import interpreted

    if interpreted():
        parser.error("kernels are interpreted here: unset TRITON_INTERPRET to compile them.")
    targets: list[str] = options.targets.split(",")
    for target in targets:
        if target not in TARGETS:
            parser.error(f"--targets: {target!r} is none of {', '.join(TARGETS)}.")
    dtype = getattr(torch, options.dtype)
    found: list[Row] = []
    totals: list[tuple[str, ...]] = []
    seconds: dict[str, float] = {}
    for target in targets:
        named = list(ours(options.dim, dtype))
        if target == "sm_90":
            named += peers(options.dim, dtype)
        for operation in named:
            started = time.perf_counter()
            new = list(rows(operation, target))
            seconds[f"{operation.name}, {target}"] = time.perf_counter() - started
            found += new
            if target == targets[0] or operation.name.startswith("fla"):
                totals.append(summary(operation, new))
    console = Console(width=None if Console().is_terminal else 200)
    for title, header, body in (
        ("Launches and bytes a token and head", SUMMARY_HEADER, totals),
        ("Compiled kernels", ROW_HEADER, [cells(row) for row in found]),
    ):
        table = Table(*header, title=title)
        for line in body:
            table.add_row(*line)
        console.print(table)
    taken = "; ".join(f"{name} {s:.1f}" for name, s in seconds.items())
    console.print(f"Seconds, of which what Triton kept on disk took none to compile: {taken}.")
    if options.output is not None:
        where = f"Triton {triton.__version__}, PyTorch {torch.__version__}, {platform.machine()}"
        options.output.write_text(
            f"# Kernel compile report\n\n{where}. Shape: B 1, T {TOKENS}, H {HEADS}, "
            f"K = V = {options.dim}, {options.dtype}. No GPU: nothing here is a time.\n\n"
            f"Command: `python -m models.kernels.tools.report --targets {options.targets} "
            f"--dim {options.dim} --dtype {options.dtype} --output FILE`\n\n"
            "Bytes count every tensor argument of every launch once (a lower bound); the floor "
            "counts every input, output and gradient of the operation once. flash-linear-attention "
            "rows: autotuned kernels in the first of their configurations.\n\n"
            f"## Launches and bytes\n\n{markdown(SUMMARY_HEADER, totals)}\n"
            f"## Compiled kernels\n\n{markdown(ROW_HEADER, [cells(row) for row in found])}"
        )


if __name__ == "__main__":
    main()
