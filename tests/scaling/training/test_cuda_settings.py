"""What training asks of a CUDA device, without one: determinism, memory, pinned batches."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch

from models.config import ConfigError
from scaling.data import loader
from scaling.plan.accelerator import accelerator
from scaling.record import environment
from scaling.training import parallel


def fills() -> bool:
    """Whether fresh memory is filled with NaN in deterministic mode."""
    return torch._C._get_deterministic_fill_uninitialized_memory()


def test_deterministic_kernels_without_fills(
    make_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "accelerator", lambda config: "cuda")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    assert fills()
    with parallel.process_settings(make_run()):
        assert torch.are_deterministic_algorithms_enabled()
        assert not fills()
    assert not torch.are_deterministic_algorithms_enabled()
    assert fills()


PEAKS = """
import json, sys
from scaling.config.run import RunConfig
from scaling.record import environment

run = RunConfig.from_json(json.loads(sys.argv[1]))
environment.memory_peak(run)  # imports what it needs
environment.reset_memory_peak(run)
before = environment.memory_peak(run)
block = bytearray(400 * 2**20)
block[:: 2**12] = b"1" * len(block[:: 2**12])
largest = environment.memory_peak(run)
assert largest >= before + 350 * 2**20, (before, largest)
del block
environment.reset_memory_peak(run)
assert environment.memory_peak(run) <= largest - 200 * 2**20, environment.memory_peak(run)
"""


def test_a_run_does_not_inherit_the_largest_peak(
    make_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CUDA device the count begins anew; here the resident memory does, on Linux."""
    if sys.platform == "linux":  # in a process of its own: others give memory back when they like
        run = json.dumps(make_run("parallel.accelerator=cpu").to_json())
        subprocess.run([sys.executable, "-c", PEAKS, run], check=True, timeout=120)
    calls: list[str] = []
    monkeypatch.setattr(environment, "accelerator", lambda config: "cuda")
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: calls.append("reset"))
    environment.reset_memory_peak(make_run())
    assert calls == ["reset"]


@pytest.mark.parametrize("parts", [1, 2])
def test_pinned_batches_are_tensors_of_their_own(parts: int) -> None:
    """A view with gaps would be copied to a GPU through memory that is not pinned."""
    batch = loader.to_batch(torch.arange(27).view(3, 9).numpy())
    plain = loader._part(batch, parts - 1, parts)
    pinned = loader._part(batch, parts - 1, parts, pinned=True)
    assert not any(x.is_contiguous() for x in plain)
    assert all(x.is_contiguous() for x in pinned)
    assert all(torch.equal(x, y) for x, y in zip(plain, pinned, strict=True))


def test_emulated_bf16_is_refused(make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch answers True for devices that only emulate it, unless it is asked."""

    def supported(including_emulation: bool = True) -> bool:
        return including_emulation

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "an old GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    with pytest.raises(ConfigError, match="cannot compute in bf16"):
        accelerator(make_run("parallel.precision=bf16", "parallel.accelerator=cuda"))
