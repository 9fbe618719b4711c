"""The walk-through of docs/evaluation.md, command by command, on a sweep of two tiny runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from models.config import toy_config
from scaling.config.run import BudgetConfig, DataConfig, ParallelConfig, RunConfig, ScheduleConfig

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_commands_run_as_printed(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    from scaling.training.train import train

    cache = str(tmp_path / "cache")
    monkeypatch.setenv("LINSCALE_CACHE", cache)
    for arch in ("llama", "hgrn2"):
        config = RunConfig(
            name=f"{arch}-d64",
            size="d64",
            model=toy_config(arch, 32, vocab_size=256, layers=2, head_dim=16),
            data=DataConfig(corpus="stdlib", sequence_length=256, batch_sequences=2),
            schedule=ScheduleConfig(warmup_tokens=512),
            budget=BudgetConfig(tokens=8 * 512, horizons=(5 * 512,)),
            parallel=ParallelConfig(accelerator="cpu", threads=1),
        )
        assert train(config, tmp_path / "runs" / "quickstart") == "done"
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines()]
    assert {line.split()[1] for line in commands if line.startswith("linscale")} == {
        "generate", "evaluate", "tables", "export",
    }  # fmt: skip
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    said = []
    for command in commands:
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True,
            timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        said.append(done.stdout)
    assert "In the beginning" in said[0]
    assert "generated_text" in said[-1]
    files = {file.name for file in (tmp_path / "runs" / "quickstart" / "evaluations").iterdir()}
    assert {"table4.tex", "table11.md", "tasks.png", "needle_grid.png"} <= files
