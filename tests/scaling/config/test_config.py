"""The run configuration: round trips, overrides, identity, and errors that name the remedy."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.architectures.llama import RopeScaling
from models.config import ConfigError, toy_config
from scaling.config.run import BudgetConfig, DataConfig, RunConfig, dotted_names

RUN = RunConfig(
    name="tnl-d32",
    size="d32",
    model=toy_config("tnl", 32, vocab_size=257),
    data=DataConfig(sequence_length=64, batch_sequences=8),
    budget=BudgetConfig(tokens=100_000, horizons=(50_000,)),
)


def test_json_round_trip() -> None:
    assert RunConfig.from_json(json.loads(json.dumps(RUN.to_json()))) == RUN


def test_defaults_need_not_be_given() -> None:
    values = {"name": "x", "model": RUN.to_json()["model"], "budget": {"tokens": 1_000_000}}
    assert RunConfig.from_json(values).data == DataConfig()


@pytest.mark.parametrize(
    ("assignment", "name", "value"),
    [
        ("optim.lr=3e-4", "optim.lr", 3e-4),
        ("optim.lr=1", "optim.lr", 1.0),
        ("budget.tokens=1e6", "budget.tokens", 1_000_000),
        ("budget.horizons=20000, 60000", "budget.horizons", (20_000, 60_000)),
        ("budget.horizons=()", "budget.horizons", ()),
        ("optim.betas=0.8,0.99", "optim.betas", (0.8, 0.99)),
        ("optim.clip_norm=none", "optim.clip_norm", None),
        ("parallel.compile=true", "parallel.compile", True),
        ("model.arch=hgrn2", "model.arch", "hgrn2"),
        ("model.options.rope_base=5000", "model.options.rope_base", 5000.0),
        ("data.corpus=text:a=b/*.txt", "data.corpus", "text:a=b/*.txt"),
        ("seed= 7 ", "seed", 7),
    ],
)
def test_overrides_are_typed(assignment: str, name: str, value: object) -> None:
    changed: object = RUN.override([assignment])
    for part in name.split("."):
        changed = getattr(changed, part)
    assert changed == value
    assert type(changed) is type(value)


def test_overrides_apply_together() -> None:
    """Neither alone is possible: the horizon must be within the budget."""
    config = RUN.override(["budget.tokens=30000", "budget.horizons=10000"])
    assert config.budget == BudgetConfig(tokens=30_000, horizons=(10_000,))


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("optim.learning_rate=1", "optim.learning_rate: no such field"),
        ("optim.lrr=1", "optim.lrr: no such field; did you mean optim.lr?"),
        ("lr=1", "did you mean optim.lr?"),
        ("modle.dim=64", "did you mean model.dim?"),
        ("optim=1", "optim is a group of fields; set one of them, optim.NAME=VALUE."),
        ("optim.lr", "write an override as name=value"),
        ("=1", "write an override as name=value"),
        ("optim.lr=fast", "optim.lr=fast: must be a number."),
        ("optim.lr=-1", "optim.lr=-1.0: must be above 0"),
        ("optim.lr=nan", "optim.lr=nan: must be a number."),
        ("model.init_std=nan", "model.init_std=nan: must be a number."),
        ("model.init_std=-1", "model.init_std=-1.0: must be at least 0 and finite, or None."),
        ("model.norm_eps=inf", "model.norm_eps=inf: must be above 0 and finite."),
        ("model.layers=1e9", "must be a whole number from 1 to 10,000."),
        ("model.dim=1e12", "must be a whole number from 1 to 1,000,000,000."),
        ("model.dim=999999937", "the nearest number that does is 1."),
        ("seed=1.5", "seed=1.5: must be a whole number."),
        ("parallel.compile=maybe", "parallel.compile=maybe: must be true or false."),
        ("model.heads=3", "model.heads=3 does not divide model.dim=32; the nearest"),
        ("schedule.kind=linear", "schedule.kind='linear': must be one of wsd, cosine, constant."),
        ("budget.tokens=100", "budget.horizons=(50000,): must be at most budget.tokens=100"),
        ("data.corpus=wiki", "data.corpus='wiki': must be `kjv`".replace("`", "")),
        ("parallel.micro_batch_sequences=3", "the nearest number that does is 2"),
        ("parallel.devices=3", "data.batch_sequences=8 cannot be shared by parallel.devices=3"),
        ("name=a b", "name='a b': must be 1 to 64 letters"),
        ("budget.horizons=2e4,1e4", "must be in increasing order"),
        ("budget.horizons=50000,50001", "two of them are the same step"),
    ],
)
def test_bad_overrides_say_what_and_how(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        RUN.override([assignment])
    assert "\n" not in str(caught.value)


def test_budget_below_one_step() -> None:
    """The error gives the size of a step and the smallest budget that works."""
    message = r"budget.tokens: 100 tokens are less than one optimizer step of .*8 x .*64 = 512"
    with pytest.raises(ConfigError, match=message):
        RUN.override(["budget.tokens=100", "budget.horizons=()"])
    assert RUN.override(["budget.tokens=512", "budget.horizons=()"]).steps == 1


def test_budgets_are_rounded_to_whole_steps() -> None:
    assert RUN.tokens_per_step == 512
    assert RUN.steps == 195  # 195.3
    assert RUN.horizon_steps == (98, 195)  # 97.7


@pytest.mark.parametrize(
    "assignment",
    ["optim.lr=1e-3", "seed=1", "model.dim=64", "data.sequence_length=32", "data.corpus=stdlib",
     "budget.tokens=2e5", "schedule.kind=cosine", "parallel.precision=bf16"],
)  # fmt: skip
def test_what_changes_the_result_changes_the_identity(assignment: str) -> None:
    assert RUN.override([assignment]).run_id != RUN.run_id


@pytest.mark.parametrize(
    "assignment",
    ["size=other", "parallel.devices=2", "parallel.micro_batch_sequences=1", "parallel.threads=3",
     "parallel.compile=true", "budget.checkpoint_every_tokens=512"],
)  # fmt: skip
def test_what_does_not_change_the_result_keeps_the_identity(assignment: str) -> None:
    assert RUN.override([assignment]).run_id == RUN.run_id


def test_later_options_rename_only_runs_that_use_them() -> None:
    llama = dataclasses.replace(RUN, model=toy_config("llama", 32, vocab_size=257))
    grouped = dataclasses.replace(llama, model=llama.model.with_options(kv_heads=2))
    stretched = llama.model.with_options(rope_scaling=RopeScaling(kind="linear", factor=2.0))
    stretched = dataclasses.replace(llama, model=stretched)
    assert len({run.run_id for run in (llama, grouped, stretched)}) == 3
    assert RunConfig.from_json(json.loads(json.dumps(stretched.to_json()))) == stretched
    old = llama.to_json()
    del old["model"]["options"]["kv_heads"], old["model"]["options"]["rope_scaling"]
    assert RunConfig.from_json(old).run_id == llama.run_id


def test_identity_is_stable() -> None:
    """A new default would give every existing run another identity; that must be meant."""
    assert RUN.run_id == "tnl-d32-dcf6e7ff"
    assert RUN.override(["name=renamed"]).run_id.split("-")[-1] == RUN.run_id.split("-")[-1]


@given(st.sampled_from(sorted(dotted_names())), st.text(max_size=12))
def test_any_text_gives_a_configuration_or_a_config_error(name: str, text: str) -> None:
    try:
        config = RUN.override([f"{name}={text}"])
    except ConfigError:
        return
    assert RunConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("assignments", "rows"),
    [
        (["data.tokenizer=bpe:8192"], 8192),
        (["data.tokenizer=tiktoken:cl100k_base"], 100_277),
        (["data.tokenizer=bytes"], 257),  # as it was: nothing has changed
        (["data.tokenizer=bpe:8192", "model.vocab_size=9000"], 9000),
        (["data.tokenizer=tiktoken:somebody's"], 257),  # not known here: `run` says
        (["optim.lr=1e-3"], 257),
    ],
)
def test_the_vocabulary_follows_the_tokenizer(assignments: list[str], rows: int) -> None:
    assert RUN.override(assignments).model.vocab_size == rows
