"""The data module: every batch is a function of (seed, samples consumed), and costs little."""

from __future__ import annotations

import dataclasses
import pickle
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from models.config import ConfigError, toy_config
from scaling.config.run import BudgetConfig, DataConfig, ParallelConfig, RunConfig
from scaling.data.loader import AHEAD, Batch, Blocks, DataModule, ReadAhead, validation_batches
from scaling.data.prepare import prepare
from scaling.data.prepared import PreparedData
from scaling.data.sampler import BlockOrder

DATA = DataConfig(corpus="kjv", sequence_length=64, batch_sequences=12, validation_blocks=10)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return prepare(DATA, tmp_path_factory.mktemp("cache"))


def run_config(**parallel: int) -> RunConfig:
    return RunConfig(
        name="test",
        model=toy_config("tnl", 32, vocab_size=256),
        data=DATA,
        budget=BudgetConfig(tokens=100_000),
        parallel=ParallelConfig(accelerator="cpu", **parallel),
        seed=3,
    )


def batches(
    prepared: PreparedData, count: int, start_step: int = 0, **parallel: int
) -> list[Batch]:
    module = DataModule(run_config(**parallel), prepared, start_step=start_step)
    return list(islice(module.train_dataloader(), count))


def test_batches_are_the_blocks_of_the_order(prepared: PreparedData) -> None:
    order = BlockOrder(n_blocks=prepared.train.n_blocks, seed=3)
    for step, (inputs, targets) in enumerate(batches(prepared, 3, start_step=5), start=5):
        rows = prepared.train.gather(order.blocks(step * 12, 12))
        assert inputs.dtype == targets.dtype == torch.int64
        assert np.array_equal(inputs.numpy(), rows[:, :-1])
        assert np.array_equal(targets.numpy(), rows[:, 1:])
        assert torch.equal(inputs[:, 1:], targets[:, :-1])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("micro", [3, 12])
def test_any_layout_gives_the_same_tokens_and_resumes(
    prepared: PreparedData, workers: int, micro: int
) -> None:
    whole = torch.cat([inputs for inputs, _ in batches(prepared, 6)])
    per_step = 12 // micro
    parts = [
        *batches(prepared, 2 * per_step, 0, workers=workers, micro_batch_sequences=micro),
        *batches(prepared, 3 * per_step, 2, workers=workers, micro_batch_sequences=micro),
        *batches(prepared, 1 * per_step, 5, workers=workers, micro_batch_sequences=micro),
    ]
    assert {len(inputs) for inputs, _ in parts} == {micro}
    assert torch.equal(torch.cat([inputs for inputs, _ in parts]), whole)


def test_an_epoch_shows_every_block_once(prepared: PreparedData) -> None:
    order = BlockOrder(n_blocks=prepared.train.n_blocks, seed=3)
    every = prepared.train.gather(order.blocks(0, order.n_blocks))
    stored = prepared.train.gather(np.arange(order.n_blocks))
    assert sorted(map(bytes, every)) == sorted(map(bytes, stored))


def test_loading_does_not_move_the_random_state(prepared: PreparedData) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    batches(prepared, 2)
    batches(prepared, 2, workers=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_validation_batches_are_the_fixed_blocks(prepared: PreparedData) -> None:
    shown = list(validation_batches(prepared, 4))
    assert [len(inputs) for inputs, _ in shown] == [4, 4, 2]
    rows = torch.from_numpy(prepared.validation)
    assert torch.equal(torch.cat([inputs for inputs, _ in shown]), rows[:, :-1])
    assert torch.equal(torch.cat([targets for _, targets in shown]), rows[:, 1:])
    loader = DataModule(run_config(), prepared).val_dataloader()
    assert torch.equal(torch.cat([targets for _, targets in loader]), rows[:, 1:])


def test_blocks_pickle_as_paths(prepared: PreparedData) -> None:
    blocks = Blocks(prepared.train)
    inputs, _ = blocks.__getitems__([0, len(blocks) - 1])
    packed = pickle.dumps(blocks)
    assert len(packed) < 10_000
    assert torch.equal(pickle.loads(packed).__getitems__([0, len(blocks) - 1])[0], inputs)
    assert torch.equal(blocks[1][0], blocks.__getitems__([1])[0])


def test_a_model_with_too_few_rows_is_refused(prepared: PreparedData) -> None:
    config = run_config()
    config = dataclasses.replace(config, model=toy_config("tnl", 32, vocab_size=128))
    with pytest.raises(ConfigError, match=r"model\.vocab_size=128: .*bytes has 256 tokens; set"):
        DataModule(config, prepared)


def test_data_is_prepared_when_not_given(tmp_path: Path, prepared: PreparedData) -> None:
    module = DataModule(run_config(), cache_dir=tmp_path)
    assert module.prepared.fingerprint() == prepared.fingerprint()


def test_micro_batches_are_announced_before_they_are_read(
    prepared: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    announced: list[list[int]] = []
    monkeypatch.setattr(type(prepared.train), "will_need", lambda _, b: announced.append(list(b)))
    loader = iter(DataModule(run_config(), prepared).train_dataloader())
    order = BlockOrder(n_blocks=prepared.train.n_blocks, seed=3)
    for step in range(3):
        next(loader)
        assert len(announced) == step + 1 + AHEAD
    assert announced == [order.blocks(12 * i, 12).tolist() for i in range(3 + AHEAD)]


def test_a_sampler_that_ends_is_read_to_its_end(prepared: PreparedData) -> None:
    for count in (0, 1, AHEAD, AHEAD + 5):
        wanted = [[i, i + 1] for i in range(count)]
        assert list(ReadAhead(wanted, prepared.train)) == wanted
