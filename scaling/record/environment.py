"""What a run was trained on and with: code revision, versions, machine, data (environment.json)."""

from __future__ import annotations

import hashlib
import platform
import resource
import socket
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from models.kernels.native import library
from scaling.config.run import RunConfig
from scaling.plan.accelerator import accelerator
from scaling.system.devices import dense_peak

_SOURCE = Path(__file__).resolve().parents[2]


def environment(config: RunConfig, data: dict[str, Any]) -> dict[str, Any]:
    """The content of environment.json.

    Args:
        config: the run.
        data: fingerprint of its data, from `scaling.data.prepared`.
    """
    cuda = accelerator(config) == "cuda"
    return {
        "git_revision": _git("rev-parse", "HEAD"),
        "git_dirty_sha256": _dirty(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": _version("lightning"),
        "triton": _version("triton"),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "cpu_kernels": library.describe(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "devices": config.parallel.world_size,
        "strategy": config.parallel.strategy,
        "precision": "bf16" if config.parallel.bf16 else "fp32",
        "hostname": socket.gethostname(),
        "argv": sys.argv,
        "data": data,
        "peak_flops": peak_flops(config),
    }


def peak_flops(config: RunConfig) -> float | None:
    """Dense bf16 peak of all devices of a run; None in fp32, on a CPU, or where it is not known."""
    if not config.parallel.bf16 or accelerator(config) != "cuda":
        return None
    one = dense_peak(torch.cuda.get_device_name())
    return None if one is None else one * config.parallel.world_size


def memory_peak(config: RunConfig) -> int:
    """Most bytes since `reset_memory_peak`: of tensors on the CUDA device, or of this process."""
    if accelerator(config) == "cuda":
        return torch.cuda.max_memory_allocated()
    with suppress(OSError, StopIteration):
        # Not `ru_maxrss`: a child begins with what its parent had, and nothing resets that.
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(x.split()[1]) for x in lines if x.startswith("VmHWM:"))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_memory_peak(config: RunConfig) -> None:
    """Begin `memory_peak` anew: a worker's runs do not inherit the largest one's. Where the system
    offers nothing for it (not Linux, no CUDA) the peak stays that of the process."""
    if accelerator(config) == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _git(*arguments: str) -> str | None:
    """Output of a git command on the source tree; None where it is an installed copy."""
    if not (_SOURCE / ".git").exists():  # an installed copy may lie inside somebody's repository
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(_SOURCE), *arguments], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _dirty() -> str | None:
    """Hash of the changes to tracked files; None when there are none."""
    difference = _git("diff", "HEAD")
    return hashlib.sha256(difference.encode()).hexdigest() if difference else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cpu_name() -> str:
    """Model name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
