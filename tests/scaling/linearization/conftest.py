"""A small trained transformer, and runs that start from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from models.architectures.lolcats import LoLCATs
from models.architectures.supra import Supra
from models.config import toy_config
from models.linearize.options import linearized_config
from scaling.config.run import (
    BudgetConfig,
    DataConfig,
    LinearizeConfig,
    OptimConfig,
    ParallelConfig,
    RunConfig,
    ScheduleConfig,
)
from scaling.training.train import train

STEP = 4 * 32
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "in", "warm", "sun"]


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text and a cache for what is prepared of it."""
    import random

    folder, draw = tmp_path_factory.mktemp("linearization"), random.Random(0)
    for number in range(40):
        text = " ".join(draw.choice(WORDS) for _ in range(300))
        (folder / f"{number:02}.txt").write_text(text)
    return folder


@pytest.fixture(autouse=True)
def cache(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINSCALE_CACHE", str(workplace / "cache"))


@pytest.fixture(scope="session")
def teacher(workplace: Path) -> tuple[RunConfig, Path]:
    """A LLaMA of two layers with grouped-query attention after 150 steps, and its directory."""
    model = toy_config("llama", 32, vocab_size=257, layers=2, head_dim=8).with_options(kv_heads=2)
    config = RunConfig(
        name="teacher",
        model=model,
        data=DataConfig(
            corpus=f"text:{workplace}/*.txt",
            sequence_length=32,
            batch_sequences=4,
            validation_blocks=6,
            validation_fraction=0.2,
        ),
        optim=OptimConfig(lr=1e-2),
        schedule=ScheduleConfig(warmup_tokens=2 * STEP),
        budget=BudgetConfig(tokens=150 * STEP),
        parallel=ParallelConfig(accelerator="cpu", threads=1),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LINSCALE_CACHE", str(workplace / "cache"))
        assert train(config, workplace / "runs") == "done"
    return config, workplace / "runs" / config.run_id


@pytest.fixture
def student(teacher: tuple[RunConfig, Path]) -> Callable[..., RunConfig]:
    """Runs of 24 steps with two horizons; LoLCATs spends 8 of them on stage 1."""
    config, path = teacher

    def build(method: str, *overrides: str) -> RunConfig:
        part = Supra() if method == "supra" else LoLCATs(window=4)
        model = config.model
        if method != "llama":
            model = linearized_config(model, part)
        stages = {"transfer_tokens": 8 * STEP, "lora_rank": 2} if method == "lolcats" else {}
        run = replace(
            config,
            name=f"{method}-test",
            model=model,
            linearize=LinearizeConfig(teacher=str(path), **stages),
            optim=OptimConfig(lr=3e-3),
            schedule=ScheduleConfig(warmup_tokens=STEP, decay_fraction=0.3),
            budget=BudgetConfig(
                tokens=24 * STEP, horizons=(16 * STEP,), checkpoint_every_tokens=3 * STEP
            ),
        )
        return run.override(list(overrides))

    return build
