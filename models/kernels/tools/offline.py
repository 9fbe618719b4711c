"""Compile kernels for GPUs that are not there, and read what the compiler made of them.

    1. `record()` catches launches: call `forward` or `backward` on meta tensors inside it, and
       every launch is kept with its arguments instead of running. What is compiled is therefore
       exactly what is launched, any package's kernels included.
    2. `compile_launch` compiles one launch for a target with Triton's own back end, as a GPU's
       first call would (pointers and divisible integers marked as such).
    3. The evidence is read off what comes out: registers, stack (spills), instructions and barriers
       of the binary, shared memory, tensor-core instructions of the assembly it is made from; and
       how many blocks of it a device holds (`tools.occupancy`).

Needs no GPU and no CUDA toolkit: Triton's wheel ships ptxas and cuobjdump. Not available in the
interpreter (TRITON_INTERPRET=1).
"""

from __future__ import annotations

import inspect
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import JITFunction
from triton.runtime.autotuner import Autotuner

from models.kernels.tools.occupancy import resident, waves

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
SHARED_LIMIT = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}
"""Bytes of shared memory one block may use (A100, H200, B200, MI300)."""
TENSOR_CORE = {
    "mma": r"\bmma\.sync\b",
    "wgmma": r"\bwgmma\.mma_async\b",
    "tcgen05": r"\btcgen05\.mma\b",
    "mfma": r"\bv_mfma_",
}
"""Tensor-core instructions in PTX, and in AMD's assembly."""
SASS = r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)"
"""An instruction in cuobjdump's listing, behind its predicate."""
TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float64: "*fp64",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One recorded kernel launch; equal to another if the same binary serves both."""

    kernel: str
    """Name of the kernel function."""
    function: JITFunction[Any]
    """The kernel."""
    signature: dict[str, str]
    """Type of every argument, "constexpr" for compile-time ones."""
    constants: dict[str, Any]
    """Values of the compile-time arguments."""
    divisible: tuple[int, ...]
    """Positions of arguments divisible by 16."""
    options: dict[str, int]
    """num_warps and num_stages."""
    programs: int = field(compare=False)
    """Programs in the grid."""
    moved: int = field(compare=False)
    """Bytes of all tensor arguments, each counted once: what crosses memory at least."""

    @property
    def configuration(self) -> str:
        """The tunable constants, for tables."""
        names = ("C", "BK", "BV", "BT", "BR", "LEVELS")
        parts = [f"{n}={self.constants[n]}" for n in names if n in self.constants]
        return " ".join([*parts, *(f"{k[4:]}={v}" for k, v in self.options.items())])


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the compiler made of one launch on one target."""

    registers: int
    """Registers a thread."""
    spilled: int
    """Bytes of stack a thread (CUDA) or spilled vector registers (AMD); 0 when all fits."""
    shared: int
    """Bytes of shared memory a program."""
    instructions: int
    """Instructions of the binary, loops counted once, without padding."""
    barriers: int
    """Of them, those at which the warps of a block wait for each other."""
    resident: int
    """Blocks that a multiprocessor holds at once."""
    waves: float
    """How often the launch's blocks fill the device."""
    tensor_core: dict[str, int] = field(default_factory=dict)
    """Tensor-core instructions by kind, of `TENSOR_CORE`."""


