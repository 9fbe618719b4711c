"""The GPU benchmark, walked through without one: Triton's interpreter in the place of the kernels,
one call in the place of a timing, and the peers' own signatures in the place of their kernels."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest
import torch
from torch import Tensor

from experiments.benchmarks import kernels_gpu, model_peers
from models import config
from models.kernels import launch
from models.kernels.triton import scalar_launch
from models.kernels.triton.common import interpreted

PEERS = {
    "fla.ops.delta_rule": "chunk_delta_rule",
    "fla.ops.gated_delta_rule": "chunk_gated_delta_rule",
    "fla.ops.gla": "chunk_gla",
    "fla.ops.kda": "chunk_kda",
    "fla.ops.linear_attn": "chunk_linear_attn",
    "fla.ops.simple_gla": "chunk_simple_gla",
}


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small shapes on the CPU; our operators run the Triton kernels in the interpreter."""
    if not interpreted():
        pytest.skip("needs TRITON_INTERPRET=1")

    def once(function: Callable[[], object]) -> tuple[float, float, float]:
        assert torch.are_deterministic_algorithms_enabled()  # as in training
        function()
        return 0.4, 0.5, 0.6

    def small(arch: config.Arch, size: str) -> config.ModelConfig:
        assert size in config.PAPER_SIZES
        return config.ModelConfig(arch=arch, vocab_size=64, dim=32, layers=1, heads=2, glu_dim=32)

    monkeypatch.setattr(launch, "backend", lambda device: "cuda")
    monkeypatch.setattr(config, "paper_config", small)
    for name, value in {
        "DEVICE": "cpu", "quantiles": once, "STANDARD": ((1, 33, 1, 16),),
        "PAPER": ((1, 9, 1, 16),), "CONTEXTS": (8,), "DECODE": (2, 2, 16), "SIZES": ("70M",),
        "TOKENS": 12, "copy_bandwidth": lambda: 1e9, "matmul_rate": lambda: 1e9,
    }.items():  # fmt: skip
        monkeypatch.setattr(kernels_gpu, name, value)


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """flash-linear-attention's functions with their signatures and a product of the inputs."""
    pytest.importorskip("fla")

    def product(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor | None = None,
        beta: Tensor | None = None,
        **_: Any,
    ) -> Any:
        extra: Any = 0.0
        for x in (g, beta):
            extra += 0.0 if x is None else x.reshape(*q.shape[:3], -1)
        return (q + k + extra).sum(-1, keepdim=True) * v, None

    found: list[Any] = []
    for module, name in PEERS.items():
        ops = importlib.import_module(module)
        found.append(create_autospec(getattr(ops, name), side_effect=product))
        monkeypatch.setattr(ops, name, found[-1])
    return found


@pytest.fixture
def no_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("fla", *PEERS):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures("stand_in", "no_peers")
def test_every_part_runs_and_is_kept_as_it_goes(tmp_path: Path) -> None:
    output = tmp_path / "gpu.md"
    assert kernels_gpu.main(["--part", "standard,decode", "--output", str(output)]) == 0
    assert kernels_gpu.main(["--part", "train,paper", "--output", str(output)]) == 0
    rows = [json.loads(line) for line in output.with_suffix(".jsonl").read_text().splitlines()]
    assert [row for row in rows if "failed" in row] == []
    parts = [row["part"] for row in rows]
    # Nine forms of ours and SDPA at each shape; four models of ours and that of transformers.
    assert {part: parts.count(part) for part in parts} == {
        "run": 2, "standard": 10, "decode": 5, "train": 5, "paper": 10
    }  # fmt: skip
    text = output.read_text()
    assert "| B1 T33 H1 D16 | hgrn2 | linscale | 0.500 | 0.500 |" in text
    assert "| 70M | hgrn2 | linscale | 24,000 |" in text
    assert "| 70M | llama | transformers Llama | 24,000 |" in text


@pytest.mark.slow
@pytest.mark.usefixtures("stand_in")
def test_peers_are_called_as_they_are_declared(tmp_path: Path, peers: list[Any]) -> None:
    output = tmp_path / "gpu.md"
    assert kernels_gpu.main(["--part", "standard", "--output", str(output)]) == 0
    rows = [json.loads(line) for line in output.with_suffix(".jsonl").read_text().splitlines()]
    assert [row for row in rows if "failed" in row] == []
    assert sum(row.get("name", "").startswith("fla") for row in rows) == 8
    assert all(peer.called for peer in peers)
    assert "| fla HGRN2 | 1.00 | 1.00 | 1 |" in output.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["tnl", "hgrn2", "cosformer2"])
def test_model_peers_are_as_large_as_ours(arch: Any) -> None:
    pytest.importorskip("fla")
    shape = config.ModelConfig(
        arch=arch, vocab_size=256, dim=64, layers=2, heads=2, glu_dim=192, tie_embeddings=True
    )
    with pytest.warns(UserWarning, match="Triton is not supported|fuse_linear_cross_entropy"):
        sizes = {
            trainee.name: sum(p.numel() for p in trainee.make()[0].parameters())
            for trainee in model_peers.trainees(shape, "cpu")
        }
    assert len(sizes) == 2
    ours, peer = sizes.values()
    assert peer == pytest.approx(ours, rel=0.1)


@pytest.mark.usefixtures("stand_in", "no_peers")
def test_a_failure_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("out of resource: shared memory\nRequired: 1")

    monkeypatch.setattr(scalar_launch, "forward", broken)
    monkeypatch.setattr(kernels_gpu, "STANDARD", ((1, 4, 1, 16),))
    output = tmp_path / "gpu.md"
    assert kernels_gpu.main(["--part", "standard", "--output", str(output)]) == 0
    lines = output.read_text().splitlines()
    failed = [line for line in lines if "out of resource" in line]
    assert len(failed) == 3  # the others have kernels of their own
    assert any("| hgrn2 | linscale | 0.500" in line for line in lines)


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert kernels_gpu.main([]) == 2
    assert "needs a GPU" in capsys.readouterr().err


def test_unknown_part_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        kernels_gpu.main(["--part", "serve"])
    assert "choose from standard" in capsys.readouterr().err
