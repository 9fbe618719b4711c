"""A small teacher on disk, and transfers from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.architectures.lolcats import LoLCATs
from models.config import toy_config
from models.interop import export_model
from models.language_model import build
from scaling.config.parts import DataConfig
from scaling.linearization.blockwise.transfer_config import Blockwise


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a teacher of five layers and a text, and returns a maker of transfers."""
    monkeypatch.setenv("LINSCALE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = toy_config("llama", 32, vocab_size=257, layers=5, head_dim=8)
    teacher = build(config.with_options(kv_heads=2).replace(init_std=0.15, tie_embeddings=False))
    export_model(teacher, tmp_path / "teacher", context=64, eos_id=256)
    words = ["in", "the", "beginning", "there", "was", "a", "word", "and", "it", "was", "long"]
    for number, drawn in enumerate(np.random.default_rng(0).choice(words, (20, 100))):
        (tmp_path / f"text-{number}.txt").write_text(" ".join(drawn))

    def transfer(**changes: Any) -> Blockwise:
        values: dict[str, Any] = {
            "name": "test",
            "teacher": str(tmp_path / "teacher"),
            "model": teacher.config,
            "lolcats": LoLCATs(window=4, softmax_layers=(2,)),
            "data": DataConfig(
                corpus=f"text:{tmp_path}/text-*.txt",
                sequence_length=32,
                batch_sequences=2,
                validation_fraction=0.2,
            ),
            "tokens": 4 * 64,
            "group_layers": 2,
            "precision": "fp32",
        }
        return Blockwise(**values | changes)

    return transfer
