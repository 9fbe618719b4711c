"""Every kernel compiled offline for every target: no spills, within shared memory, tensor cores.

Compilation needs an interpreter-free process, so each test asks one for the evidence. Identical
launches of a test are compiled once, and Triton keeps what it compiled on disk: a second run takes
a small part of the first one's time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
MODES = ("none", "head", "head_t", "phase", "vector", "gate")
DELTA = ("delta", "delta_head", "delta_channel")
SHARED_LIMIT = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}

INSTRUCTIONS = {
    "boundary_states": 1719,
    "output": 1431,
    "gradients": 5146,
    "slope_gradient": 1846,
    "decay_gradient": 3539,
    "phase_read": 3615,
    "phase_inputs": 1582,
    "scan_states": 1675,
    "read_states": 2382,
    "recurrent": 387,
    "recurrent_delta": 475,
    "delta_pairs": 6186,
    "delta_scan": 1652,
    "delta_errors": 1285,
    "delta_reverse": 1567,
    "delta_gradients": 3076,
}
"""Of a kernel's binary for sm_90 at K = V = 128 in bfloat16, in the mode that takes most: loops
counted once, Triton 3.9, 2026-12-01."""

PROGRAM = """
import json, sys
from dataclasses import asdict
import torch
from models.kernels.tools import measuring, offline, rows
from models.kernels.delta.call import DeltaCall
from models.kernels.triton import common, decode, delta_decode

arch, cases, dims = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])

def step():
    state = torch.empty(8, 16, 128, 128, device="meta")
    q, k, v, gate = torch.empty(4, 8, 16, 128, dtype=torch.bfloat16, device="meta")
    decode.step(q, k, v, state, gate[0, :, 0].float())
    slots = torch.empty(8, dtype=torch.int32, device="meta")
    decode.step(q, k, v, state, gate, cache_indices=slots)
    decode.hgrn2_step(q, gate, v, state, gate[0].float())
    delta_decode.forward(DeltaCall(*(x[:, None] for x in (q, k, v, gate[..., 0], gate)), state))

def spills(family):
    return common.table(family, arch).get("spills", {})

def allowed(mode, key_dim, value_dim, packed=False, *_):
    # Nothing, but for what the general rows record.
    if key_dim == value_dim == common.block(key_dim) and not packed:
        return 0
    family = "vector" if mode in ("vector", "gate") else mode.split("_")[0]
    recorded = spills(family if family in ("vector", "delta") else "scalar")
    end = f"/general/16/{common.block(max(key_dim, value_dim))}"
    return max((n for key, n in recorded.items() if key.endswith(end)), default=0)

def launches():
    for mode, dtype, key_dim, value_dim, *rest in cases:
        wide = dtype == "float32"
        packed, segment = rest or (False, 512)
        run = step if mode == "step" else measuring.runner(measuring.sample(
            mode, getattr(torch, dtype), key_dim, value_dim, "meta", 2048, packed
        ), segment)
        with common.assume_architecture(arch), offline.record() as recorded:
            run()
        for launch in recorded:
            most = allowed(mode, key_dim, value_dim, *rest)
            yield [mode, dtype, key_dim, value_dim, *rest], wide, most, launch
    for entry in rows.entries(tuple(rows.KERNELS), arch, dims):
        wide = entry.dtype == torch.float32
        most = spills(entry.family).get(entry.key, 0)
        for launch in measuring.launches(entry, arch):
            yield entry.key, wide, most, launch

seen = []
for name, wide, most, launch in launches():
    if launch not in seen:
        seen.append(launch)
        evidence = asdict(offline.compile_launch(launch, arch))
        print("EVIDENCE" + json.dumps({"case": name, "wide": wide, "allowed": most,
            "kernel": launch.kernel, "configuration": launch.configuration, **evidence}))
"""


def compiled(
    arch: str, cases: list[tuple[Any, ...]], dims: tuple[int, ...] = ()
) -> list[dict[str, Any]]:
    """Compiler evidence for each launch of the cases and of the tables' rows for `dims`, from a
    process without the interpreter; what must hold of all of them is asserted."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_DEFAULT_FP_FUSION": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, arch, json.dumps(cases), json.dumps(dims)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(x[8:]) for x in done.stdout.splitlines() if x.startswith("EVIDENCE")]
    assert found
    for launch in found:
        assert launch["shared"] <= SHARED_LIMIT[arch], launch
        assert launch["resident"] >= 1, launch
        assert launch["instructions"] > launch["barriers"] >= 0, launch
        if not launch["wide"]:
            assert launch["spilled"] <= launch["allowed"], launch
            assert launch["tensor_core"] or launch["kernel"].startswith("recurrent"), launch
    return found


