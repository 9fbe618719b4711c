"""A run goes on with the data that it began with, or says so."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from analysis.io.records import load_sweep
from linscale.errors import LinscaleError
from scaling.config.experiment import Experiment
from scaling.config.run import RunConfig
from scaling.record.data_identity import CONSENT, changes
from scaling.sweep.launch import launch
from scaling.training.train import train
from tests.support.launches import FAKE
from tests.support.results import StopAfter, result


def write_texts(folder: Path, word: str = "fox") -> None:
    """40 documents; `word` comes in the first of them alone."""
    folder.mkdir(exist_ok=True)
    draw = random.Random(0)
    words = ["the", "quick", "brown", "jumps", "over", "lazy", "dog"]
    for number in range(40):
        text = " ".join(draw.choice(words) for _ in range(200))
        (folder / f"{number:02}.txt").write_text(text if number else f"{word} {text}")


def write_tokenizer(path: Path, *, permuted: bool = False) -> None:
    """One token a byte, and an end; permuted: two of the tokens have changed their places."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    if permuted:
        i, j = alphabet.index("e"), alphabet.index("o")
        alphabet[i], alphabet[j] = alphabet[j], alphabet[i]
    vocabulary = {"<|endoftext|>": 0} | {letter: n for n, letter in enumerate(alphabet, start=1)}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    inner.add_special_tokens(["<|endoftext|>"])
    inner.save(str(path))


@pytest.fixture
def config(make_run: Callable[..., RunConfig], tmp_path: Path) -> RunConfig:
    write_texts(tmp_path / "texts")
    write_tokenizer(tmp_path / "tokenizer.json")
    return make_run(
        f"data.corpus=text:{tmp_path}/texts/*.txt",
        f"data.tokenizer=file:{tmp_path}/tokenizer.json",
        "budget.horizons=[]",
    )


def environment(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "environment.json").read_text())


def test_a_changed_corpus_is_refused_and_nothing_is_replaced(
    config: RunConfig, tmp_path: Path
) -> None:
    assert train(config, tmp_path / "whole") == "done"
    run_dir = tmp_path / "pieces" / config.run_id
    assert train(config, tmp_path / "pieces", stop_event=StopAfter(5)) == "preempted"
    before = (run_dir / "environment.json").read_bytes()

    write_texts(tmp_path / "texts", word="cat")
    with pytest.raises(LinscaleError, match=r"the corpus \(.* then, .* now\).*--accept-data-chan"):
        train(config, tmp_path / "pieces")
    assert json.loads((run_dir / "status.json").read_text())["state"] == "failed"
    assert (run_dir / "environment.json").read_bytes() == before

    write_texts(tmp_path / "texts")  # the former data, with other times
    assert train(config, tmp_path / "pieces") == "done"
    assert result(config, tmp_path / "pieces") == result(config, tmp_path / "whole")
    assert "data_changes" not in environment(run_dir)


def test_a_permuted_tokenizer_is_refused_or_agreed_to(config: RunConfig, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    run_dir = sweep / config.run_id
    train(config, sweep, stop_event=StopAfter(5))
    first = environment(run_dir)["data"]
    former = (run_dir / "tokenizer.json").read_bytes()

    write_tokenizer(tmp_path / "tokenizer.json", permuted=True)
    with pytest.raises(LinscaleError, match=r"the validation blocks .*; the tokenizer \("):
        train(config, sweep)
    assert (run_dir / "tokenizer.json").read_bytes() == former

    (run_dir / CONSENT).touch()
    assert train(config, sweep) == "done"
    assert not (run_dir / CONSENT).exists()
    (change,) = environment(run_dir)["data_changes"]
    assert change["before"] == first
    assert change["changed"] == ["validation_sha256", "tokenizer_sha256"]
    assert 1 <= change["step"] <= 6
    now = environment(run_dir)["data"]["tokenizer_sha256"]
    assert now != first["tokenizer_sha256"]
    kept = run_dir / f"tokenizer-{first['tokenizer_sha256'][:8]}.json"
    assert kept.read_bytes() == former
    assert "data changed at step" in (run_dir / "log.txt").read_text()

    read = load_sweep(sweep)
    assert read.points.empty
    assert read.curves.empty
    assert read.exclusions["reason"].str.contains("--accept-data-change allowed").all()
    assert len(load_sweep(sweep, other_data=True).points) == 1


def test_consent_is_for_one_session(config: RunConfig, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    run_dir = sweep / config.run_id
    train(config, sweep, stop_event=StopAfter(3))
    (run_dir / CONSENT).touch()
    train(config, sweep, stop_event=StopAfter(3))  # nothing had changed
    assert not (run_dir / CONSENT).exists()
    assert "data_changes" not in environment(run_dir)
    write_texts(tmp_path / "texts", word="cat")
    with pytest.raises(LinscaleError, match="are not those that it was trained on"):
        train(config, sweep)


def test_the_launcher_hands_the_consent_to_runs_that_have_begun(
    make_experiment: Callable[..., Experiment], tmp_path: Path
) -> None:
    experiment = make_experiment("one", "two")
    begun, new = (tmp_path / "sweep" / config.run_id for config in experiment.runs)
    begun.mkdir(parents=True)
    sweep = tmp_path / "sweep"
    assert launch(experiment, sweep, launcher="inline", train=FAKE, accept_data_change=True)
    assert (begun / CONSENT).exists()
    assert not (new / CONSENT).exists()


def test_fields_that_one_side_lacks_are_no_change() -> None:
    task = {"validation_sha256": "a"}
    assert changes(task, {"validation_sha256": "a", "corpus_sha256": "b"}) == []
    assert changes(task, {"validation_sha256": "b"}) == ["validation_sha256"]
    assert changes({}, {"corpus_sha256": "b"}) == []


def test_a_run_on_other_data_than_the_rest_is_left_out(config: RunConfig, tmp_path: Path) -> None:
    """Two runs on one state of the files, one on another: the sweep does not mix them."""
    sweep = tmp_path / "sweep"
    configs = [config.override([f"seed={seed}"]) for seed in range(3)]
    for one in configs[:2]:
        train(one, sweep)
    write_texts(tmp_path / "texts", word="cat")
    train(configs[2], sweep)
    read = load_sweep(sweep)
    assert set(read.points["run_id"]) == {one.run_id for one in configs[:2]}
    assert read.exclusions["run_id"].tolist() == [configs[2].run_id]
    (reason,) = read.exclusions["reason"]
    assert reason.startswith("other data than 2 runs with the same settings: corpus ")
    shutil.rmtree(sweep / configs[0].run_id)
    shutil.rmtree(sweep / configs[1].run_id)
    assert len(load_sweep(sweep).points) == 1
