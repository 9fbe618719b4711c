"""Documents of one sequence that do not see each other cost what each costs alone."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models.architecture import BUILT_IN
from models.config import ConfigError, toy_config
from models.language_model import build
from scaling.config.run import BudgetConfig, DataConfig, ParallelConfig, RunConfig, ScheduleConfig
from scaling.data.loader import DataModule, to_batch
from scaling.data.prepare import prepare
from scaling.training.loss import token_losses
from scaling.training.train import train
from tests.support.results import lines

END, T = 0, 48
LENGTHS = (5, 1, 20, 13, 30)
"""Of documents, their ends left out: some are cut by the end of a row."""


def rows() -> np.ndarray:
    """Two rows of T + 1 tokens: documents, each with its end, one after another."""
    draw = np.random.default_rng(0)
    flat = np.concatenate([[*draw.integers(1, 50, size=n), END] for n in 3 * LENGTHS])
    return np.stack([flat[: T + 1], flat[T : 2 * T + 1]]).astype(np.int64)


@pytest.mark.parametrize("arch", [*BUILT_IN, "pattern"])
def test_each_document_costs_what_it_costs_alone(arch: str) -> None:
    torch.manual_seed(0)
    pattern = arch == "pattern"
    config = toy_config("hgrn2" if pattern else arch, 32, vocab_size=50, layers=2, head_dim=16)
    if pattern:
        config = config.replace(mixers="hgrn2+llama")
    net = build(config).double()
    whole = token_losses(net, to_batch(rows(), END))
    plain = token_losses(net, to_batch(rows()))
    alone = torch.zeros_like(whole)
    for number, row in enumerate(rows()):
        bounds = [0, *(i for i in range(1, T) if row[i] == END), T]
        for start, stop in itertools.pairwise(bounds):
            part = torch.from_numpy(row[start : stop + 1])[None]
            alone[number, start:stop] = net.loss(part[:, :-1], part[:, 1:])[0]
    torch.testing.assert_close(whole, alone, rtol=1e-6, atol=1e-6)
    first = int(np.flatnonzero(rows()[0] == END)[0])
    assert (plain - whole)[0, first + 1 :].abs().max() > 1e-4  # without, they do see each other


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.setenv("LINSCALE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "short.jsonl"
    texts = [{"text": f"number {n} " * (1 + n % 5)} for n in range(300)]
    path.write_text("\n".join(map(json.dumps, texts)))
    return RunConfig(
        name="documents",
        model=toy_config("tnl", 32, vocab_size=256, layers=1, head_dim=16),
        data=DataConfig(
            corpus=f"jsonl:{path}",
            sequence_length=64,
            batch_sequences=4,
            validation_blocks=4,
            validation_fraction=0.2,
            document_mask=True,
        ),
        schedule=ScheduleConfig(kind="constant", warmup_tokens=0),
        budget=BudgetConfig(tokens=4 * 4 * 64),
        parallel=ParallelConfig(accelerator="cpu", threads=1),
    )


def test_training_and_validation_read_documents(config: RunConfig, tmp_path: Path) -> None:
    prepared = prepare(config.data)
    inputs, _, boundaries = next(iter(DataModule(config, prepared).train_dataloader()))
    ends = np.flatnonzero(inputs.flatten().numpy() == 0xFF)
    expected = sorted({0, 64, 128, 192, 256, *ends.tolist()})
    assert boundaries.tolist() == expected
    assert len(ends) > 5
    # However a batch is split: the same losses.
    other = config.override(["parallel.micro_batch_sequences=1"])
    train(config, tmp_path / "a")
    train(other, tmp_path / "b")
    for one, two in zip(lines(config, tmp_path / "a"), lines(other, tmp_path / "b"), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)


def test_the_field_names_new_runs_only(config: RunConfig) -> None:
    plain = config.override(["data.document_mask=false"])
    without = dataclasses.replace(config.data, document_mask=False)
    assert plain.run_id == dataclasses.replace(config, data=without).run_id != config.run_id
    assert prepare(plain.data).folder == prepare(config.data).folder  # tokens are the same


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["parallel.devices=2", "parallel.sequence=2"], "parallel.sequence=2 with data.document_"),
        (["data.corpus=task:mqar:pairs=8,vocab=64"], "data.document_mask=True with data.corpus="),
        (["data.corpus=instructions:x"], "only texts are read as documents"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    config: RunConfig, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        config.override(overrides)