def check_counts(found: list[dict[str, Any]]) -> None:
    """No kernel has grown by a tenth."""
    for launch in found:
        assert launch["waves"] > 0, launch
        if version("triton").startswith("3.9."):
            assert launch["instructions"] <= 1.1 * INSTRUCTIONS[launch["kernel"]], launch


SCALAR = {"boundary_states", "output", "gradients"}
PHASE = {"boundary_states", "phase_read", "phase_inputs"}
VECTOR = {"scan_states", "read_states", "gradients"}


@pytest.mark.parametrize(
    ("arch", "modes", "kernels"),
    [
        (
            "sm_90",
            (*MODES, "step"),
            {*SCALAR, *PHASE, *VECTOR, "slope_gradient", "decay_gradient", "recurrent"},
        ),
        ("sm_80", ("gate",), VECTOR),
        ("sm_100", ("phase",), PHASE),
        ("gfx942", ("head",), SCALAR | {"slope_gradient"}),
    ],
)
def test_default_configurations(arch: str, modes: tuple[str, ...], kernels: set[str]) -> None:
    """K = V = 128 in bfloat16, sequences cut. Every mode on sm_90; on each other target the kernels
    of one architecture, and those of all in `test_every_architecture_on_every_target`."""
    found = compiled(arch, [(mode, "bfloat16", 128, 128) for mode in modes])
    assert {launch["kernel"] for launch in found} >= kernels
    if arch == "sm_90":
        check_counts(found)
        products = [launch for launch in found if not launch["kernel"].startswith("recurrent")]
        assert all("wgmma" in launch["tensor_core"] for launch in products), products


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("arch", TARGETS[:1] + TARGETS[2:])
def test_every_architecture_on_every_target(arch: str) -> None:
    # Triton 3.6 and 3.7 end in an assertion of their own on the slope gradient for Blackwell.
    old = arch == "sm_100" and version("triton").startswith(("3.6.", "3.7."))
    modes = ("none" if old else "head", "phase", "gate")
    found = compiled(arch, [(mode, "bfloat16", 128, 128) for mode in modes])
    names = {launch["kernel"] for launch in found}
    assert names >= SCALAR | PHASE | VECTOR
    assert old or "slope_gradient" in names


@pytest.mark.parametrize("arch", TARGETS)
def test_default_configurations_of_the_delta_rule(arch: str) -> None:
    """Of every decay on sm_90, elsewhere of one a channel, the most."""
    modes = DELTA if arch == "sm_90" else DELTA[-1:]
    found = compiled(arch, [(mode, "bfloat16", 128, 128) for mode in modes])
    assert {launch["kernel"] for launch in found} == {
        "delta_pairs", "delta_scan", "delta_errors", "delta_reverse", "delta_gradients"
    }  # fmt: skip
    if arch == "sm_90":
        check_counts(found)
        assert all("wgmma" in launch["tensor_core"] for launch in found), found


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("dim", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("arch", TARGETS)
def test_every_row_of_the_tables(arch: str, dim: int) -> None:
    """No spills in 16 bits, but for general rows that record some. In 32 bits tiles without spills
    are not known everywhere: there they are what the tables record under "spills", with the
    compiler that the tables were made with."""
    found = compiled(arch, [], (dim,))
    if version("triton").startswith("3.9."):
        for launch in found:
            assert launch["spilled"] <= launch["allowed"], launch


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mode", [*MODES, *DELTA])
@pytest.mark.parametrize("arch", TARGETS)
def test_variants(arch: str, mode: str) -> None:
    """What the rows of the tables leave open: packed and uncut sequences, float16, head dimensions
    that need masks or differ."""
    variants = [
        # dtype, key and value dimension, packed, segment
        ("bfloat16", 128, 128, True, 512), ("bfloat16", 128, 128, False, None),
        ("bfloat16", 128, 128, True, None), ("float16", 128, 128, False, 512),
        ("bfloat16", 60, 36, True, 512), ("bfloat16", 128, 64, False, 512),
        ("bfloat16", 256, 128, False, 512), ("float32", 128, 128, True, None),
        ("float32", 60, 36, False, 512),
    ]  # fmt: skip
    compiled(arch, [(mode, *variant) for variant in variants])
