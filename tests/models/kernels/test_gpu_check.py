"""`make gpu-check` without a GPU: its order, going on, and the judgement of slope gradients."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.gpu_check import in_order, slope_error

ROOT = Path(__file__).resolve().parents[3]


def test_what_models_run_with_comes_first_and_what_passed_is_left_out() -> None:
    names = [
        "t[float32-rows-(1, 2, 16, 16)]", "t[bfloat16-packed-(1, 9, 128, 128)]",
        "t[bfloat16-rows-(1, 9, 128, 128)]", "t[bfloat16-rows-(1, 9, 16, 16)]",
    ]  # fmt: skip
    assert in_order(names) == [names[2], names[1], names[3], names[0]]
    assert in_order(names, [names[2], "gone"]) == [names[1], names[3], names[0]]


def test_a_slope_gradient_that_cancels_is_judged_by_its_terms() -> None:
    """bfloat16 roundings of a thousand terms, whose sum is a thousandth of them: right arithmetic
    is off by more than the limit of the sum itself, and within that of the terms."""
    generator = torch.Generator().manual_seed(0)
    terms = torch.randn(1, 1000, 2, generator=generator, dtype=torch.float64)
    terms -= terms.mean(1, keepdim=True) * 0.999
    rounded = terms.bfloat16().double().sum((0, 1))
    exact = terms.sum((0, 1))
    assert (rounded - exact).norm() / exact.norm() > 1e-2
    assert slope_error(rounded, terms) < 1e-3
    assert slope_error(exact + 0.05 * terms.abs().sum((0, 1)), terms) == pytest.approx(0.05)


def test_collection_leaves_out_what_passed(tmp_path: Path) -> None:
    """pytest itself, on one file of GPU tests; nothing runs."""
    done = tmp_path / "done.txt"
    done.write_text("")
    environment = os.environ | {"LINSCALE_GPU_DONE": str(done), "PYTHONPATH": str(ROOT)}

    def collected() -> list[str]:
        command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "gpu", "--collect-only",
                   "tests/models/kernels/test_gpu_vector.py"]  # fmt: skip
        run = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        return [line for line in run.stdout.splitlines() if "::" in line]

    names = collected()
    assert "bfloat16" in names[0]
    assert "128, 128" in names[0]
    done.write_text("\n".join(names[:5]))
    assert collected() == names[5:]
