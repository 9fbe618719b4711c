"""What cannot be linearized is refused in one clear paragraph."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from linscale.errors import LinscaleError
from models.config import ConfigError, toy_config
from scaling.config.run import LinearizeConfig, RunConfig
from scaling.linearization.teacher import teacher_config
from scaling.training.train import train

STEP = 4 * 32


def refused(call: Any, *words: str) -> None:
    with pytest.raises((LinscaleError, ConfigError)) as error:
        call()
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


def foreign(folder: Path, **values: Any) -> Path:
    """A directory in Hugging Face's layout, without weights."""
    folder.mkdir()
    llama = {
        "model_type": "llama",
        "vocab_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "max_position_embeddings": 64,
    }
    (folder / "config.json").write_text(json.dumps(llama | values))
    return folder


def test_missing_teacher(student: Any, tmp_path: Path) -> None:
    config = replace(student("supra"), linearize=LinearizeConfig(teacher="nowhere/at/all"))
    refused(
        lambda: train(config, tmp_path), "linearize.teacher", "nowhere/at/all", "not a directory"
    )
    refused(lambda: teacher_config("nowhere"), "linearize.teacher", "is not a directory")


def test_untrained_teacher(teacher: Any, tmp_path: Path) -> None:
    config, _ = teacher
    (tmp_path / "config.json").write_text(json.dumps({"run_id": "x", **config.to_json()}))
    refused(lambda: teacher_config(tmp_path), "no milestone", "horizon")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model_type": "deepseek_v2"}, ("deepseek_v2",)),  # MLA
        ({"model_type": "bloom"}, ("bloom",)),  # ALiBi
        ({"model_type": "mpt"}, ("mpt",)),  # ALiBi
        ({"head_dim": 7}, ("7", "even")),
        ({"num_key_value_heads": 3}, ("kv_heads=3", "heads=4")),
    ],
)
def test_foreign_attention(tmp_path: Path, values: dict[str, Any], words: tuple[str, ...]) -> None:
    refused(lambda: teacher_config(foreign(tmp_path / "model", **values)), *words)


def test_teacher_without_softmax(teacher: Any, tmp_path: Path) -> None:
    config, path = teacher
    linear = replace(config, model=toy_config("tnl", 32, vocab_size=257, layers=2, head_dim=16))
    folder = tmp_path / linear.run_id
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"run_id": "x", **linear.to_json()}))
    (folder / "milestones.jsonl").write_text((path / "milestones.jsonl").read_text())
    refused(lambda: teacher_config(folder), "arch='tnl'", "rotary softmax")


def test_another_teacher(student: Any, tmp_path: Path) -> None:
    config = student("supra")
    other = replace(config, model=config.model.replace(glu_dim=config.model.glu_dim + 16))
    refused(lambda: train(other, tmp_path), "model.glu_dim", "linscale linearize")


def test_another_tokenizer(student: Any, tmp_path: Path) -> None:
    config: RunConfig = student("supra").override(["data.tokenizer=bpe:257"])
    refused(lambda: train(config, tmp_path), "tokenizer", "fingerprint")


def test_too_little_text(student: Any, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("too short")
    config = student("supra", f"data.corpus=text:{tmp_path}/short.txt")
    refused(lambda: train(config, tmp_path / "runs"), "less than one sequence", "add text")


@pytest.mark.parametrize(
    ("method", "override", "words"),
    [
        ("supra", f"linearize.transfer_tokens={STEP}", ("transfer_tokens", "lolcats")),
        ("lolcats", f"linearize.transfer_tokens={16 * STEP}", ("first horizon", "all stages")),
        ("lolcats", "linearize.lora_rank=-1", ("lora_rank=-1", "at least 0")),
        ("lolcats", "linearize.transfer_lr=0", ("transfer_lr", "above 0")),
        ("lolcats", "parallel.strategy=fsdp", ("fsdp", "ddp")),
        ("lolcats", "linearize.teacher=", ("transfer_tokens", "without a teacher")),
        ("lolcats", f"schedule.warmup_tokens={20 * STEP}", ("warmup_tokens", "warm-up must end")),
    ],
)
def test_configurations(student: Any, method: str, override: str, words: tuple[str, ...]) -> None:
    refused(lambda: student(method, override), *words)


def test_another_mixer_than_the_teachers_shape(student: Any, tmp_path: Path) -> None:
    """Width and depth fit, the number of heads does not; and options that it does not have."""
    linear = toy_config("tnl", 32, vocab_size=257, layers=2, head_dim=16)
    linear = linear.replace(tie_embeddings=False, glu_activation="silu")
    config = replace(student("llama"), model=linear)
    refused(lambda: train(config, tmp_path), "model.heads=4", "linscale linearize")
    refused(lambda: config.override(["linearize.lora_rank=4"]), "lora_rank=4", "tnl")
    refused(lambda: config.override(["parallel.strategy=fsdp"]), "fsdp", "tnl", "ddp")


@pytest.mark.parametrize(
    ("method", "override", "words"),
    [
        ("llama", f"linearize.hidden_tokens={STEP}", ("hidden_tokens", "llama", "=0")),
        ("supra", "linearize.hard=0.5", ("hard=0.5", "without a temperature")),
        ("supra", "linearize.temperature=-1", ("temperature=-1", "at least 0")),
        ("supra", "linearize.teacher=", ("temperature", "without a teacher")),
        ("supra", "parallel.strategy=fsdp", ("fsdp", "temperature", "ddp")),
        ("supra", "data.corpus=instructions:a.jsonl", ("matrix_tokens", "packed", "plain text")),
    ],
)
def test_options_of_stages(
    student: Any, method: str, override: str, words: tuple[str, ...]
) -> None:
    base = ["linearize.temperature=1"] if "fsdp" in override or "teacher" in override else []
    base += [f"linearize.matrix_tokens={STEP}"] if "instructions" in override else []
    refused(lambda: student(method, *base, override), *words)


def test_identity(student: Any) -> None:
    runs = {
        student("lolcats", change).run_id
        for change in ("seed=0", "linearize.transfer_lr=0.02", "linearize.lora_rank=4")
    }
    assert len(runs) == 3
