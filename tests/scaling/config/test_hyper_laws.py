"""Learning-rate and batch laws at the values that their authors print, and applied to runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from models.accounting import non_embedding_parameters, train_flops_per_token
from models.config import ARCHS, ConfigError, paper_config, toy_config
from scaling.cli.main import app
from scaling.config.experiment import Experiment, load_experiment
from scaling.config.hyper_laws import LAWS, apply_law, batch_tokens, learning_rate
from scaling.config.linearize import LinearizeConfig
from scaling.config.recipes import TOY_VOCAB, paper_recipe, toy_recipe
from scaling.config.run import RunConfig
from scaling.plan.plan import rung
from scaling.system.devices import find_device

LADDER = str(Path(__file__).parents[3] / "experiments" / "paper_ladder.py")
LLAMA = toy_config("llama", 32, vocab_size=TOY_VOCAB)


@pytest.mark.parametrize(
    ("layers", "dim", "rate", "sequences"),
    [(30, 4096, 4.2e-4, 2304), (95, 8192, 3.2e-4, 4608)],
)
def test_deepseek_models_have_the_values_of_the_deepseek_law(
    layers: int, dim: int, rate: float, sequences: int
) -> None:
    """Table 2 of arXiv 2401.02954 (7B and 67B, 2T tokens, sequences of 4096), which rounds. FLOPs a
    token as there: 72 l d^2 + 12 l d T."""
    tokens, length = 2 * 10**12, 4096
    flops = (72 * layers * dim**2 + 12 * layers * dim * length) * tokens
    assert learning_rate("deepseek", 0, tokens, flops) == pytest.approx(rate, rel=0.03)
    assert batch_tokens("deepseek", tokens, flops) == pytest.approx(sequences * length, rel=0.11)


def test_step_law_by_hand() -> None:
    # N = 1e9, D = 1e11: 1.79 * 10^(-6.417 + 3.377); 0.58 * 10^6.281.
    assert learning_rate("step", 10**9, 10**11, 0) == pytest.approx(1.79 * 10**-3.04)
    assert batch_tokens("step", 10**11, 0) == pytest.approx(0.58 * 10**6.281)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("arch", ARCHS)
def test_a_tuned_rung_is_planned(arch: Any, law: Any) -> None:
    plain = paper_recipe(f"{arch}-410M", "410M", paper_config(arch, "410M"))
    run = apply_law(plain, law, multiple=16)
    tokens, length = run.budget.tokens, run.data.sequence_length
    row = rung(run, find_device("h200"))
    assert row.lr == run.optim.lr
    if law == "constant":
        assert run is plain
        return
    assert run.data.batch_sequences % 16 == 0
    flops = train_flops_per_token(run.model, length)
    blocks = (flops["total"] - flops["head"]) * tokens
    assert run.optim.lr == learning_rate(law, non_embedding_parameters(run.model), tokens, blocks)
    wanted = batch_tokens(law, tokens, blocks)
    assert abs(row.batch_tokens - wanted) <= 8 * length
    assert replace(run, optim=plain.optim, data=plain.data, parallel=plain.parallel) == plain


def toy(**parallel: int) -> RunConfig:
    model = toy_config("tnl", 32, vocab_size=TOY_VOCAB)
    run = toy_recipe("toy", "d32", model, tokens=4_000_000)
    return replace(run, parallel=replace(run.parallel, **parallel))


def test_batches_are_shared_evenly() -> None:
    run = apply_law(toy(devices=2, micro_batch_sequences=4), "step")
    share = run.data.batch_sequences // 2
    assert run.data.batch_sequences % 2 == 0
    assert run.parallel.micro_batch_sequences is not None
    assert share % run.parallel.micro_batch_sequences == 0


def test_errors_name_the_choice() -> None:
    with pytest.raises(ConfigError, match="law='chinchilla': choose one of constant, deepseek, s"):
        apply_law(toy(), "chinchilla")  # type: ignore[arg-type]
    scaled = replace(toy(), model=toy().model.replace(mup_base_dim=16))
    with pytest.raises(ConfigError, match="both set the learning rate by size"):
        apply_law(scaled, "step")
    started = replace(toy(), linearize=LinearizeConfig(teacher="runs/teacher"), model=LLAMA)
    with pytest.raises(ConfigError, match="laws are those of training from scratch"):
        apply_law(started, "step")
    result = CliRunner().invoke(app, ["plan", LADDER, "--law", "best"])
    assert isinstance(result.exception, ConfigError)


def planned(*arguments: str) -> list[dict[str, Any]]:
    result = CliRunner().invoke(app, ["plan", LADDER, "--device", "h200", "--json", *arguments])
    assert result.exit_code == 0, result.exception
    return json.loads(result.stdout)


def test_plan_takes_a_law_for_any_experiment() -> None:
    plain, lawful = planned(), planned("--law", "deepseek")
    assert {row["law"] for row in plain} == {"constant"}
    assert {row["law"] for row in lawful} == {"deepseek"}
    runs = [apply_law(run, "deepseek") for run in load_experiment(Path(LADDER), []).runs]
    for row, run in zip(lawful, runs, strict=True):
        assert row["run_id"] == run.run_id
        assert row["lr"] == run.optim.lr
        assert row["batch_tokens"] == run.tokens_per_step
    assert len({row["lr"] for row in lawful}) > 4 > len({row["lr"] for row in plain})


def test_overrides_have_the_last_word_over_a_law_and_a_law_knows_of_them() -> None:
    rows = planned("--law", "step", "optim.lr=1e-3")
    assert {row["lr"] for row in rows} == {1e-3}
    shorter = planned("--law", "step", "budget.tokens=30000000000", "budget.horizons=")
    assert all(a["batch_tokens"] < b["batch_tokens"] for a, b in zip(shorter, rows, strict=True))


def test_a_cluster_shares_the_batch_of_a_law_evenly() -> None:
    length = load_experiment(Path(LADDER), []).runs[0].data.sequence_length
    rows = planned("--law", "step", "--nodes", "4", "--gpus-per-node", "8")
    assert {row["devices"] for row in rows} == {32}
    assert {row["batch_tokens"] // length % 32 for row in rows} == {0}


def test_run_trains_what_plan_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[Experiment] = []

    def launch(experiment: Experiment, *_: Any, **__: Any) -> bool:
        launched.append(experiment)
        return True

    monkeypatch.setattr("scaling.sweep.launch.launch", launch)
    arguments = ["run", LADDER, "--law", "step", "optim.weight_decay=0.2"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    ids = [row["run_id"] for row in planned("--law", "step", "optim.weight_decay=0.2")]
    assert [run.run_id for run in launched[0].runs] == ids
