"""Overrides of any depth: every leaf of every architecture can be set."""

from __future__ import annotations

import dataclasses
import types
from typing import Any, Literal, Union, get_args, get_origin

import pytest

from models.architecture import BUILT_IN
from models.architectures.llama import LlamaOptions, RopeScaling
from models.config import ConfigError, toy_config
from scaling.config.run import BudgetConfig, DataConfig, RunConfig, dotted_names


def run(arch: str) -> RunConfig:
    return RunConfig(
        name="run",
        model=toy_config(arch, 32, vocab_size=257, layers=2),
        data=DataConfig(sequence_length=64, batch_sequences=8),
        budget=BudgetConfig(tokens=100_000),
    )


def read(config: object, path: str) -> object:
    for part in path.split("."):
        config = getattr(config, part)
    return config


TOGETHER = {  # what else a value needs
    "model.arch": ["model.arch=hgrn2"],
    "model.options.rope_scaling": ["kind=linear", "factor=2"],
    "model.options.llama.rope_scaling": ["kind=linear", "factor=2"],
}


def another(hint: Any, now: object) -> str | None:
    """Text of another value of a type, where one is easily found."""
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(h for h in get_args(hint) if h is not types.NoneType)
    if get_origin(hint) is Literal:
        return next(str(choice) for choice in get_args(hint) if choice != now)
    if hint is bool:
        return str(not now)
    if hint is int:
        return str((now or 1) * 2)  # pyright: ignore[reportOperatorIssue]
    return str((now or 1.0) * 0.5) if hint is float else None  # pyright: ignore[reportOperatorIssue]


def assert_about_the_value(message: str) -> None:
    assert "no such field" not in message
    assert "group of fields" not in message


@pytest.mark.parametrize("arch", BUILT_IN)
def test_every_leaf_is_reached(arch: str) -> None:
    """The value given is the one that stands there, or the refusal is about that value."""
    config = run(arch)
    names = dotted_names(config.to_json())
    options = {n for n in names if n.startswith("model.options.")}
    assert {f"model.options.{f.name}" for f in dataclasses.fields(config.model.options)} <= (
        options | {n.rpartition(".")[0] for n in options}
    )
    for name, hint in names.items():
        group = name.rpartition(".")[0]
        before = [f"{group}.{rest}" for rest in TOGETHER.get(group, [])]
        start = config.override(before) if before else config
        text = another(hint, read(start, name))
        if text is None:
            text = {"model.arch": arch, "model.options.rope_scaling": "none",
                    "model.options.llama.rope_scaling": "none"}.get(name)  # fmt: skip
        if text is None:
            continue
        try:
            changed = start.override([f"{name}={text}"])
        except ConfigError as refused:
            assert_about_the_value(str(refused))
            continue
        stands = str(read(changed, name))
        assert stands.lower() == text.lower() or float(stands) == float(text), name


def test_a_part_that_is_none_is_made() -> None:
    config = run("llama").override(
        ["model.options.rope_scaling.kind=yarn", "model.options.rope_scaling.factor=2",
         "model.options.rope_scaling.original_length=64"]
    )  # fmt: skip
    scaling = RopeScaling(kind="yarn", factor=2.0, original_length=64)
    assert config.model.options == LlamaOptions(rope_scaling=scaling)
    assert config.override(["model.options.rope_scaling.factor=4"]).model.options == LlamaOptions(
        rope_scaling=dataclasses.replace(scaling, factor=4.0)
    )
    assert config.override(["model.options.rope_scaling=none"]) == run("llama")


@pytest.mark.parametrize(
    ("arch", "assignment", "message"),
    [
        ("llama", "model.options.rope_scaling.factor=2", "rope_scaling.kind: has no default"),
        (
            "llama",
            "model.options.rope_scaling=yarn",
            "is a group of fields; set model",
        ),
        ("llama", "model.options=x", "model.options is a group of fields"),
        ("lolcats", "model.options.llama=x", "model.options.llama is a group of fields"),
        ("lolcats", "model.options.windw=8", "did you mean model.options.window?"),
        ("supra", "model.options.llama.kv_heads=3", "model.options.llama.kv_heads=3 does not div"),
        ("supra", "model.options.llama.window=0", "model.options.llama.window=0: must be a pos"),
        ("hgrn2", "model.options.rank=8", "no such field with model.arch=hgrn2; "),
    ],
)
def test_refusals_name_the_whole_path(arch: str, assignment: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run(arch).override([assignment])
    assert message in str(caught.value)


def test_a_new_architecture_keeps_the_options_that_both_have() -> None:
    config = run("tnl").override(["model.options.gate_rank=3"])
    changed = config.override(["model.arch=cosformer2"]).model
    assert changed == toy_config("cosformer2", 32, vocab_size=257, layers=2).with_options(
        gate_rank=3
    )
    assert run("tnl").override(["model.arch=hgrn2"]).model.arch == "hgrn2"
    with pytest.raises(ConfigError, match=r"model.options.gate_rank=3 with model.arch='hgrn2'"):
        config.override(["model.arch=hgrn2"])
    both = config.override(["model.options.tpe=false", "model.arch=cosformer2"])
    assert both.model == changed.with_options(tpe=False)
