"""The start-up check of the kernels: right ones pass, wrong ones are refused with the remedy."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from models.kernels import launch, selfcheck
from models.kernels.triton import common, scalar_launch
from models.kernels.triton.common import interpreted

CPU = torch.device("cpu")
VERSIONS = {
    "device": "NVIDIA H200", "arch": "sm_90", "torch": "2.11.0", "triton": "3.6.0",
    "ptxas": "12.8", "warps": "", "sources": "0",
}  # fmt: skip


@pytest.mark.skipif(not interpreted(), reason="needs TRITON_INTERPRET=1")
def test_right_kernels_pass_and_a_wrong_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every mode in the interpreter, in float32: its hand-made float64 side is right too."""
    found = selfcheck.errors(CPU, tokens=40, dim=16, dtype=torch.float32)
    assert found.keys() == launch.KERNELS.keys()
    assert max(found.values()) < 1e-5, found
    backward = scalar_launch.backward

    def wrong(*arguments: Any, **options: Any) -> Any:
        dq, dk, *rest = backward(*arguments, **options)
        dk[:, 20:] *= 1.1
        return dq, dk, *rest

    monkeypatch.setattr(scalar_launch, "backward", wrong)
    with torch.device("meta"):  # a default device is no matter
        found = selfcheck.errors(CPU, 40, 16, torch.float32, modes=("none", "phase"))
    assert found["phase"] < selfcheck.LIMIT < found["none"]


@pytest.mark.slow
@pytest.mark.skipif(not interpreted(), reason="needs TRITON_INTERPRET=1")
def test_bfloat16_is_within_the_limit() -> None:
    """Right kernels raise no alarm."""
    found = selfcheck.errors(CPU, tokens=150, dim=64)
    assert max(found.values()) < 1.3e-2 < selfcheck.LIMIT, found


def test_a_wrong_kernel_is_refused_with_the_remedy() -> None:
    errors = dict.fromkeys(launch.KERNELS, 5e-3)
    selfcheck.judge(errors, VERSIONS)
    for bad in (0.3, float("nan"), float("inf")):
        with pytest.raises(selfcheck.KernelError) as caught:
            selfcheck.judge(errors | {"gate": bad}, VERSIONS)
        message = str(caught.value)
        for part in ("H200", "3.6.0", "12.8", "(gate)", "LINSCALE_KERNEL_WARPS=4",
                     "TRITON_PTXAS_PATH", "LINSCALE_KERNEL_CHECK=off"):  # fmt: skip
            assert part in message
        assert "(none)" not in message


@pytest.mark.parametrize(
    ("arch", "triton", "ptxas", "found"),
    [
        ("sm_90", "3.6.0", "12.8", 2), ("sm_90", "3.7.1", "12.9", 1), ("sm_90", "3.9.0", "13.1", 0),
        ("sm_90", "3.3.1", "12.8.93", 1), ("sm_100", "3.7.0+git1", "13.0", 1),
        ("sm_100", "3.8.0", "12.8", 0), ("sm_80", "3.6.0", "12.8", 0), ("gfx942", "3.6.0", "", 0),
    ],
)  # fmt: skip
def test_known_versions(arch: str, triton: str, ptxas: str, found: int) -> None:
    assert len(selfcheck.known(arch, {"triton": triton, "ptxas": ptxas})) == found


def test_once_a_machine_and_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verdict is read by later processes, and asked for again under other versions."""
    runs: list[str] = []
    now: Any = SimpleNamespace(versions=VERSIONS, error=5e-3)

    def errors(device: torch.device, modes: tuple[str, ...]) -> dict[str, float]:
        runs.extend(modes)
        return {mode: float(now.error) for mode in modes}

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("LINSCALE_KERNEL_CHECK", raising=False)
    monkeypatch.setattr(selfcheck, "errors", errors)
    monkeypatch.setattr(selfcheck, "versions", lambda device: now.versions)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    device = torch.device("cuda", 0)
    for _ in range(2):
        selfcheck._ensure.cache_clear()  # a new process
        selfcheck.ensure(device, "none")
        selfcheck.ensure(device, "none")
    assert runs == ["none"]
    [kept] = (tmp_path / "linscale" / "kernels").iterdir()
    assert json.loads(kept.read_text())["versions"] == VERSIONS
    selfcheck.ensure(device, "gate")  # each mode is asked for when it is first called
    assert runs == ["none", "gate"]
    now.versions, now.error = VERSIONS | {"ptxas": "12.6"}, 0.5
    for _ in range(2):  # a wrong one is kept too
        selfcheck._ensure.cache_clear()
        with pytest.raises(selfcheck.KernelError):
            selfcheck.ensure(device, "none")
    assert runs == ["none", "gate", "none"]
    monkeypatch.setenv("LINSCALE_KERNEL_CHECK", "off")
    selfcheck.ensure(device, "none")
    selfcheck._ensure.cache_clear()


def test_fewer_warps_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"a": {"BV": 64, "num_warps": 8}, "b": {"BV": 64, "num_warps": 4},
            "c": {"BV": 64, "num_warps": 8}, "warps4/c": {"BV": 16, "num_warps": 4}}  # fmt: skip
    monkeypatch.delenv("LINSCALE_KERNEL_WARPS", raising=False)
    assert [common._within_warps(rows, key) for key in "abc"] == [rows[key] for key in "abc"]
    monkeypatch.setenv("LINSCALE_KERNEL_WARPS", "4")
    assert common._within_warps(rows, "a") == {"BV": 64, "num_warps": 4}
    assert common._within_warps(rows, "b") == rows["b"]
    assert common._within_warps(rows, "c") == rows["warps4/c"]
