"""A small corpus and small runs for tests that train."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.config import toy_config
from scaling import tokenise
from scaling.config import (
    BudgetConfig,
    DataConfig,
    OptimConfig,
    ParallelConfig,
    RunConfig,
    ScheduleConfig,
)

STEP_TOKENS = 4 * 32
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
