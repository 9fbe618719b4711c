"""Instructions: what is read, what counts, how it is packed, and that a run learns the answers."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from linscale.errors import LinscaleError
from models.cross_entropy import IGNORE_INDEX
from scaling.config.run import DataConfig
from scaling.data.instructions import (
    PreparedInstructions,
    pack,
    read_examples,
)
from scaling.data.loader import to_batch
from scaling.data.prepare import prepare
from scaling.data.tokenizers import ByteTokenizer
from scaling.record.load_model import load_model
from scaling.record.pretrained import load_pretrained
from scaling.training.loss import block_means, mean_loss, token_losses
from scaling.training.train import train

FILE = Path(__file__).parent / "alpaca.jsonl"
EOS = ByteTokenizer.eos_id


def data(**changes: Any) -> DataConfig:
    values: dict[str, Any] = {
        "corpus": f"instructions:{FILE}",
        "sequence_length": 512,
        "batch_sequences": 2,
        "validation_fraction": 0.3,
        "validation_blocks": 4,
    }
    return DataConfig(**(values | changes))


def prepared(tmp_path: Path, **changes: Any) -> PreparedInstructions:
    ready = prepare(data(**changes), tmp_path)
    assert isinstance(ready, PreparedInstructions)
    return ready


def test_template() -> None:
    with_input, without = list(read_examples(str(FILE), "a test", FILE.parent))[1:4:2]
    assert with_input.prompt.endswith(
        "### Instruction:\nTranslate into French.\n\n### Input:\nGood morning\n\n### Response:\n"
    )
    assert with_input.answer == "Bonjour"
    assert "further context" in with_input.prompt
    assert without.prompt.endswith(
        "### Instruction:\nGive the capital of Norway.\n\n### Response:\n"
    )
    assert "Input" not in without.prompt


def test_every_answer_is_a_target_once(tmp_path: Path) -> None:
    ready = prepared(tmp_path)
    rows = np.concatenate([ready.train.gather(range(ready.train.n_blocks)), ready.validation])
    found: list[str] = []
    prompts: list[str] = []
    for inputs, targets, number in rows:
        for example in np.unique(number):
            here = number == example
            learnt = targets[here][targets[here] != IGNORE_INDEX]
            if not len(learnt):  # the rest of the row
                assert (inputs[here] == EOS).all()
                continue
            assert learnt[-1] == EOS
            found.append(bytes(learnt[:-1].tolist()).decode())
            seen = inputs[here][: (targets[here] == IGNORE_INDEX).sum() + 1]
            prompts.append(bytes(seen.tolist()).decode())
            # Inputs are the targets, one token later.
            assert (inputs[here][-len(learnt) + 1 :] == learnt[:-1]).all() or len(learnt) == 1
    examples = list(read_examples(str(FILE), "a test", FILE.parent))
    assert sorted(found) == sorted(example.answer for example in examples)
    assert sorted(prompts) == sorted(example.prompt for example in examples)
    size = sum(len(answer.encode()) for answer in found)
    tokens = ready.train_tokens + ready.validation_tokens
    assert tokens == size + len(examples)
    assert ready.fingerprint()["left_out"] == ready.fingerprint()["cut"] == 0


@given(st.lists(st.integers(1, 64), max_size=60))
def test_packing(lengths: list[int]) -> None:
    rows = pack(lengths, 64)
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    fill = [sum(lengths[item] for item in row) for row in rows]
    assert all(0 < total <= 64 for total in fill)
    # Best fit never leaves two rows that would fit into one.
    assert sum(total <= 32 for total in fill) <= 1


def test_packed_examples_do_not_see_each_other(tmp_path: Path, teacher: Any) -> None:
    model = load_pretrained(teacher[1]).model
    ready = prepared(tmp_path)
    batch = to_batch(ready.validation)
    tokens, targets, boundaries = batch
    assert boundaries[0] == 0 and boundaries[-1] == tokens.numel()  # noqa: PT018
    with torch.no_grad():
        packed = token_losses(model, batch).flatten()
        for start, end in itertools.pairwise(boundaries.tolist()):
            alone = model.loss(
                tokens.flatten()[None, start:end], targets.flatten()[None, start:end]
            )[0]
            # float32: sums of 512 terms in another order.
            torch.testing.assert_close(packed[start:end], alone, rtol=1e-4, atol=1e-5)
        counted = targets != IGNORE_INDEX
        losses = packed.view(tokens.shape)
        assert mean_loss(model, batch).item() == pytest.approx(losses[counted].mean().item())
        rows = [row[keep].double().mean() for row, keep in zip(losses, counted, strict=True)]
        torch.testing.assert_close(block_means(model, batch), torch.stack(rows))


def test_same_file_same_rows(tmp_path: Path) -> None:
    first, second = prepared(tmp_path), prepared(tmp_path)
    assert first.fingerprint() == second.fingerprint()
    assert (first.train.gather([0]) == second.train.gather([0])).all()
    assert isinstance(prepare(data(), tmp_path), PreparedInstructions)


def test_long_examples_are_cut_or_left_out(tmp_path: Path) -> None:
    whole = prepared(tmp_path).fingerprint()
    short = prepared(tmp_path, sequence_length=220, validation_fraction=0.5).fingerprint()
    assert short["left_out"] > 0
    assert short["cut"] + short["left_out"] > whole["cut"] + whole["left_out"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"instruction": "a"}', ("'output'", "'instruction'", ":1:")),
        ('{"instruction": "a", "output": "b"}\n{"text": "c"}', (":2:", "'instruction'")),
        ('{"instruction": 3, "output": "b"}', ("'instruction'", "no text")),
        ("not json", ("not a JSON object",)),
        ('{"instruction": "a", "output": "b"}', ("too short", "add examples")),
    ],
)
def test_errors(tmp_path: Path, content: str, words: tuple[str, ...]) -> None:
    (tmp_path / "bad.jsonl").write_text(content)
    with pytest.raises(LinscaleError) as error:
        prepared(tmp_path, corpus=f"instructions:{tmp_path}/bad.jsonl")
    assert all(word in str(error.value) for word in words), str(error.value)


def test_no_room_for_any_answer(tmp_path: Path) -> None:
    with pytest.raises(LinscaleError, match=r"too short.*20 have no room.*sequence_length=64"):
        prepared(tmp_path, sequence_length=64)


def test_no_such_file_and_no_such_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(LinscaleError, match="no file matches"):
        prepared(tmp_path, corpus=f"instructions:{tmp_path}/*.jsonl")
    with pytest.raises(LinscaleError, match="has a tokenizer"):
        prepared(tmp_path, tokenizer="bpe:300")


def test_from_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in `datasets`' own layout stands for the hub, which tests do not reach."""
    import datasets

    records = [json.loads(line) for line in FILE.read_text().splitlines()]
    for record in records:
        record.setdefault("input", "")
    datasets.Dataset.from_list(records).save_to_disk(tmp_path / "alpaca")
    folder = list(read_examples(f"hf:{tmp_path}/alpaca", "a test", tmp_path))
    assert folder == list(read_examples(str(FILE), "a test", FILE.parent))


def test_lolcats_on_instructions(student: Any, tmp_path: Path) -> None:
    config = student("lolcats", "linearize.lora_rank=4", "optim.lr=1e-2")
    config = replace(config, data=data(batch_sequences=1), budget=replace(
        config.budget, tokens=40 * 512, horizons=(), checkpoint_every_tokens=None),
        linearize=replace(config.linearize, transfer_tokens=10 * 512),
        schedule=replace(config.schedule, warmup_tokens=512))  # fmt: skip
    assert train(config, tmp_path / "runs") == "done"
    folder = tmp_path / "runs" / config.run_id
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in metrics if line["split"] == "train"]
    assert losses[-1] < 0.8 * losses[0]
    content = json.loads((folder / "linearization.json").read_text())
    assert all(b > a for b, a in zip(*content["layers"].values(), strict=True))
    milestone = json.loads((folder / "milestones.jsonl").read_text())
    model, _ = load_model(folder / milestone["checkpoint"])
    batch = to_batch(prepare(config.data).validation)
    with torch.no_grad():
        loss = block_means(model, batch).mean().item()
    assert loss == pytest.approx(milestone["val_loss"], rel=1e-5)
