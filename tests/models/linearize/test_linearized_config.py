"""Options of linearized models in run configurations: round trip, identity, overrides."""

from __future__ import annotations

import pytest

from models.architectures.lolcats import LoLCATs
from models.config import ARCHS, ConfigError, ModelConfig, toy_config
from scaling.config.run import BudgetConfig, RunConfig


def run(model: ModelConfig) -> RunConfig:
    return RunConfig(name="test", model=model, budget=BudgetConfig(tokens=100_000))


@pytest.mark.parametrize(
    "model",
    [
        toy_config("supra", 32, vocab_size=61),
        toy_config("supra", 32, vocab_size=61).with_options(norm=False),
        toy_config("lolcats", 32, vocab_size=61).with_options(
            window=8, arrangement="sliding", softmax_layers=(0,)
        ),
    ],
)
def test_round_trip(model: ModelConfig) -> None:
    config = run(model)
    again = RunConfig.from_json(config.to_json())
    assert again == config
    assert again.run_id == config.run_id


def test_the_published_options_are_the_default() -> None:
    lolcats = toy_config("lolcats", 32, vocab_size=61)
    assert lolcats.options == LoLCATs()
    assert run(lolcats).run_id == run(lolcats.with_options(window=64)).run_id
    assert run(lolcats).run_id != run(lolcats.with_options(window=32)).run_id
    supra = toy_config("supra", 32, vocab_size=61)
    assert run(supra).run_id != run(supra.with_options(decay_slopes="none")).run_id


def test_the_options_rename_no_other_run() -> None:
    """The hashes before there were linearized models."""
    names = {arch: run(toy_config(arch, 32, vocab_size=61)).run_id for arch in ARCHS}
    assert names == {
        "llama": "test-d36948c8",
        "tnl": "test-dd484d26",
        "hgrn2": "test-c513df55",
        "cosformer2": "test-786de649",
    }


def test_options_in_json_are_checked() -> None:
    values = run(toy_config("supra", 32, vocab_size=61)).to_json()
    values["model"]["options"]["norms"] = True
    with pytest.raises(ConfigError, match=r"model.options.norms.*did you mean model.options.norm"):
        RunConfig.from_json(values)
