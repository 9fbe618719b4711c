"""Small corpora of JSON lines, and what is made of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from scaling.config.run import DataConfig
from scaling.data.prepared import PreparedData

T = 32


def write_corpus(folder: Path, documents: list[str]) -> DataConfig:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": document}) for document in documents]
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    return DataConfig(
        corpus=f"jsonl:{folder}/corpus.jsonl",
        sequence_length=T,
        batch_sequences=4,
        validation_fraction=0.2,
        validation_blocks=5,
    )


def sample_documents(count: int = 200) -> list[str]:
    rng = np.random.default_rng(0)
    words = ["scale", "law", "loss", "token", "compute", "état", "数"]
    return [" ".join(rng.choice(words, size=rng.integers(3, 60))) + f" {i}." for i in range(count)]


def held_out(document: str, fraction: float) -> bool:
    """The rule of the documentation, written out again."""
    digest = hashlib.sha256(document.encode()).hexdigest()
    return int(digest[:16], 16) / 2**64 < fraction


def stream(documents: list[str]) -> list[int]:
    return [token for document in documents for token in (*document.encode(), 0xFF)]


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a prepared folder but the lock."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != "lock"}


def all_tokens(prepared: PreparedData, split: str) -> list[int]:
    contents = getattr(prepared.index, split)
    raw = [(prepared.folder / shard.file).read_bytes() for shard in contents.shards]
    return np.frombuffer(b"".join(raw), prepared.index.dtype).tolist()
