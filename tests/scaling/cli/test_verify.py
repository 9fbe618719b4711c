"""`linscale verify`: every file of a run, a sweep or a cache that was changed is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from scaling.cli.main import app
from scaling.record.verify import run_problems
from scaling.training.train import train
from tests.support.results import StopAfter


@pytest.fixture(scope="module")
def kept() -> dict[str, Path]:
    return {}


@pytest.fixture
def sweep(make_run: Any, tmp_path: Path, tmp_path_factory: Any, kept: dict[str, Path]) -> Path:
    """A copy of a sweep of one finished run and one that was stopped."""
    if not kept:
        kept["sweep"] = tmp_path_factory.mktemp("kept") / "sweep"
        train(make_run(arch="tnl"), kept["sweep"])
        train(make_run("seed=1", arch="tnl"), kept["sweep"], stop_event=StopAfter(5))
    copy = tmp_path / "sweep"
    shutil.copytree(kept["sweep"], copy)
    return copy


def verify(path: Path) -> tuple[int, list[dict[str, Any]]]:
    result = CliRunner().invoke(app, ["verify", str(path), "--json"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, json.loads(result.output)


def done(sweep: Path) -> Path:
    (run,) = (p for p in sweep.iterdir() if (p / "checkpoints" / "milestone-3072.pt").exists())
    return run


def test_a_whole_sweep(sweep: Path) -> None:
    code, found = verify(sweep)
    assert code == 0
    assert {one["state"] for one in found} == {"whole", "unfinished"}
    assert all(one["problems"] == [] for one in found)
    assert verify(done(sweep))[0] == 0
    shown = CliRunner().invoke(app, ["verify", str(sweep)])
    assert "2 of 2 are whole" in shown.output


def test_a_directory_of_something_else(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["verify", str(tmp_path)])
    assert "holds neither runs nor prepared corpora" in str(result.exception)


def test_the_data_cache(make_run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from scaling.data.prepare import prepare

    folder = prepare(make_run().data, tmp_path / "cache").folder
    assert verify(tmp_path / "cache")[0] == verify(folder)[0] == 0
    shard = folder / "train-00000.bin"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(bytes(content))
    code, (found,) = verify(tmp_path / "cache")
    assert code == 1
    assert "train-00000.bin does not have the content" in found["problems"][0]


@pytest.mark.parametrize(
    ("name", "old", "new", "why"),
    [
        ("checkpoints/manifest.json", '"step": 24', '"step": 20', "content that was written"),
        ("checkpoints/manifest.json", '"sha256"', '"sha257"', "cannot be read"),
        ("config.json", '"seed": 0', '"seed": 4', "is the configuration of"),
        ("accounting.json", '"total": ', '"total": 1', "FLOPs a token are not those"),
        ("milestones.jsonl", '"val_loss": ', '"val_loss": 1', "line of"),
        ("status.json", '"done"', '"dome"', "state is 'dome'"),
        ("metrics.jsonl", '"loss": ', '"loss"; ', "lines cannot be read"),
        ("environment.json", "{", "[", "environment.json"),
    ],
)
def test_one_change_is_named(sweep: Path, name: str, old: str, new: str, why: str) -> None:
    path = done(sweep) / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    code, found = verify(sweep)
    assert code == 1
    problems = [p for one in found if one["state"] == "damaged" for p in one["problems"]]
    assert any(why in problem for problem in problems), problems


def test_milestones_that_are_gone_or_damaged(sweep: Path) -> None:
    run = done(sweep)
    folder = run / "checkpoints"
    (folder / "milestone-3072.pt").unlink()
    content = bytearray((folder / "milestone-1024.pt").read_bytes())
    content[len(content) // 2] ^= 4
    (folder / "milestone-1024.pt").write_bytes(bytes(content))
    _, found = verify(run)
    (one,) = found
    assert len(one["problems"]) == 2
    assert "milestone-1024.pt: the checkpoint is damaged" in one["problems"][0]
    assert "milestone-3072.pt: the checkpoint is missing" in one["problems"][1]


@pytest.mark.slow
def test_flipped_bits_of_a_run_are_found(sweep: Path) -> None:
    """300 bits of the files that results rest on, by seed: named, or what is read is the same."""
    draw = np.random.default_rng(15)
    run = done(sweep)
    files = [
        run / name
        for name in ("checkpoints/manifest.json", "milestones.jsonl", "config.json",
                     "checkpoints/milestone-3072.pt")
    ]  # fmt: skip
    silent: list[str] = []
    for _ in range(300):
        path = files[draw.integers(len(files))]
        good = path.read_bytes()
        bad = bytearray(good)
        at = int(draw.integers(len(bad)))
        bad[at] ^= 1 << int(draw.integers(8))
        path.write_bytes(bytes(bad))
        if not run_problems(run) and _values(good) != _values(bytes(bad)):
            silent.append(f"{path.name} at {at}: {good[at - 20 : at + 20]!r}")
        path.write_bytes(good)
    assert all("config.json" in one for one in silent), silent
    assert len(silent) < 60  # fields of config.json beside the identity: labels, devices


def _values(content: bytes) -> list[Any]:
    """What a file of JSON says, the name of the field with its hash apart."""
    try:
        records = [json.loads(content)]
    except ValueError:
        records = [json.loads(line) for line in content.splitlines()]
    named = [{k: v for k, v in record.items() if "a25" not in k} for record in records]
    return named
