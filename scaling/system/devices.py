"""Peak speeds and memory of the devices that a plan can be made for.

Peaks are dense bf16 matrix FLOP/s from the makers' data sheets (without sparsity, which doubles
the figure in some of them and is a common error in MFU). A CPU has no data sheet worth using: its
speed is measured with one matrix product.
"""

from __future__ import annotations

import difflib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from models.config import ConfigError

if TYPE_CHECKING:
    from scaling.config.run import RunConfig

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Device:
    """What a plan needs to know of a device."""

    name: str
    """Name for tables."""
    peak_flops: float
    """Dense bf16 FLOP/s (fp32 on a CPU)."""
    memory: float
    """Bytes."""
    efficiency: float
    """Model FLOPs utilisation that a time estimate assumes."""
    is_host: bool = False
    """The processes of a node share the memory."""

    @property
    def precision(self) -> str:
        """What it computes in where a run leaves that open."""
        return "fp32" if self.is_host else "bf16"

    def memory_of_each(self, run: RunConfig) -> float:
        """Bytes of memory for each of the run's processes on a node."""
        return self.memory / run.parallel.devices if self.is_host else self.memory


def _gpu(name: str, teraflops: float, gib: float) -> Device:
    return Device(name=name, peak_flops=teraflops * 1e12, memory=gib * GIB, efficiency=0.4)


DEVICES: dict[str, Device] = {
    "a100": _gpu("A100 80GB SXM", 312.0, 80),
    "h100": _gpu("H100 SXM", 989.4, 80),
    "h200": _gpu("H200 SXM", 989.4, 141),
    "b200": _gpu("B200", 2250.0, 180),
    "mi300x": _gpu("MI300X", 1307.4, 192),
}


def find_device(name: str) -> Device:
    """The device called `name`; `cpu` measures the machine at hand (about 0.2 s).

    Raises:
        ConfigError: no such device; the nearest name is suggested.
    """
    key = name.lower()
    if key == "cpu":
        return _measure_cpu()
    if key not in DEVICES:
        names = ["cpu", *DEVICES]
        near = difflib.get_close_matches(key, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(names)}."
        raise ConfigError(f"device={name!r}: unknown; {hint}")
    return DEVICES[key]


def device_for(runs: Sequence[RunConfig], name: str = "") -> Device:
    """The device called `name`; without one this machine if all runs are set to a CPU, else h100.

    Raises:
        ConfigError: no such device.
    """
    if not name:
        name = "cpu" if all(run.parallel.accelerator == "cpu" for run in runs) else "h100"
    return find_device(name)


def dense_peak(torch_name: str) -> float | None:
    """Peak FLOP/s for a device name as torch reports it, or None when it is not in the table."""
    lowered = torch_name.lower()
    for key, device in DEVICES.items():
        if key in lowered:
            return device.peak_flops
    return None


@contextmanager
def reproducible_cuda() -> Iterator[None]:
    """CUDA kernels that repeat bit for bit, as training runs them and benchmarks time them."""
    import torch
    import torch.utils.deterministic as options

    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fills = options.fill_uninitialized_memory  # pyright: ignore[reportAttributeAccessIssue]
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Else every `torch.empty` is filled first, which costs bandwidth and repeats nothing more:
        # nothing reads what has not been written.
        options.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        options.fill_uninitialized_memory = fills  # pyright: ignore[reportAttributeAccessIssue]


def _measure_cpu() -> Device:
    """Best of five fp32 products of 1024 x 1024 matrices, all cores."""
    import numpy as np

    a = np.ones((1024, 1024), dtype=np.float32)
    _seconds(lambda: a @ a)  # the first product also starts the threads
    best = min(_seconds(lambda: a @ a) for _ in range(5))
    return Device(
        name=f"CPU, {os.cpu_count()} cores, measured",
        peak_flops=2 * 1024**3 / best,
        memory=host_memory(),
        # What quickstart's models reach of one large product; see experiments/benchmarks.
        efficiency=0.4,
        is_host=True,
    )


def host_memory() -> float:
    """Bytes of this machine's main memory."""
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _seconds(work: object) -> float:
    start = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - start


def cores() -> int:
    """Cores that this process may use."""
    available = getattr(os, "sched_getaffinity", None)
    return len(available(0)) if available else os.cpu_count() or 1
