"""`linscale linearize` as a user meets it: our runs, foreign directories, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from models.config import ConfigError
from scaling.cli import app
from scaling.errors import LinscaleError
from scaling.export import export_pretrained
from scaling.pretrained import load

STEP = 4 * 32
SMALL = ["optim.lr=3e-3", "parallel.threads=1"]


def linscale(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["linearize", *map(str, arguments)], catch_exceptions=False)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("supra", ["--no-decay", "--no-norm", "--keep-softmax", "1"]),
        ("lolcats", ["--window", 4, "--arrangement", "sliding", "--feature-map", "t2r"]),
    ],
)
def test_a_run_of_ours(teacher: Any, tmp_path: Path, method: str, options: list[Any]) -> None:
    command = [teacher[1], "--method", method, "--tokens", 12 * STEP, *options, "-o", tmp_path]
    first = linscale(*command, *SMALL)
    assert first.exit_code == 0, first.output
    text = " ".join(first.output.split())
    for words in ("parameters (", "of the teacher's 19,200", "5%", "after surgery", "milestone"):
        assert words in text
    again = linscale(*command, "--json", *SMALL)  # which is done already
    values = json.loads(again.stdout[again.stdout.index("{") :])
    assert values["losses"][0]["what"] == "teacher"
    assert values["losses"][-1]["tokens"] == 12 * STEP
    config = json.loads((Path(values["run"]) / "config.json").read_text())
    if method == "supra":
        assert config["model"]["supra"]["softmax_layers"] == [1]
        assert not config["model"]["supra"]["norm"]
        assert config["model"]["decay_slopes"] == "none"
    else:
        assert config["model"]["lolcats"]["arrangement"] == "sliding"
        assert config["linearize"]["transfer_tokens"] == 6 * STEP
        assert config["linearize"]["lora_rank"] == 8


def test_a_directory_in_hugging_faces_layout(teacher: Any, workplace: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    export_pretrained(load(teacher[1]), foreign, "transformers")
    shape = ["data.sequence_length=32", "data.batch_sequences=4", "data.validation_blocks=6"]
    command = [foreign, "--tokens", 6 * STEP, "-o", tmp_path / "out", *SMALL, *shape]
    with pytest.raises(LinscaleError, match="--corpus"):
        linscale(*command)
    result = linscale(*command, "--corpus", f"text:{workplace}/*.txt", "--json")
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout[result.stdout.index("{") :])
    # The same weights and text as the run's own checkpoint.
    milestone = json.loads((teacher[1] / "milestones.jsonl").read_text())
    assert values["validation"]["teacher"]["loss"] == pytest.approx(milestone["val_loss"], abs=0.05)
    assert values["teacher"].get("tokens") is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "mamba"], ("mamba", "supra, lolcats")),
        (["--method", "supra", "--window", "4"], ("window=4", "supra has no such option")),
        (["--method", "lolcats", "--no-norm"], ("norm", "lolcats has no such option")),
        (["--method", "lolcats", "--no-decay"], ("no_decay", "only supra")),
        (["--keep-softmax", "a"], ("keep_softmax='a'", "such as 0,15")),
        (["--keep-softmax", "7"], ("softmax_layers", "last layer is 1")),
        (["--feature-map", "softmax"], ("feature_map", "hedgehog")),
        (["optim.rate=1"], ("optim.rate", "no such field")),
    ],
)
def test_refused(
    teacher: Any, tmp_path: Path, arguments: list[str], words: tuple[str, ...]
) -> None:
    with pytest.raises((LinscaleError, ConfigError)) as error:
        linscale(teacher[1], *arguments, "-o", tmp_path)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_report_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(LinscaleError, match="neither a sweep"):
        CliRunner().invoke(app, ["linearize-report", str(tmp_path)], catch_exceptions=False)
