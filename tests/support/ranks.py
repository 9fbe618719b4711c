"""Runs on several processes for tests: what torchrun starts, with lines of Python run before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scaling.config.run import RunConfig
from scaling.training import module

ROOT = Path(__file__).resolve().parents[2]

RANK = """
import json, sys
from scaling.config.run import RunConfig
from scaling.training.train import train

class StopAfter:
    steps, last = 0, int(sys.argv[3])
    def is_set(self):
        self.steps += 1
        return self.steps >= self.last

stop = StopAfter()
{prelude}
train(RunConfig.from_json(json.loads(sys.argv[1])), sys.argv[2], stop_event=stop)
"""

DOUBLE = """
from scaling.training import module
build = module.build_model
module.build_model = lambda config: build(config).double()
"""
"""The run in float64, where the order of additions shows in the last digits only."""


def train_ranks(config: RunConfig, sweep: Path, *, steps: int = 10**9, prelude: str = "") -> int:
    """Train with the ranks of the run, each of which asks for a stop after so many steps.

    Returns torchrun's exit status.
    """
    sweep.mkdir(exist_ok=True)
    script = sweep / "rank.py"
    script.write_text(RANK.format(prelude=prelude))
    ranks = ["--standalone", "--nproc-per-node", str(config.parallel.devices), str(script)]
    arguments = [json.dumps(config.to_json()), str(sweep), str(steps)]
    command = [sys.executable, "-m", "torch.distributed.run", *ranks, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, timeout=500).returncode


def in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `DOUBLE`, in this process."""
    build = module.build_model
    monkeypatch.setattr(module, "build_model", lambda config: build(config).double())
