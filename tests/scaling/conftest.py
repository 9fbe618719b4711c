"""A small corpus and small runs for tests that train."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.config import toy_config
from scaling.config.experiment import Experiment
from scaling.config.run import (
    BudgetConfig,
    DataConfig,
    OptimConfig,
    ParallelConfig,
    RunConfig,
    ScheduleConfig,
)
from scaling.data import tokenise
from tests.support.launches import FAKE, run_config

ROOT = Path(__file__).resolve().parents[2]
STEP_TOKENS = 4 * 32
LAUNCH = """
import sys
from pathlib import Path
from scaling.config.experiment import load_experiment
from scaling.sweep.launch import launch
ok = launch(load_experiment(Path(sys.argv[1]), []), Path(sys.argv[2]), jobs=2, train={fake!r})
sys.exit(0 if ok else 1)
"""
MakeRun = Callable[..., RunConfig]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of text files with some structure to learn: 60 kB in 40 documents."""
    folder = tmp_path_factory.mktemp("corpus")
    words = [
        "the",
        "quick",
        "brown",
        "fox",
        "jumps",
        "over",
        "a",
        "lazy",
        "dog",
        "in",
        "warm",
        "sun",
    ]
    draw = random.Random(0)
    for number in range(40):
        text = " ".join(draw.choice(words) for _ in range(300))
        (folder / f"{number:02}.txt").write_text(text)
    return folder


@pytest.fixture
def make_run(
    corpus: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> MakeRun:
    """Builds runs of 24 steps with three decayed horizons; overrides are dotted text."""
    monkeypatch.setenv("LINSCALE_CACHE", str(corpus.parent / "cache"))

    def build(*overrides: str, arch: Any = "llama") -> RunConfig:
        config = RunConfig(
            name=f"{arch}-test",
            model=toy_config(arch, 32, vocab_size=257, layers=2, head_dim=16),
            data=DataConfig(
                corpus=f"text:{corpus}/*.txt",
                sequence_length=32,
                batch_sequences=4,
                validation_blocks=6,
                validation_fraction=0.2,
            ),
            optim=OptimConfig(lr=3e-3),
            schedule=ScheduleConfig(warmup_tokens=2 * STEP_TOKENS, decay_fraction=0.3),
            budget=BudgetConfig(
                tokens=24 * STEP_TOKENS,
                horizons=(8 * STEP_TOKENS, 12 * STEP_TOKENS),
                checkpoint_every_tokens=3 * STEP_TOKENS,
            ),
            parallel=ParallelConfig(accelerator="cpu", threads=1),
        )
        return config.override(list(overrides))

    return build


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenise, "CHUNK_BYTES", 5000)
    monkeypatch.setattr(tokenise, "BATCH_BYTES", 700)


@pytest.fixture(scope="session")
def launch_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared corpus, small enough to cost nothing, and its cache."""
    folder = tmp_path_factory.mktemp("launch-data")
    lines = [json.dumps({"text": f"document {i} " * 20}) for i in range(60)]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def launch_environment(launch_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINSCALE_CACHE", str(launch_data / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def make_experiment(
    launch_environment: None, launch_data: Path, tmp_path: Path
) -> Callable[..., Experiment]:
    """An experiment of runs with these names; each longer than the one before."""

    def experiment(*names: str) -> Experiment:
        runs = [run_config(name, launch_data, 640 * (i + 1)) for i, name in enumerate(names)]
        return Experiment(name="exp", path=tmp_path / "exp.py", text="# exp", runs=runs)

    return experiment


@pytest.fixture
def spawn_launch(
    launch_environment: None, launch_data: Path, tmp_path: Path
) -> Callable[..., subprocess.Popen[str]]:
    """A launch in a process of its own: sweep directory and names of the runs."""

    def start(sweep: Path, *names: str) -> subprocess.Popen[str]:
        (tmp_path / "exp.py").write_text(
            "from pathlib import Path\n"
            "from tests.support.launches import run_config\n"
            "def runs():\n"
            f"    return [run_config(n, Path({str(launch_data)!r}), 640 * (i + 1))"
            f" for i, n in enumerate({names!r})]\n"
        )
        return subprocess.Popen(
            [sys.executable, "-c", LAUNCH.format(fake=FAKE), tmp_path / "exp.py", sweep],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start