def _launch(function: JITFunction[Any], grid: Any, args: Any, kwargs: dict[str, Any]) -> Launch:
    options = {k: kwargs.pop(k) for k in ("num_warps", "num_stages") if k in kwargs}
    parameters = {p.name: p for p in function.params}
    kwargs = {k: v for k, v in kwargs.items() if k in parameters}
    bound = inspect.signature(function.fn).bind(*args, **kwargs)
    bound.apply_defaults()
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    divisible: list[int] = []
    moved: dict[int, int] = {}  # a tensor that stands in for an absent one counts once
    for i, (name, value) in enumerate(bound.arguments.items()):
        parameter = parameters[name]
        specialize = not parameter.do_not_specialize
        value = getattr(value, "value", value)  # tl.constexpr
        if isinstance(value, torch.Tensor):
            signature[name] = TYPES[value.dtype]
            divisible.append(i)
            spanned = [n for n, s in zip(value.shape, value.stride(), strict=True) if s]
            moved[id(value)] = value.itemsize * torch.Size(spanned).numel()
        elif (
            parameter.is_constexpr
            or value is None
            or not isinstance(value, int | float)
            or (value == 1 and specialize)
        ):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if specialize and value % 16 == 0:
                divisible.append(i)
    if callable(grid):
        grid = grid(bound.arguments)
    return Launch(
        kernel=function.fn.__name__,
        function=function,
        signature=signature,
        constants=constants,
        divisible=tuple(divisible),
        options={"num_warps": 4, "num_stages": 3} | options,
        programs=int(torch.Size(grid).numel()),
        moved=sum(moved.values()),
    )


@contextmanager
def record() -> Iterator[list[Launch]]:
    """Catch Triton launches made inside the block; nothing runs. Autotuned kernels take their
    first configuration."""
    launches: list[Launch] = []

    def run(self: JITFunction[Any], *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        del warmup
        launch = _launch(self, grid, args, kwargs)
        launches.append(launch)

    def first_configuration(self: Autotuner, *args: Any, **kwargs: Any) -> None:
        chosen = self.configs[0].all_kwargs()
        self.fn.run(*args, **(kwargs | chosen))

    before = JITFunction.run, Autotuner.run
    JITFunction.run, Autotuner.run = run, first_configuration  # pyright: ignore
    try:
        yield launches
    finally:
        JITFunction.run, Autotuner.run = before


def compile_launch(launch: Launch, arch: str) -> Evidence:
    """Compile one launch for `arch` (a key of `TARGETS`) and read what came out.

    Triton keeps what it compiled on disk: a launch compiled before takes only the reading.
    """
    target = TARGETS[arch]
    names: list[str] = vars(launch.function)["arg_names"]
    source = ASTSource(
        fn=launch.function,
        signature=launch.signature,
        constexprs={(names.index(n),): v for n, v in launch.constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in launch.divisible},
    )
    compiled = triton.compile(source, target=target, options=dict(launch.options))
    if target.backend == "hip":
        text = compiled.asm["amdgcn"]
        registers = int(re.findall(r"\.vgpr_count:\s*(\d+)", text)[0])
        spilled = int(re.findall(r"\.vgpr_spill_count:\s*(\d+)", text)[0])
        machine = re.findall(r"^\t([a-z]+_\w+)", text, re.M)
        barriers = sum(name.startswith("s_barrier") for name in machine)
    else:
        text = compiled.asm["ptx"]
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        with tempfile.NamedTemporaryFile(suffix=".cubin") as binary:
            binary.write(compiled.asm["cubin"])
            binary.flush()
            usage, code = (
                subprocess.run(
                    [tool, what, binary.name], capture_output=True, text=True, check=True
                ).stdout
                for what in ("-res-usage", "-sass")
            )
        machine = [name for name in re.findall(SASS, code, re.M) if name != "NOP"]
        barriers = sum(name.startswith("BAR.") for name in machine)
        registers = int(re.findall(r"REG:(\d+)", usage)[0])
        spilled = int(re.findall(r"STACK:(\d+)", usage)[0])
    counts = {kind: len(re.findall(pattern, text)) for kind, pattern in TENSOR_CORE.items()}
    shared = compiled.metadata.shared
    held = resident(arch, registers, shared, launch.options["num_warps"])
    return Evidence(
        registers=registers,
        spilled=spilled,
        shared=shared,
        instructions=len(machine),
        barriers=barriers,
        resident=held,
        waves=waves(arch, launch.programs, held),
        tensor_core={kind: n for kind, n in counts.items() if n},
    )
