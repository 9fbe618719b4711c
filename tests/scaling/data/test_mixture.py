"""Mixtures: exact shares, every block once an epoch of its source, resumable at any sample."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linscale.errors import LinscaleError
from models.config import ConfigError
from scaling.config.run import DataConfig, RunConfig
from scaling.data.loader import DataModule
from scaling.data.mixture import PERIOD, parse
from scaling.data.mixture_data import MixtureOrder, quotas
from scaling.data.prepare import prepare
from scaling.training.train import train


def test_weights_are_shares() -> None:
    found = parse("mix:3 kjv + 1 text:a b/*.txt")
    assert [(one.corpus, one.weight) for one in found] == [("kjv", 0.75), ("text:a b/*.txt", 0.25)]


@pytest.mark.parametrize(
    ("corpus", "words"),
    [
        ("mix:kjv + stdlib", "'kjv' is not a positive weight and a corpus"),
        ("mix:1 kjv", "at least two corpora"),
        ("mix:1 kjv + 1 kjv", "kjv comes twice"),
        ("mix:1 kjv + -1 stdlib", "'-1 stdlib' is not a positive weight"),
        ("mix:1 kjv + 1e-9 stdlib", "below 1/4096"),
        ("mix:1 kjv + 1 task:mqar:pairs=4,vocab=32", "cannot be mixed"),
        ("mix:1 kjv + 1 jsnl:x", "data.corpus='jsnl:x': must be kjv, stdlib"),
    ],
)
def test_what_is_no_mixture_is_explained(corpus: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
        DataConfig(corpus=corpus)


@settings(deadline=None)
@given(
    weights=st.lists(st.floats(0.001, 1.0), min_size=2, max_size=8),
    total=st.integers(8, 5000),
)
def test_quotas_are_whole_shares(weights: list[float], total: int) -> None:
    exact = np.array(weights) / sum(weights) * total
    shares = quotas(tuple(weights / np.sum(weights)), total)
    assert shares.sum() == total
    assert shares.min() >= 1
    if exact.min() >= 1:  # otherwise the smallest take from the others
        assert np.abs(shares - exact).max() < 1


@settings(max_examples=10, deadline=None)
@given(
    n_blocks=st.lists(st.integers(100, 9000), min_size=2, max_size=4),
    seed=st.integers(0, 2**62),
    data=st.data(),
)
def test_order_has_exact_shares_and_epochs(n_blocks: list[int], seed: int, data: Any) -> None:
    raw = [data.draw(st.floats(0.01, 1.0)) for _ in n_blocks]
    weights = tuple(w / sum(raw) for w in raw)
    order = MixtureOrder(n_blocks=tuple(n_blocks), weights=weights, seed=seed)
    blocks = order.blocks(0, 2 * PERIOD)
    ends = np.cumsum(n_blocks)
    owners = np.searchsorted(ends, blocks, side="right")
    for period in (owners[:PERIOD], owners[PERIOD:]):
        assert np.bincount(period, minlength=len(raw)).tolist() == quotas(weights, PERIOD).tolist()
    for source, size in enumerate(n_blocks):
        seen = Counter(blocks[owners == source].tolist())
        drawn = sum(seen.values())
        # After q samples of a source every block came floor(q / size) or one more times.
        assert set(seen.values()) <= {drawn // size, drawn // size + 1}
        assert len(seen) == min(size, drawn)
    first, count = data.draw(st.integers(0, PERIOD + 100)), data.draw(st.integers(1, 900))
    assert order.blocks(first, count).tolist() == blocks[first : first + count].tolist()


@pytest.fixture
def corpora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Two corpora that can be told apart by their bytes, one four times as large as the other."""
    monkeypatch.setenv("LINSCALE_CACHE", str(tmp_path / "cache"))
    draw = random.Random(0)
    for letters, documents in (("ab", 120), ("yz", 30)):
        lines = [
            json.dumps({"text": "".join(draw.choices(letters, k=80))}) for _ in range(documents)
        ]
        (tmp_path / f"{letters}.jsonl").write_text("\n".join(lines))
    return f"mix:0.25 jsonl:{tmp_path}/ab.jsonl + 0.75 jsonl:{tmp_path}/yz.jsonl"


def mixed(corpus: str) -> DataConfig:
    return DataConfig(
        corpus=corpus,
        sequence_length=16,
        batch_sequences=8,
        validation_fraction=0.3,
        validation_blocks=12,
    )


def test_batches_and_validation_have_the_weights(corpora: str, make_run: Any) -> None:
    prepared = prepare(mixed(corpora))
    prepared.verify()
    config: RunConfig = replace(make_run("model.vocab_size=256"), data=mixed(corpora))
    loader = iter(DataModule(config, prepared).train_dataloader())
    rows = np.concatenate([next(loader)[0].numpy() for _ in range(PERIOD // 8)])
    late = (rows >= ord("y")).mean() / ((rows >= ord("a")).mean())
    # Quotas are exact; the blocks of the two differ a little in how many document ends they hold.
    assert late == pytest.approx(0.75, abs=0.02)
    # No letter is in both; the end of a document, 255, is.
    of_second = ((prepared.validation == ord("y")) | (prepared.validation == ord("z"))).any(axis=1)
    assert of_second.sum() == 9
    resumed = iter(DataModule(config, prepared, start_step=100).train_dataloader())
    assert np.array_equal(next(resumed)[0].numpy(), rows[800:808])
    alone = [prepare(replace(mixed(corpora), corpus=one.corpus)) for one in parse(corpora)]
    assert prepared.train_tokens == sum(part.train_tokens for part in alone)
    low, high = sorted(part.bytes_per_token for part in alone)
    assert low <= prepared.bytes_per_token <= high
    fingerprint = prepared.fingerprint()
    assert [source["weight"] for source in fingerprint["sources"]] == [0.25, 0.75]
    other = prepare(mixed(corpora.replace("0.25", "0.5"))).fingerprint()
    assert fingerprint["corpus_sha256"] != other["corpus_sha256"]


def test_a_run_on_a_mixture_stops_and_resumes(corpora: str, make_run: Any, tmp_path: Path) -> None:
    config: RunConfig = replace(make_run("model.vocab_size=256"), data=mixed(corpora))
    assert train(config, tmp_path / "whole") == "done"

    class Stop:
        left = 7

        def is_set(self) -> bool:
            self.left -= 1
            return self.left == 0

    assert train(config, tmp_path / "pieces", stop_event=Stop()) == "preempted"
    assert train(config, tmp_path / "pieces") == "done"
    name = f"{config.run_id}/milestones.jsonl"
    assert (tmp_path / "pieces" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    environment = json.loads((tmp_path / "whole" / config.run_id / "environment.json").read_text())
    assert "sources" in json.dumps(environment)


def test_errors_of_mixtures(corpora: str) -> None:
    with pytest.raises(ConfigError, match="trained on each corpus anew"):
        prepare(replace(mixed(corpora), tokenizer="bpe:300"))
    with pytest.raises(ConfigError, match="needs at least one for each"):
        prepare(replace(mixed(corpora), validation_blocks=1))
    with pytest.raises(LinscaleError, match=r"less than the 25000 that are its share"):
        prepare(replace(mixed(corpora), validation_blocks=100_000))
